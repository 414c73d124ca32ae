"""What a task does for a region of a similarity matrix: products, repairs where digits were lost, then the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.keeping import Keep
from dneuro.analysis.metrics import Group, beyond_range, cancelling, evaluate
from dneuro.engine.tiling import Region, Tiling, covering
from dneuro.engine.visits import Reader
from dneuro.kernels import TileProducts
from dneuro.kernels.base import State, flat, spans, to_numpy
from dneuro.kernels.products import MOVES_AT_ONCE, Move, Precision, direct_distances

Tile = tuple[int, int]

MANY = 0.02
"""Share of a tile's distances beyond which multiplying again in float64 is quicker than summing one by one."""

PAIRS_AT_ONCE = 1 << 16
"""Distances whose places are spelled out at a time."""


@dataclass(frozen=True)
class TileWork:
    """The same for all tasks of a matrix.

    Parameters
    ----------
    tiling : Tiling
        How it is cut; only strips and their size matter here.
    precision : {"float32", "float64"}
        Of the products, and of the results.
    keep : Keep
        What is kept of each tile.
    images : int
        Images there are.
    """

    tiling: Tiling
    precision: Precision
    keep: Keep
    images: int

    def __call__(self, reader: Reader, region: Region) -> Any:
        """Return what is kept of a region."""
        task = _Task(self, _Strips(reader, self.tiling))
        kept = self.keep.start()
        with np.errstate(over="ignore", invalid="ignore"):  # what leaves the range of float32 is multiplied again
            for tiles in region.sweeps:
                kept = task.sweep(tiles, kept, hold=set(region.rows) if region.held else set())
        return kept


