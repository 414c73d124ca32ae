"""What a features × features matrix is cut into: strips of features, tiles of two strips, regions of tiles.

Strips are runs of neighbouring features; a tile is a pair of strips i ≤ j; a region is what one task computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dneuro.engine.visits import Span, Visit


@dataclass(frozen=True)
class Region:
    """What one task computes: tiles (i, j), i ≤ j, of two groups of neighbouring strips.

    Parameters
    ----------
    rows, columns : range
        Strips i and j.
    held : bool
        The rows stay in memory from the first image to the last, and tiles are made column by column of strips; else
        all tiles stay and the images stream by once.
    """

    rows: range
    columns: range
    held: bool

    @property
    def sweeps(self) -> Iterator[list[tuple[int, int]]]:
        """Tiles that are computed in one go through the images."""
        if not self.held:
            yield [(i, j) for i in self.rows for j in self.columns if i <= j]
            return
        for j in self.columns:
            if tiles := [(i, j) for i in self.rows if i <= j]:
                yield tiles

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return sum(max(0, self.columns.stop - max(self.columns.start, i)) for i in self.rows)

    @property
    def strips(self) -> list[int]:
        """Strips that are read."""
        rows = {i for i in self.rows if i < self.columns.stop}
        return sorted(rows.union(j for j in self.columns if j >= self.rows.start))

    @property
    def tiles_at_once(self) -> int:
        """Most tiles of a sweep."""
        return len(self.rows) if self.held else self.tiles


@dataclass(frozen=True)
class Needs:
    """What a task needs besides what it reads, in bytes.

    Parameters
    ----------
    item : int
        Bytes of a number that is multiplied.
    kept : callable
        ``kept(tiles, now, strips, width)``: of results, those that the driver has not fetched yet, and those in the
        making, beyond the products (of `now` tiles at a time) that make room for them.
    work : callable
        ``work(width)``: of finishing one tile.
    left : int
        What each band leaves of a feature, of rows that are held until the task ends.
    left_bands : int
        Of all others until so many bands have left it.
    """

    item: int
    kept: Callable[[int, int, int, int], tuple[int, int]]
    work: Callable[[int], int]
    left: int = 0
    left_bands: int = 0


@dataclass(frozen=True)
class Tiling:
    """The cut of one matrix.

    Parameters
    ----------
    strips : tuple of (int, int)
        Ranges of the second dim.
    features : int
        Features per step along the second dim.
    bands : tuple of (int, int)
        Images read at a time.
    regions : tuple of Region
        The tasks, the longest first.
    spans : tuple of tuple of (int, int)
        What each of them reads of the second dim.
    read_bytes : int
        Read and decoded in all, uncompressed.
    task_bytes : int
        Peak of one task.
    """

    strips: tuple[Span, ...]
    features: int
    bands: tuple[Span, ...]
    regions: tuple[Region, ...]
    spans: tuple[tuple[Span, ...], ...]
    read_bytes: int
    task_bytes: int

    @property
    def width(self) -> int:
        """Features of a strip; the last may be narrower."""
        return (self.strips[0][1] - self.strips[0][0]) * self.features

    @property
    def held(self) -> bool:
        """Whether columns stay in memory rather than tiles."""
        return self.regions[0].held

    def place(self, strip: int) -> slice:
        """Return the features of a strip."""
        start, stop = self.strips[strip]
        return slice(start * self.features, stop * self.features)

    def visits(self) -> list[Visit]:
        """Return the tasks for `dneuro.engine.visits.visit`; their argument is the region."""
        return [
            Visit(spans, (region,), region.tiles) for region, spans in zip(self.regions, self.spans, strict=True)
        ]


def covering(spans: Iterable[Span], strip: Span) -> int:
    """Return the number of the span that a strip lies in."""
    return next(number for number, span in enumerate(spans) if span[0] <= strip[0] and strip[1] <= span[1])
