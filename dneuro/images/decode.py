"""From the bytes of an image file to a picture, whatever the file turns out to be."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from dneuro.errors import ImageSourceError, UnreadableImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
"""Formats that are tried, by content; Pillow's others stay out (for EPS it would start Ghostscript)."""

MAX_PIXELS = 89_478_485
"""Largest picture, in pixels: where Pillow begins to warn of a decompression bomb (256 MiB as RGB)."""

_COLOR = frozenset({"RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "P", "PA"})
_GREY = frozenset({"1", "L", "LA", "La"})
_WARNINGS = threading.Lock()


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """Return the picture in `data`, the content of an image file.

    Colour is what Pillow's ``convert("RGB")`` gives, as in the usual ImageNet pipelines: transparency is
    dropped, not composited over a background; CMYK is converted without a colour profile. Grey stays grey;
    of 16 bits (and of TIFF's 12) the upper 8 are kept, so that white stays white. Of an animation the first
    frame counts. An EXIF orientation is *not* applied, because those pipelines do not apply it either; a
    TIFF's own orientation is, by Pillow.

    Parameters
    ----------
    data : bytes
        JPEG, PNG, GIF, BMP, PPM/PGM, WebP or TIFF; recognised by content, not by name.
    name : str
        Name of the file, for messages.

    Returns
    -------
    ndarray of uint8
        (height, width, 3), or (height, width) where the file is grey.

    Raises
    ------
    UnreadableImageError
        If the file is empty, truncated, damaged, of another format, of a kind without a known range
        (32 bit, floating point), or larger than `MAX_PIXELS`.
    ImageSourceError
        If ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is on: half a picture would pass for a whole one.

    Notes
    -----
    Cost: peak memory is about 11 bytes per pixel.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageSourceError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on in this process: damaged images would be read as if whole",
            hint="PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False",
        )
    if not data:
        raise UnreadableImageError(f"{name}: the file is empty (0 bytes)")
    try:
        with _open(data) as image:
            return _to_array(image)
    except UnidentifiedImageError:
        raise UnreadableImageError(
            f"{name}: not a picture in a format known here ({', '.join(FORMATS)}); it begins {data[:12]!r}"
        ) from None
    except MemoryError:
        raise  # says something about the machine, not about the image
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        cause = str(error) or type(error).__name__
        raise UnreadableImageError(f"{name}: cannot be decoded: {cause}") from error


def _open(data: bytes) -> Image.Image:
    with _without_warnings():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} × {height} = {width * height:,} pixels; the limit is {MAX_PIXELS:,}")
        if image.format == "TIFF":
            image.load()  # reads EXIF, too, and warns about it
    return image


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings: odd metadata must not decide, by the caller's filters, what is readable.

    Filters belong to the process, hence the lock. It is held while headers are parsed, not while pixels
    are decoded (but for TIFF), so that threads decode side by side.
    """
    with _WARNINGS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _GREY:
        return np.array(_as(image, "L"))
    if image.mode in _COLOR:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
        return np.array(_as(image, "RGB"))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return (np.asarray(image) >> _surplus_bits(image)).astype(np.uint8)
    raise ValueError(f"pixels of kind {image.mode!r} have no known range; save the picture with 8 bits")


def _as(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy what has the mode already


def _surplus_bits(image: Image.Image) -> int:
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample
    return int(bits) - 8
