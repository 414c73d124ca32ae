"""Sheets of small pictures in one file each: the patches of a neuron, its components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dneuro.report.grids import shown_size

SHOWN = 92
"""Longest side, in pixels, of a picture of a sheet on the page."""

_LONGEST = 96  # in the file; whole blocks of JPEG, so that neighbours do not run into each other
_SQUARES = 64  # a picture no longer than this is kept pixel by pixel
_QUALITY = 86
_MIDDLE = 128

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows and columns; gaps between them are drawn by the style sheet.

    Parameters
    ----------
    src : str
        File, from the folder of the report.
    width, height : int
        Of all of it on the page, in pixels.
    across, down : int
        Columns and rows.
    squares : bool
        Whether pixels are enlarged to squares.
    title, alt : str
        What it shows.
    names : tuple of str
        Of the rows, if they have names.
    """

    src: str
    width: int
    height: int
    across: int
    down: int
    squares: bool
    title: str
    alt: str
    names: tuple[str, ...] = ()


def sheet(
    folder: Path, stem: str, rows: Sequence[Sequence[Bytes | None]], *, title: str, alt: str, names: Sequence[str] = ()
) -> Sheet:
    """Write pictures of one size into a file and return how a page shows it.

    Parameters
    ----------
    folder : Path
        Folder of the report.
    stem : str
        Path of the file below it, without its ending: PNG for small pictures and where some are missing, else JPEG.
    rows : sequence of sequence of ndarray of uint8, or None
        (height, width, 1 or 3) each; None stays empty.
    title, alt, names
        As `Sheet` has them.
    """
    known = next(picture for row in rows for picture in row if picture is not None)
    small = max(known.shape[:2]) <= _SQUARES
    size = known.shape[:2] if small else _fitting(*known.shape[:2])
    across = max(map(len, rows))
    whole = np.zeros((len(rows) * size[0], across * size[1], 4), np.uint8)
    for down, row in enumerate(rows):
        for place, picture in enumerate(row):
            if picture is not None:
                top, left = down * size[0], place * size[1]
                whole[top : top + size[0], left : left + size[1]] = _drawn(picture, size)
    opaque = bool((whole[:, :, 3] == 255).all())
    drawn = Image.fromarray(whole).convert("RGB") if opaque else Image.fromarray(whole)
    src = f"{stem}.{'jpg' if opaque and not small else 'png'}"
    (folder / src).parent.mkdir(parents=True, exist_ok=True)
    drawn.save(folder / src, **({"quality": _QUALITY} if src.endswith("jpg") else {"optimize": True}))
    width, height, squares = shown_size(known.shape[1], known.shape[0], SHOWN)
    return Sheet(src, across * width, len(rows) * height, across, len(rows), squares, title, alt, tuple(names))


def as_bytes(picture: NDArray[np.floating]) -> Bytes | None:
    """Return a component (height, width, color) as bytes, each colour over its own range about mid-grey, which is 0.

    None of a component that is not there (NaN).
    """
    values = np.asarray(picture, dtype=np.float64)
    if np.isnan(values).all():
        return None
    values = np.nan_to_num(values)
    largest = np.abs(values).max(axis=(0, 1))
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    return np.asarray(_MIDDLE + np.rint((_MIDDLE - 1) * scaled), dtype=np.uint8)


def _fitting(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    return max(1, round(height * _LONGEST / longest)), max(1, round(width * _LONGEST / longest))


def _drawn(picture: Bytes, size: tuple[int, int]) -> Bytes:
    """Return a picture of that size with four channels, the last one saying that it is there."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else np.ascontiguousarray(picture)).convert("RGB")
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(image.convert("RGBA"))