@dataclass(frozen=True)
class _Strips:
    """Reading by strips."""

    reader: Reader
    tiling: Tiling

    def read(self, band: int, wanted: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield (strip, its block of images × features), one span of the array after the other."""
        placed: dict[int, list[int]] = {}
        for strip in wanted:
            placed.setdefault(covering(self.reader.spans, self.tiling.strips[strip]), []).append(strip)
        for span, strips in placed.items():
            values = self.reader.read(band, span)
            if values is None:
                continue
            start = self.reader.spans[span][0]
            for strip in strips:
                first, last = self.tiling.strips[strip]
                yield strip, flat(values[0][:, first - start : last - start])
            del values  # the next is read while nothing of this one is held


@dataclass
class _Tile:
    """One tile whose products are there."""

    place: Tile
    left: Group
    right: Group
    products: NDArray[np.float64]
    precision: Precision
    close: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    """Distances that have lost digits, numbered along the flattened tile."""
    squared: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Their squares, summed directly."""

    @property
    def same(self) -> bool:
        """On the diagonal."""
        return self.place[0] == self.place[1]

    def find_close(self) -> None:
        """Look for distances that have lost digits."""
        self.close = cancelling(self.left, self.right, self.products, self.precision, same=self.same)
        self.squared = np.zeros(len(self.close))


@dataclass
class _Task:
    """What lives while a task runs."""

    work: TileWork
    strips: _Strips
    held: dict[Tile, tuple[Any, Move | None]] = field(default_factory=dict)
    """z and its move by (band, strip), where a region keeps its rows."""
    groups: dict[int, State] = field(default_factory=dict)
    """What is known of each strip that is held."""

    def sweep(self, tiles: list[Tile], kept: Any, hold: set[int]) -> Any:
        """Go through the images once, then finish the tiles one by one."""
        products, groups = self._multiply(tiles, self.work.precision, hold)
        few = []
        for i, j in tiles:
            tile = _Tile((i, j), groups[i], groups[j], products.pop((i, j)), self.work.precision)
            many = self._look(tile)
            if many and tile.precision == "float32":
                found, its = self._multiply([(i, j)], "float64", set())
                tile = _Tile((i, j), its[i], its[j], found.pop((i, j)), "float64")
                many = self._look(tile)
            if many:  # one after the other: the plan has room for the distances of one tile
                self._sum_directly([tile])
                kept = self._finish(tile, kept)
            else:
                few.append(tile)
        self._sum_directly([tile for tile in few if len(tile.close)])
        for number, tile in enumerate(few):
            kept = self._finish(tile, kept)
            few[number] = None  # type: ignore[call-overload]
            del tile
        return kept

    def _look(self, tile: _Tile) -> bool:
        """Return whether a tile had better be multiplied again; else note what has to be summed directly."""
        if tile.precision == "float32" and (
            beyond_range(tile.left) or beyond_range(tile.right) or not np.isfinite(tile.products.sum())
        ):
            return True
        if "euclidean" in self.work.keep.metrics:
            tile.find_close()
        return len(tile.close) > MANY * tile.products.size

    def _finish(self, tile: _Tile, kept: Any) -> Any:
        def values(metric: str) -> NDArray[Any]:
            known = {"index": tile.close, "squared": tile.squared} if len(tile.close) else None
            return evaluate(
                metric, tile.left, tile.right, tile.products, self.work.precision, same=tile.same, exact=known
            )

        rows, columns = (self.work.tiling.place(strip) for strip in tile.place)
        return self.work.keep.tile(kept, rows, columns, values)

    def _multiply(
        self, tiles: list[Tile], precision: Precision, hold: set[int]
    ) -> tuple[dict[Tile, NDArray[np.float64]], dict[int, Group]]:
        """Return the products of each tile and what is known of each strip, about the shifts of the first band."""
        kernel = TileProducts(precision, self.work.images)
        products: dict[Tile, Any] = dict.fromkeys(tiles)
        strips = sorted({strip for tile in tiles for strip in tile})
        groups: dict[int, State] = {strip: self.groups.get(strip, {}) if hold else {} for strip in strips}
        known = {strip for strip in strips if groups[strip]}
        moves: dict[int, list[Move]] = {strip: [] for strip in strips}
        for band in range(self.strips.reader.bands):
            z: dict[int, Any] = {}
            for strip in (s for s in known if (band, s) in self.held):
                z[strip], move = self.held[band, strip]
                moves[strip] += filter(None, [move])
            for strip, block in self.strips.read(band, [s for s in strips if s not in known]):
                groups[strip], z[strip], move = kernel.centre(groups[strip], block)
                moves[strip] += filter(None, [move])
                if strip in hold:
                    self.held[band, strip] = z[strip], move
                del block  # a part of what was read, all of which it would hold while the next is read
            if z:
                for i, j in tiles:
                    products[i, j] = kernel.add(products[i, j], z[i], z[j])
            if len(moves[strips[0]]) == MOVES_AT_ONCE:
                self._move(kernel, products, moves)
        self._move(kernel, products, moves)
        self.groups.update({strip: groups[strip] for strip in hold if strip in groups})
        return (
            {tile: to_numpy(found) for tile, found in products.items()},
            {strip: {name: _plain(v) for name, v in group.items()} for strip, group in groups.items()},
        )

    def _move(self, kernel: TileProducts, products: dict[Tile, Any], moves: dict[int, list[Move]]) -> None:
        """Add to the products what the bands since the last time have between their means, and forget these."""
        for (i, j), found in products.items():
            if moves[i]:
                kernel.move(found, moves[i], moves[j])
        for some in moves.values():
            some.clear()

    def _sum_directly(self, tiles: list[_Tile]) -> None:
        """Read once more, and sum the squares of the differences that products do not give."""
        strips = sorted({strip for tile in tiles for strip in tile.place})
        for band in range(self.strips.reader.bands) if tiles else ():
            blocks = dict(self.strips.read(band, strips))
            for tile in tiles if blocks else ():
                left, right = (blocks[strip] for strip in tile.place)
                for some in spans(len(tile.close), PAIRS_AT_ONCE):
                    pairs = np.stack(np.divmod(tile.close[some], tile.products.shape[1]), axis=1)
                    tile.squared[some] += to_numpy(direct_distances(pairs, left, right))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else to_numpy(value)


def stripped(tiling: Tiling) -> Tiling:
    """Return what tasks need of a tiling: each knows its own region."""
    return replace(tiling, regions=(), spans=(), bands=())
