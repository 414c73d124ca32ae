"""From the bytes of an image file to a picture, whatever the file turns out to be."""

from __future__ import annotations

import io
import math
import mmap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from dneuro.errors import ImageSourceError, UnreadableImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
"""Formats that are tried, by content; Pillow's others stay out (for EPS it would start Ghostscript)."""

MAX_PIXELS = 89_478_485
"""Largest picture, in pixels: where Pillow begins to warn of a decompression bomb (256 MiB as RGB)."""

STRIP = 1 << 20
"""Pixels of a large picture that are converted at a time."""

_COLOR = frozenset({"RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "P", "PA"})
_GREY = frozenset({"1", "L", "LA", "La"})
_BARE = frozenset({"JPEG", "PNG", "BMP", "PPM"})
"""Formats of which Pillow holds nothing but the pixels, once they are decoded."""
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Bytes per pixel in Pillow's memory; all other modes take 4."""
_SIGNED = 2
"""Of TIFF's SampleFormat: whole numbers below zero, too."""
_WARNINGS = threading.Lock()

Picture = NDArray[np.uint8] | Image.Image
"""Pixels, or what Pillow holds of them, decoded, with the mode "RGB" or "L"."""

Reserve = Callable[[int, int, int], None]
"""Called with the width and height of a picture, and the bytes that decoding it takes, before it is decoded."""


def _no_limit(width: int, height: int, decoding: int) -> None:
    pass


def decode(data: bytes, name: str, reserve: Reserve = _no_limit) -> NDArray[np.uint8]:
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
    reserve : callable, optional
        Told what the picture will take, by `decoding_bytes`, once that is known; what it raises is passed on.

    Returns
    -------
    ndarray of uint8
        (height, width, 3), or (height, width) where the file is grey.

    Raises
    ------
    UnreadableImageError
        If the file is empty, truncated, damaged, of another format, of a kind without a known range
        (32 bit, floating point, with a sign), or larger than `MAX_PIXELS`.
    ImageSourceError
        If ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is on: half a picture would pass for a whole one.

    Notes
    -----
    Cost: peak memory is 7 bytes per pixel of most files, and 22 of a WebP; see `decoding_bytes`.
    """
    return as_array(load(data, name, reserve))


def load(data: bytes, name: str, reserve: Reserve = _no_limit) -> Picture:
    """Return the picture in `data` as `decode` does, but leave it with Pillow where its pixels are those already.

    Whoever has Pillow scale it next spares copying it out and in again, a tenth of the time of decoding a photograph.
    Parameters and errors are those of `decode`.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageSourceError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on in this process: damaged images would be read as if whole",
            hint="PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False",
        )
    if not data:
        raise UnreadableImageError(f"{name}: the file is empty (0 bytes)")
    with _causes(data, name):
        image = _open(data)
    with image:
        reserve(image.width, image.height, decoding_bytes(image))
        with _causes(data, name):
            return _picture(image)


def decoding_bytes(image: Image.Image) -> int:
    """Return the peak memory that decoding a picture takes, besides the bytes of its file.

    Pillow holds all pixels, and then either its decoder a copy of its own or dneuro the array that it makes of them.
    """
    pixel = _BYTES.get(image.mode, 4)
    if image.format == "JPEG":
        bands = len(image.getbands())
        decoder = 2 * bands if image.info.get("progressive") else 0  # libjpeg holds the coefficients of all scans
    elif image.format == "WEBP":
        decoder = 18  # two canvases of libwebp's animation decoder, its buffers, and the frame as bytes
    elif image.format == "TIFF":
        decoder = pixel + 4  # the strip, which may be the whole picture, and turning it
    else:
        decoder = 0
    array = 1 if image.mode in _GREY or image.mode.startswith("I") else 3
    pixels = image.width * image.height
    return pixels * (pixel + max(decoder, array)) + 12 * min(pixels, STRIP)


def as_array(picture: Picture) -> NDArray[np.uint8]:
    """Return a picture as an array: (height, width, 3), or (height, width) where it is grey."""
    return pixels_of(picture, picture.mode) if isinstance(picture, Image.Image) else picture


def pixels_of(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    """Return the pixels of a picture as those of another mode, "RGB" or "L": (height, width, 3) or (height, width).

    A large one is converted strip by strip, so that it is never in memory a third time.
    """
    width, height = image.size
    if width * height <= STRIP:
        return np.array(_as(image, mode))
    pixels = _room((height, width, 3) if mode == "RGB" else (height, width))
    for top, strip in _strips(image):
        pixels[top : top + strip.height] = np.asarray(_as(strip, mode))
    return pixels


@contextmanager
def _causes(data: bytes, name: str) -> Iterator[None]:
    """Name the file and the cause where a picture cannot be read."""
    try:
        yield
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


def _picture(image: Image.Image) -> Picture:
    if image.format == "TIFF":
        with _without_warnings():
            image.load()  # reads EXIF, too, and warns about it
        if _SIGNED in _tag(image, 339):
            raise ValueError("pixels with a sign have no known range; save the picture with 8 bits and none")
    if image.mode in ("RGB", "L") and image.format in _BARE:
        image.load()
        return image
    if image.mode in _GREY:
        return pixels_of(image, "L")
    if image.mode in _COLOR:
        return pixels_of(image, "RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        surplus = _surplus_bits(image)
        inverted = 255 if _tag(image, 262) == (0,) else 0  # TIFF's min-is-white, which Pillow turns in 8 bits alone
        pixels = _room((image.height, image.width))
        for top, strip in _strips(image):
            pixels[top : top + strip.height] = (np.asarray(strip) >> surplus) ^ inverted
        return pixels
    raise ValueError(f"pixels of kind {image.mode!r} have no known range; save the picture with 8 bits")


def _room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an array; a large one lies outside the allocator's memory, in which it would leave a hole to others."""
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, count), np.uint8).reshape(shape) if count > STRIP else np.empty(shape, np.uint8)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield a picture in pieces of some rows, each with the number of its first."""
    image.load()
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _as(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image  # Pillow would copy what has the mode already
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return image.convert(mode)


def _surplus_bits(image: Image.Image) -> int:
    return int((_tag(image, 258) or (16,))[0]) - 8  # BitsPerSample


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    """Return a tag of a TIFF; nothing of what has none, or is no TIFF."""
    found = getattr(image, "tag_v2", {}).get(number, ())
    return found if isinstance(found, tuple) else (found,)
