"""From a picture to a network's input, equal to torchvision's transforms without needing them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dneuro.errors import ArrayError, UnreadableImageError
from dneuro.images.decode import MAX_PIXELS, STRIP, Picture, pixels_of
from dneuro.spec.network import Preprocessing

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def view(picture: Picture, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return what the network sees of a picture: colour converted, resized, cropped, not yet scaled.

    Equal, bit for bit, to torchvision's ``Resize(…, antialias=True)`` and ``CenterCrop`` of a PIL image: the
    longer side is rounded down; where the picture is smaller than the crop, zeros surround it.

    Parameters
    ----------
    picture : ndarray of uint8, or Image
        (height, width, 3), or (height, width) where it is grey; or as `decode.load` gives it, with mode "RGB" or "L".
    preprocessing : Preprocessing
        `mean` and `std` are not used here.

    Returns
    -------
    ndarray of uint8
        (height, width, channel), with 3 channels (RGB) or 1 (grey).

    Raises
    ------
    ArrayError
        If `picture` has another dtype or shape.
    UnreadableImageError
        If resizing so narrow a picture would make more than `MAX_PIXELS` pixels.
    """
    mode = "RGB" if preprocessing.color == "rgb" else "L"
    if isinstance(picture, Image.Image):
        pixels = _by_pillow(picture, mode, preprocessing)
    else:
        _check(picture)
        pixels = picture
        if preprocessing.resize is not None or picture.ndim != (3 if mode == "RGB" else 2):
            pixels = _by_pillow(Image.fromarray(picture), mode, preprocessing)
    pixels = pixels.reshape(*pixels.shape[:2], preprocessing.channels)
    if preprocessing.crop is not None:
        height, width = _pair(preprocessing.crop)
        pixels = _crop(_crop(pixels, 0, height), 1, width)
    pixels = np.ascontiguousarray(pixels)
    # Of a large picture, a part would hold all.
    return pixels.copy() if isinstance(picture, np.ndarray) and np.may_share_memory(pixels, picture) else pixels


def _check(picture: NDArray[np.uint8]) -> None:
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
        raise ArrayError(
            f"a picture is uint8 of shape (height, width) or (height, width, 3), "
            f"not {picture.dtype} of shape {picture.shape}"
        )


def _by_pillow(image: Image.Image, mode: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the pixels of a picture with this mode, resized, and cut out where it is large enough for the crop."""
    if preprocessing.resize is None and preprocessing.crop is None:
        return pixels_of(image, mode)
    image = image if image.mode == mode else image.convert(mode)
    if preprocessing.resize is not None:
        image = _resize(image, preprocessing.resize, preprocessing.interpolation)
    if preprocessing.crop is not None:
        height, width = _pair(preprocessing.crop)
        if height <= image.height and width <= image.width:
            top, left = _start(image.height - height), _start(image.width - width)
            image = image.crop((left, top, left + width, top + height))
    return pixels_of(image, mode)


def view_bytes(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Return the peak memory of `view`, in bytes, with the picture of so many pixels that it is given."""
    # The picture, and Pillow's copy of it with four bytes per pixel; a grey one, and what becomes of it.
    given = 8 * width * height + 12 * min(width * height, STRIP)
    if preprocessing.resize is None:
        return given
    wide, high = _resized(width, height, preprocessing.resize)
    if wide * high > MAX_PIXELS:
        return given  # refused by then
    return given + 4 * wide * height + 7 * wide * high  # Pillow resizes rows first, then columns


def to_input(view: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return the network's input: ``(view / 255 - mean) / std``.

    Parameters
    ----------
    view : ndarray of uint8
        (height, width, channel), from `view`.
    preprocessing : Preprocessing
        Only `mean` and `std` are used here.

    Returns
    -------
    ndarray of float32
        (channel, height, width), contiguous.
    """
    scaled = view.transpose(2, 0, 1).astype(np.float32, order="C")
    scaled /= np.float32(255)
    scaled -= np.array(preprocessing.mean, np.float32).reshape(-1, 1, 1)
    scaled /= np.array(preprocessing.std, np.float32).reshape(-1, 1, 1)
    return scaled


def _resized(width: int, height: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the width and height that a picture gets."""
    if not isinstance(size, int):
        return size[1], size[0]
    short, long = sorted((width, height))
    new_long = int(size * long / short)
    return (size, new_long) if width <= height else (new_long, size)


def _resize(image: Image.Image, size: int | tuple[int, int], interpolation: str) -> Image.Image:
    width, height = _resized(image.width, image.height, size)
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f"the picture of {image.width} × {image.height} pixels would become one of {width} × {height} = "
            f"{width * height:,}; the limit is {MAX_PIXELS:,}"
        )
    return image.resize((width, height), _INTERPOLATION[interpolation])


def _crop(pixels: NDArray[np.uint8], axis: int, size: int) -> NDArray[np.uint8]:
    surplus = pixels.shape[axis] - size
    if surplus < 0:
        margins = [(0, 0)] * pixels.ndim
        margins[axis] = (-surplus // 2, (1 - surplus) // 2)
        return np.pad(pixels, margins)
    start = _start(surplus)
    return pixels[start : start + size] if axis == 0 else pixels[:, start : start + size]


def _start(surplus: int) -> int:
    return round(surplus / 2)  # half to even, as torchvision rounds


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
