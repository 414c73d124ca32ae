"""The data of the index: what the search page loads, in files of a thousand neurons each.

A page opened as ``file://`` may not read files beside it, but it may load scripts; so every file is a call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.report.grids import PER_FOLDER, Gallery
from dneuro.report.neurons.paging import Paging
from dneuro.report.neurons.roster import BLOCK, Block, Roster
from dneuro.report.words import cut

FOLDER = "data"
_THUMBNAILS = 4
_CLASS_LETTERS = 40
_DIGITS = 6  # twice what is shown, so that rounding again is seldom seen
_COMPOSED = (("entropy", "class entropy", False), ("purity", "class share", True))
"""Key, title and whether a share, of the columns that come from the classes of the top images."""


def write_block(folder: Path, stem: str, roster: Roster, block: Block, gallery: Gallery) -> None:
    """Write the file of one block of a layer's neurons."""
    here = slice(block.first, block.first + block.count)
    columns = {column.key: _numbers(column.values[here]) for column in roster.columns}
    data: dict[str, Any] = {"columns": columns}
    if block.composition is not None:
        columns |= {key: _numbers(getattr(block.composition, key)) for key, _, _ in _COMPOSED}
        data["classes"] = [_top_class(block, row, roster) for row in range(block.count)]
    if "top_image" in block.lists and not gallery.empty:
        images = block.lists["top_image"][:, :_THUMBNAILS].astype(np.int64).tolist()
        data["images"] = [[image for image in row if gallery.holds(image)] for row in images]
    _script(folder / FOLDER / f"{stem}-{block.first}.js", f"dneuro.add({json.dumps(stem)},{block.first},", data, ");")


def write_layers(
    folder: Path, layers: Sequence[tuple[Roster, Paging, str]], gallery: Gallery, thumbnail: tuple[int, int, bool]
) -> None:
    """Write the file that says which layers there are and where the rest lies.

    Parameters
    ----------
    folder : Path
        Folder of the report.
    layers : sequence of (Roster, Paging, str)
        Layers in order, with the stem of their files.
    gallery : Gallery
        Where the pictures lie.
    thumbnail : (int, int, bool)
        Width and height of a small picture, and whether its pixels are squares.
    """
    width, height, squares = thumbnail
    _script(folder / FOLDER / "layers.js", "window.dneuro=", {
        "block": BLOCK,
        "pictures": {
            "suffix": gallery.suffix, "perFolder": PER_FOLDER, "width": width, "height": height, "squares": squares,
        },
        "layers": [
            {
                "name": roster.layer.name, "page": roster.layer.file, "stem": stem, "folder": paging.folder,
                "count": roster.count, "size": paging.size, "columns": list(_titles(roster)),
            }
            for roster, paging, stem in layers
        ],
    }, ";")  # fmt: skip


def _titles(roster: Roster) -> Iterable[dict[str, Any]]:
    for column in roster.columns:
        yield {"key": column.key, "title": column.title, "share": column.share}
    if roster.tops is not None and roster.images.labels is not None:
        for key, title, share in _COMPOSED:
            yield {"key": key, "title": title, "share": share}


def _top_class(block: Block, row: int, roster: Roster) -> str:
    assert block.composition is not None
    found = block.composition.of(row)
    return cut(roster.images.class_name(found[0][0]), _CLASS_LETTERS) if found else ""


def _numbers(values: NDArray[np.float64]) -> list[float | int | None]:
    """Return numbers of four digits, as JSON writes them; None for NaN and infinities."""
    found: list[float | int | None] = []
    for value in values.tolist():
        short = float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
        found.append(int(short) if short is not None and short == int(short) else short)
    return found


def _script(path: Path, before: str, data: Any, after: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(before + json.dumps(data, separators=(",", ":")) + after + "\n", encoding="utf-8")
