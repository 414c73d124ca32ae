"""Which way a features × features matrix is cut into tiles, and tiles into tasks: by memory first, then by reading.

Strips depend on the array alone, so tiles do too; regions depend on the memory and the number of slots.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import xarray as xr

from dneuro.engine.blocks import edges_of, grouped
from dneuro.engine.device import device_limit, moving_bytes, process_bytes
from dneuro.engine.executors import Sizes
from dneuro.engine.rechunked import between_bytes
from dneuro.engine.tiling import Needs, Region, Tiling
from dneuro.engine.visits import Span
from dneuro.quantities import MiB

STRIP = 1024
"""Features of a strip, about: a tile is 8 MiB in float64."""

BAND_ROWS = 1024
"""Images that are read at a time, about."""

SHARE = 0.8
"""Share of a worker's memory that regions are made for: dask pauses a worker there."""

GAPS = 6 * MiB
"""What lies idle between a task's arrays, in gaps that are too small for the next, for each byte of a number that is
multiplied: up to 12 MiB in all were measured in float32, up to 42 in float64."""

AMONG = 30 * MiB
"""What lies idle besides, for each task, where several share a process: they cut each other's gaps to pieces. With two,
of 32 bands of compressed chunks of 18 MiB, 458 MiB were measured in float32, where 418 were planned without this."""

READ_SECONDS, MULTIPLY_SECONDS = 2e-9, 1.5e-11
"""Per byte read and decoded, per multiplication and addition, on one core: only their ratio matters."""

GROUPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def exceeds_strip(features: int) -> bool:
    """Return whether one step along the second dim is more than a strip should be."""
    return features > STRIP


