"""Pictures of the report: each image is one file that all pages share; frames and patches are laid over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dneuro.errors import ArrayError, DneuroError

Box = tuple[float, float, float, float]
"""(top, left, bottom, right) in pixels of the network's input, ends exclusive; may reach outside."""

TILE = 96
"""Longest side, in pixels, that a picture of a grid has at most."""
SMALL = 56
"""The same for the small pictures beside a grid."""

PER_FOLDER = 1000
"""Files in one folder of pictures; file systems and file managers are slow with tens of thousands."""

_LONGEST = 112  # of a picture's file: TILE on screens of ordinary density, SMALL on those of twice that
_SQUARES = 64  # a picture no longer than this is shown pixel by pixel, so its file must be exact
_QUALITY = 88
_LARGEST_PATCH = 0.5  # of the picture's area; a larger one is seen as well in the picture itself
_MOST_ENLARGED = 16  # times, for a patch of a few pixels


@dataclass(frozen=True)
class Frame:
    """How far a patch lies from the edges of its picture, in per cent of the picture's sides."""

    top: float
    right: float
    bottom: float
    left: float

    @property
    def style(self) -> str:
        """The same, as the style sheet takes it, which keeps the line of the frame within the picture."""
        return f"--t:{self.top:.4g}%;--r:{self.right:.4g}%;--b:{self.bottom:.4g}%;--l:{self.left:.4g}%"


@dataclass(frozen=True)
class Patch:
    """A patch shown by itself: a window of `width` × `height` pixels, and how the picture lies behind it."""

    width: int
    height: int
    left: float
    top: float
    whole: tuple[float, float]
    """Width and height of the picture behind the window in pixels."""

    @property
    def window(self) -> str:
        """CSS of the window."""
        return f"width:{self.width}px;height:{self.height}px"

    @property
    def style(self) -> str:
        """CSS of the picture behind the window."""
        width, height = self.whole
        return f"width:{width:.4g}px;height:{height:.4g}px;left:{self.left:.4g}px;top:{self.top:.4g}px"


@dataclass(frozen=True)
class Picture:
    """A picture file beside the pages, and how a page shows it."""

    src: str
    width: int
    height: int
    enlarged: bool
    """Whether its pixels are meant to be seen as squares."""
    frame: Frame | None = None
    patch: Patch | None = None


@dataclass(frozen=True, slots=True)
class _File:
    src: str
    width: int
    height: int


class Gallery:
    """Writes pictures into a folder, each once, whatever number of pages and neurons show it.

    Parameters
    ----------
    folder : Path
        Folder of the report; image i goes to ``pictures/<i // 1000>/<i>.jpg`` below it, ``.png`` where the
        pictures are no longer than 64 pixels (as the first that is asked for tells).
    pictures : callable, optional
        ``pictures(i)`` is image i as the network saw it, uint8 (height, width, 1 or 3); none for a report
        without pictures.

    Notes
    -----
    **Cost**: some 4 kB on disk per photograph of 112 × 112 pixels; one picture in memory at a time.
    """

    def __init__(self, folder: Path, pictures: Callable[[int], NDArray[np.uint8]] | None) -> None:
        self._folder = folder
        self._pictures = pictures
        self._files: dict[int, _File | None] = {}
        self.suffix: str | None = None
        """Of the files' names; none before the first is written."""

    @property
    def empty(self) -> bool:
        """Whether there are no pictures at all."""
        return self._pictures is None

    def write(self, images: Iterable[int]) -> None:
        """Write the files of these images; in ascending order every block of the store is read once."""
        for image in images:
            self._file(image)

    def holds(self, image: int) -> bool:
        """Whether the file of an image is there."""
        return self._files.get(image) is not None

    def get(
        self,
        image: int,
        box: Box | None = None,
        *,
        longest: int = TILE,
        input_size: tuple[int, int] | None = None,
        patch: bool = False,
    ) -> Picture | None:
        """Return the picture of an image with a frame around `box`; none where it cannot be had.

        Parameters
        ----------
        image : int
            Number of the image.
        box : tuple of float, optional
            What is framed, in pixels of the network's input; it is clipped to the picture.
        longest : int
            Longest side at which the picture is shown, in pixels.
        input_size : tuple of int, optional
            Height and width that `box` refers to; the default is the picture's own.
        patch : bool
            Whether the patch in the box is wanted by itself too.

        Raises
        ------
        ArrayError
            If ``pictures(image)`` is not a picture.
        """
        file = self._file(image)
        if file is None:
            return None
        width, height, enlarged = shown_size(file.width, file.height, longest)
        if box is None:
            return Picture(file.src, width, height, enlarged)
        rows, columns = input_size or (file.height, file.width)
        return Picture(
            file.src, width, height, enlarged, _frame(box, rows, columns),
            _patch(box, rows, columns, longest) if patch else None,
        )  # fmt: skip

    def _file(self, image: int) -> _File | None:
        if image not in self._files:
            picture = self._load(image)
            self._files[image] = None if picture is None else self._save(image, picture)
        return self._files[image]

    def _save(self, image: int, picture: NDArray[np.uint8]) -> _File:
        drawn = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else np.ascontiguousarray(picture))
        drawn.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        if self.suffix is None:
            self.suffix = "png" if max(drawn.size) <= _SQUARES else "jpg"
        src = f"pictures/{image // PER_FOLDER}/{image}.{self.suffix}"
        path = self._folder / src
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path, **({"optimize": True} if self.suffix == "png" else {"quality": _QUALITY}))
        return _File(src, drawn.width, drawn.height)

    def _load(self, image: int) -> NDArray[np.uint8] | None:
        if self._pictures is None:
            return None
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


def shown_size(width: int, height: int, longest: int) -> tuple[int, int, bool]:
    """Return width and height at which a picture is shown, and whether its pixels become squares.

    Small ones are enlarged by a whole factor; large ones are reduced until the longest side is `longest`,
    keeping the aspect.
    """
    side = max(width, height)
    if side <= longest and side <= _SQUARES:
        factor = longest // side
        return width * factor, height * factor, factor > 1
    return max(1, round(width * longest / side)), max(1, round(height * longest / side)), False


def _frame(box: Box, rows: float, columns: float) -> Frame:
    """Return the part of a box that lies within the picture; one wholly outside shrinks to the nearest edge."""
    top, bottom = (100 * min(max(edge, 0), rows) / rows for edge in (box[0], box[2]))
    left, right = (100 * min(max(edge, 0), columns) / columns for edge in (box[1], box[3]))
    return Frame(top, 100 - right, 100 - bottom, left)


def _patch(box: Box, rows: float, columns: float, longest: int) -> Patch | None:
    """Return the box by itself, as large as a tile; what of it lies outside the picture stays empty."""
    height, width = box[2] - box[0], box[3] - box[1]
    if height * width > _LARGEST_PATCH * rows * columns:
        return None
    factor = min(longest / max(height, width), _MOST_ENLARGED * longest / max(rows, columns))
    return Patch(
        max(1, round(width * factor)), max(1, round(height * factor)), -box[1] * factor, -box[0] * factor,
        (columns * factor, rows * factor),
    )  # fmt: skip
