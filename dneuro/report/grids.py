"""Pictures of the report as PNG files: scaled to be seen, the winning patch framed, each written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dneuro.errors import ArrayError, DneuroError

Box = tuple[float, float, float, float]
"""(top, left, bottom, right) in pixels of the picture, ends exclusive; may reach outside."""

TILE = 96
"""Longest side, in pixels, that a picture of a grid has at most."""
SMALL = 56
"""The same for the small pictures beside a grid."""

FRAME = (255, 92, 20)
_CONTOUR = (16, 16, 16)
_LINE, _FINE_LINE = 2, 1  # for tiles, and for small pictures
_LEAST_HOLE = 4  # a framed patch of one pixel would not be seen


@dataclass(frozen=True)
class Picture:
    """A picture file beside the pages."""

    src: str
    width: int
    height: int
    enlarged: bool
    """Whether its pixels are meant to be seen as squares."""


class Gallery:
    """Writes pictures into a folder; one that is asked for again is not written again.

    Parameters
    ----------
    folder : Path
        Folder of the pages; pictures go to ``pictures/`` below it.
    pictures : callable, optional
        ``pictures(i)`` is image i as the network saw it, uint8 (height, width, 1 or 3); none for a report
        without pictures.
    """

    def __init__(self, folder: Path, pictures: Callable[[int], NDArray[np.uint8]] | None) -> None:
        self._folder = folder
        self._pictures = pictures
        self._written: dict[str, Picture] = {}
        self._read = lru_cache(maxsize=256)(self._load)

    @property
    def empty(self) -> bool:
        """Whether there are no pictures at all."""
        return self._pictures is None

    def get(
        self,
        image: int,
        box: Box | None = None,
        *,
        longest: int = TILE,
        input_size: tuple[int, int] | None = None,
    ) -> Picture | None:
        """Return the file of an image, with a frame around `box`; none where it cannot be had.

        Parameters
        ----------
        image : int
            Number of the image.
        box : tuple of float, optional
            What is framed, in pixels of the network's input; it is clipped to the picture.
        longest : int
            Longest side of the file's picture in pixels.
        input_size : tuple of int, optional
            Height and width that `box` refers to; the default is the picture's own.

        Raises
        ------
        ArrayError
            If ``pictures(image)`` is not a picture.
        """
        picture = self._read(image) if self._pictures is not None else None
        if picture is None:
            return None
        height, width = picture.shape[:2]
        if box is not None:
            down, right = (height / input_size[0], width / input_size[1]) if input_size else (1.0, 1.0)
            box = _clip((box[0] * down, box[1] * right, box[2] * down, box[3] * right), height, width)
        key = f"{image}-{longest}" + ("" if box is None else "-" + "-".join(f"{edge:g}" for edge in box))
        if key not in self._written:
            drawn = scale(picture, longest)
            if box is not None:
                drawn = draw_frame(drawn, box, (height, width))
            src = f"pictures/{key}.png"
            (self._folder / "pictures").mkdir(exist_ok=True)
            drawn.save(self._folder / src, optimize=True)
            self._written[key] = Picture(src, drawn.width, drawn.height, drawn.width > width)
        return self._written[key]

    def _load(self, image: int) -> NDArray[np.uint8] | None:
        assert self._pictures is not None
        try:
            picture = np.asarray(self._pictures(image))
        except DneuroError:
            return None  # the tile says that there is no picture; the rest of the report stands
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3) or not picture.size:
            raise ArrayError(
                f"the picture of image {image} is {picture.dtype} {picture.shape}, not uint8 (height, width, 1 or 3)",
                hint="pictures(i) returns image i as the network saw it, before it is standardised",
            )
        return picture


def scale(picture: NDArray[np.uint8], longest: int) -> Image.Image:
    """Return a picture at the size it is shown at.

    Small ones are enlarged by a whole factor, every pixel a square; large ones are reduced until the longest
    side is `longest`, keeping the aspect.

    Parameters
    ----------
    picture : ndarray (height, width, 1 or 3), uint8
        The picture.
    longest : int
        Longest side in pixels.
    """
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else np.ascontiguousarray(picture))
    height, width = picture.shape[:2]
    side = max(height, width)
    if side <= longest:
        factor = longest // side
        return image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    size = (max(1, round(width * longest / side)), max(1, round(height * longest / side)))
    return image.resize(size, Image.Resampling.LANCZOS)


def draw_frame(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Return the image with a frame around a box, two pixels wide (one in small pictures), within the image.

    The frame lies outside the box, so that the patch itself stays visible, except at the image's edges.
    A dark contour around the orange line sets it off from bright pictures.

    Parameters
    ----------
    image : Image
        A picture already scaled.
    box : tuple of float
        (top, left, bottom, right) in pixels of the picture before scaling, within it.
    size : tuple of int
        Height and width of the picture before scaling.
    """
    framed = image.convert("RGB")
    line = _LINE if max(framed.size) > SMALL else _FINE_LINE
    left, right = _edges(box[1], box[3], framed.width, framed.width / size[1], line)
    top, bottom = _edges(box[0], box[2], framed.height, framed.height / size[0], line)
    draw = ImageDraw.Draw(framed)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=_CONTOUR)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=line)
    return framed


def _edges(start: float, stop: float, length: int, factor: float, line: int) -> tuple[int, int]:
    """Return where the frame begins and ends (exclusive) along one side of the scaled picture."""
    first, last = round(start * factor), round(stop * factor)
    missing = max(0, _LEAST_HOLE - (last - first))
    first, last = first - missing // 2, last + (missing + 1) // 2
    return max(0, first - line), min(length, last + line)


def _clip(box: Box, height: int, width: int) -> Box:
    """Return the part of a box that lies within the picture; a box wholly outside shrinks to the nearest edge."""
    top, bottom = (min(max(edge, 0), height) for edge in (box[0], box[2]))
    left, right = (min(max(edge, 0), width) for edge in (box[1], box[3]))
    return top, left, bottom, right