def strip_length(x: xr.DataArray, features: int) -> int:
    """Return the length of a strip along the second dim: about `STRIP` features, along chunk borders if they are even.

    Parameters
    ----------
    x : DataArray, dims (image, …)
        The array.
    features : int
        Features per step along the second dim.
    """
    wished = max(1, STRIP // features)
    if x.chunks is None:
        return min(wished, x.shape[1])
    lengths = x.chunks[1]
    if len(set(lengths[:-1])) > 1 or lengths[-1] > lengths[0]:
        return min(wished, x.shape[1])
    if lengths[0] <= wished:
        return min(int(lengths[0]) * (wished // int(lengths[0])), x.shape[1])
    parts = -(-lengths[0] // wished)
    even = next((k for k in range(parts, 2 * parts + 1) if lengths[0] % k == 0), None)
    return wished if even is None else int(lengths[0]) // even


def room_for_tasks(executor: Sizes, taken: int = 0) -> float:
    """Return the bytes of a process that regions are made for, those of all its tasks; `taken` are not to be had."""
    room = SHARE * executor.memory - process_bytes(executor) - taken
    on_device = device_limit(executor)
    return room if on_device is None else min(room, SHARE * on_device)  # there too: z and products lie on it


def tile(
    x: xr.DataArray, features: int, executor: Sizes, needs: Needs, *, resident: bool, taken: int = 0
) -> tuple[Tiling, int]:
    """Return the tiling that takes least time among those that fit, and the peak bytes of a worker process.

    Parameters
    ----------
    x : DataArray, dims (image, features…)
        Backed by dask or NumPy.
    features : int
        Features per step along the second dim: 1 where positions are pooled.
    executor : Sizes
        Where.
    needs : Needs
        Of a task, besides what it reads.
    resident : bool
        Blocks are in memory already (persisted, or NumPy): on a cluster they travel to a task and stay until it ends.
    taken : int
        Bytes of a process that are not to be had.

    Notes
    -----
    Where nothing fits, the tiling that needs least: its plan says by how much it does not.
    """
    length = strip_length(x, features)
    edges = [*range(0, x.shape[1], length), x.shape[1]]
    base = Tiling(tuple(itertools.pairwise(edges)), features, (), (), (), 0, 0)
    room = room_for_tasks(executor, taken)
    best: tuple[tuple[float, ...], Tiling] | None = None
    known: dict[tuple[int, int, bool], tuple[int, list[tuple[int, int]]]] = {}
    for wished in sorted({BAND_ROWS, BAND_ROWS // 2, BAND_ROWS // 4, BAND_ROWS // 8}, reverse=True):
        cost = _Cost(x, replace(base, bands=_bands(x, wished)), needs, executor, resident, known)
        for rows, columns, held in _shapes(len(base.strips)):
            peak = executor.slots_per_process * cost.peak(rows, columns, held=held)
            if peak > room and best is not None and best[0][0] == 0:
                continue
            fits = peak <= room
            order = (0.0, cost.seconds(rows, columns, held=held), peak) if fits else (1.0, peak, 0.0)
            if best is None or order < best[0]:
                best = order, replace(cost.tiling, regions=(Region(range(rows), range(columns), held),))
    assert best is not None
    chosen = best[1]
    shape = chosen.regions[0]
    cost = _Cost(x, chosen, needs, executor, resident, known)
    tiling = cost.cut(len(shape.rows), len(shape.columns), held=shape.held)
    return tiling, process_bytes(executor) + taken + executor.slots_per_process * tiling.task_bytes


def _bands(x: xr.DataArray, wished: int) -> tuple[Span, ...]:
    return tuple(itertools.pairwise(grouped(edges_of(x, 0, 1, wished), wished)))


def _shapes(strips: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (strips of rows, strips of columns, held) of regions to choose from."""
    for rows in GROUPS:
        if rows >= 2 * strips:
            return
        for columns in GROUPS:
            if rows <= columns <= 2 * rows:
                yield rows, columns, False
        yield rows, strips, True


@dataclass(frozen=True)
class _Cost:
    """What a way to cut would take."""

    x: xr.DataArray
    tiling: Tiling
    needs: Needs
    executor: Sizes
    resident: bool
    known: dict[tuple[int, int, bool], tuple[int, list[tuple[int, int]]]]
    """What regions of a shape read, and their tiles: the same whatever the bands."""

    @property
    def _cell(self) -> int:
        """Bytes of one image's share of one step along the second dim."""
        return int(self.x.dtype.itemsize * math.prod(self.x.shape[2:]))

    @property
    def _rows(self) -> int:
        return max(stop - start for start, stop in self.tiling.bands)

    @cached_property
    def _between(self) -> int:
        return 0 if self.x.chunks is None else between_bytes(self.x.data)

    def peak(self, rows: int, columns: int, *, held: bool) -> int:
        """Return the bytes of a region of that shape, the largest of its kind."""
        strips = len(self.tiling.strips)
        rows, columns = min(rows, strips), min(columns, strips)
        if held:
            return self.region(Region(range(rows), range(strips), held))
        # One on the diagonal, one off it, one that straddles it.
        places = {(0, 0), (0, columns), (rows, columns), (rows, 0)}
        found = [Region(range(i, min(i + rows, strips)), range(j, min(j + columns, strips)), held) for i, j in places]
        return max(self.region(region) for region in found if region.tiles)

    def region(self, region: Region) -> int:
        """Return the bytes of one region."""
        width, needs, height = self.tiling.width, self.needs, len(self.x)
        tiles, strips = region.tiles, len(region.strips)
        now = region.tiles_at_once
        spans = self.spans(region)
        length = self.tiling.strips[0][1] - self.tiling.strips[0][0]
        always = 8 * now * width**2 + 256 * width * strips
        bands = len(self.tiling.bands)
        always += needs.left * width * min(bands, needs.left_bands) * (1 if region.held else strips)
        if region.held:
            always += width * (needs.item * height + needs.left * bands) * len(region.rows)
        if self.resident:
            always += self._read(region)  # whole chunks travel with the task
        # While images stream by: a span as its chunks and as it is joined, the z of all strips, one product. Tiles that
        # have to be done again in float64 are done one by one; distances that are summed directly take activations as
        # they are.
        z = width * self._rows * max(needs.item * (1 if region.held else strips), 16)
        z = max(z, strips * length * self._rows * self._cell)
        block = self._rows * self._cell * max(map(self._decoded, spans))
        stream = z + 2 * block + self._between + moving_bytes(block) + needs.item * width**2
        waiting, own = needs.kept(tiles, now, strips, width)
        gaps = GAPS * needs.item + (AMONG if self.executor.slots_per_process > 1 else 0)
        return int(always + waiting + max(stream, needs.work(width) + own) + gaps)

    def count(self, rows: int, columns: int, *, held: bool) -> int:
        """Return how many regions of a shape there are."""
        strips = len(self.tiling.strips)
        starts = range(0, strips, rows)
        return len(starts) if held else sum(len(range(i // columns * columns, strips, columns)) for i in starts)

    def regions(self, rows: int, columns: int, *, held: bool, every: int = 1) -> list[Region]:
        """Return all regions of a shape, or one in so many: of many strips there are hundreds of thousands."""
        strips = len(self.tiling.strips)
        places = (
            (i, j)
            for i in range(0, strips, rows)
            for j in ((i,) if held else range(i // columns * columns, strips, columns))
        )
        return [
            Region(range(i, min(i + rows, strips)), range(j, strips if held else min(j + columns, strips)), held)
            for i, j in itertools.islice(places, 0, None, every)
        ]

    def seconds(self, rows: int, columns: int, *, held: bool) -> float:
        """Return about how long all regions of a shape take, side by side."""
        key = rows, columns, held
        if key not in self.known:
            number = self.count(rows, columns, held=held)
            every = max(1, number // 200)  # enough for any number of slots to share evenly
            some = self.regions(rows, columns, held=held, every=every)
            self.known[key] = number, [(self._read(region), region.tiles) for region in some]
        count, sizes = self.known[key]
        found = [self._time(*size) for size in sizes]
        if count > len(found):
            return sum(found) / len(found) * count / self.executor.slots
        loads = [0.0] * min(self.executor.slots, count)
        for seconds in sorted(found, reverse=True):
            heapq.heapreplace(loads, loads[0] + seconds)
        return max(loads)

    def _seconds(self, region: Region) -> float:
        return self._time(self._read(region), region.tiles)

    def _time(self, read: int, tiles: int) -> float:
        # Each band adds a tile in float64, which costs as much as some 50 images.
        images = len(self.x) + 50 * len(self.tiling.bands)
        return READ_SECONDS * read + MULTIPLY_SECONDS * images * tiles * self.tiling.width**2

    def _read(self, region: Region) -> int:
        return len(self.x) * self._cell * sum(map(self._decoded, self.spans(region)))

    def _decoded(self, span: Span) -> int:
        """Return how much of the second dim is decoded to read a span: whole chunks."""
        if self.x.chunks is None:
            return span[1] - span[0]
        edges = self._edges
        return edges[bisect.bisect_left(edges, span[1])] - edges[bisect.bisect_right(edges, span[0]) - 1]

    @cached_property
    def _edges(self) -> list[int]:
        return edges_of(self.x, 1, 1, 1)

    @cached_property
    def _joined(self) -> list[bool]:
        """Whether each strip begins inside a chunk of the one before."""
        borders = set(self._edges)
        return [self.x.chunks is not None and start not in borders for start, _ in self.tiling.strips]

    def spans(self, region: Region) -> list[Span]:
        """Return what a region reads: strips that share a chunk are read together, with what lies between them."""
        found: list[Span] = []
        for strip in region.strips:
            start, stop = self.tiling.strips[strip]
            chunk = start if not self._joined[strip] else self._edges[bisect.bisect_right(self._edges, start) - 1]
            if found and found[-1][1] > chunk:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
        return found

    def cut(self, rows: int, columns: int, *, held: bool) -> Tiling:
        """Return the tiling of that shape, the longest task first."""
        regions = sorted(self.regions(rows, columns, held=held), key=self._seconds, reverse=True)
        return replace(
            self.tiling,
            regions=tuple(regions),
            spans=tuple(tuple(self.spans(region)) for region in regions),
            read_bytes=sum(map(self._read, regions)),
            task_bytes=max(map(self.region, regions)),
        )
