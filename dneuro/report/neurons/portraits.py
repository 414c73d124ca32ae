"""What the pages say of one neuron: its numbers, its images at either end, their classes, its like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dneuro.report import framing
from dneuro.report.blocks import Fact, Studio, Tile
from dneuro.report.grids import SMALL, TILE
from dneuro.report.neurons.roster import Block, Roster
from dneuro.report.words import counted, cut, number, percent

_MOST_CLASSES = 6
_CLASS_LETTERS = 60


@dataclass(frozen=True)
class Share:
    """A class among the top images."""

    name: str
    count: int
    percent: float


@dataclass(frozen=True)
class Link:
    """A neuron to go to; `note` says why."""

    name: str
    href: str
    note: str = ""


@dataclass(frozen=True)
class Portrait:
    """One neuron, in words and pictures."""

    number: int
    facts: list[Fact]
    top: list[Tile]
    bottom: list[Tile]
    top_tied: str | None
    bottom_tied: str | None
    """The value at which all of one end tie."""
    classes: list[Share]
    classes_note: str
    near: list[Link]
    before: Link | None
    after: Link | None


class Portraitist:
    """Makes the portraits of a layer's neurons.

    Parameters
    ----------
    roster : Roster
        The neurons.
    studio : Studio
        For their pictures.
    """

    def __init__(self, roster: Roster, studio: Studio) -> None:
        self._roster, self._studio = roster, studio
        self._paging = studio.paging[roster.layer.name]
        variance = next((column.values for column in roster.columns if column.key == "variance"), None)
        self._places = None if variance is None else _places(variance)

    def portrait(self, block: Block, row: int) -> Portrait:
        """Return the portrait of row `row` of a block."""
        n = block.first + row
        classes, note = self._classes(block, row)
        return Portrait(
            n, self._facts(n), self._tiles("top", TILE, block, row), self._tiles("bottom", SMALL, block, row),
            _tied(block, "top", row), _tied(block, "bottom", row),
            classes, note, self._near(block, row), self._beside(n - 1), self._beside(n + 1),
        )  # fmt: skip

    def _facts(self, n: int) -> list[Fact]:
        facts = []
        for column in self._roster.columns:
            value = float(column.values[n])
            facts.append(Fact(column.title, percent(value) if column.share else number(value)))
        if self._places is not None and self._places[n]:
            facts.append(Fact("rank by variance", f"{self._places[n]:,} of {self._roster.count:,}"))
        return facts

    def _tiles(self, end: str, longest: int, block: Block, row: int) -> list[Tile]:
        lists = {part: block.lists.get(f"{end}_{part}") for part in ("image", "value", "y", "x")}
        images, values, ys, xs = lists.values()
        if images is None:
            return []
        layer = self._roster.layer

        def tile(rank: int) -> Tile:
            place = None if ys is None or xs is None else (int(ys[row, rank]), int(xs[row, rank]))
            value = None if values is None else float(values[row, rank])
            box = framing.box(layer, place)
            image = int(images[row, rank])
            return self._studio.tile(image, value, layer=layer, box=box, longest=longest, patch=end == "top")

        return [tile(int(rank)) for rank in np.flatnonzero(images[row] >= 0)]

    def _classes(self, block: Block, row: int) -> tuple[list[Share], str]:
        found = block.composition.of(row) if block.composition is not None else []
        if block.composition is None or not found:
            return [], ""
        total = sum(count for _, count in found)
        names = self._roster.images
        shares = [
            Share(cut(names.class_name(label), _CLASS_LETTERS), count, round(100 * count / total, 1))
            for label, count in found[:_MOST_CLASSES]
        ]
        entropy = number(float(block.composition.entropy[row]))
        spanned = counted(len(found), "class", "classes")
        return shares, f"{spanned} among its top {counted(total, 'image')}; entropy {entropy} bits"

    def _near(self, block: Block, row: int) -> list[Link]:
        if block.near is None:
            return []
        others, values = (array[row].tolist() for array in block.near)
        return [
            Link(f"{other}", self._paging.link(other), f"r = {number(value)}")
            for other, value in zip(others, values, strict=True)
            if np.isfinite(value)
        ]

    def _beside(self, n: int) -> Link | None:
        return Link(str(n), self._paging.link(n)) if 0 <= n < self._roster.count else None


def _tied(block: Block, end: str, row: int) -> str | None:
    """Return the value that all images shown at one end have; None where they differ."""
    values = block.lists.get(f"{end}_value")
    if values is None or values.shape[1] < 2 or not (values[row] == values[row, 0]).all():
        return None
    return number(float(values[row, 0]))


def _places(variance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the place of each neuron when ranked by variance, from 1; 0 where it has none."""
    places = np.zeros(variance.size, dtype=np.int64)
    order = np.argsort(-variance, kind="stable")
    order = order[np.isfinite(variance[order])]
    places[order] = np.arange(1, order.size + 1)
    return places
