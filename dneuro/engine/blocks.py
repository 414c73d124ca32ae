"""How arrays are cut: blocks along chunk borders, runs of neighbouring blocks.

The cut depends on the arrays and kernels alone, never on the number of workers: a result is the same bit for bit
however many there are. Rounding may differ where a worker's memory is so small that blocks must shrink, and with the
number of threads that the workers give to BLAS.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.engine.rechunked import between_bytes
from dneuro.quantities import MiB

BLOCK_BYTES = 32 * MiB
"""Blocks grow along chunk borders up to about this size."""

RUNS = 64
"""At most about this many runs per pass: one task each, whose state lives across its blocks."""

FEW_RUNS = 16
"""As many where states are large: each is written, sent and merged, and three tasks see to that."""

STATES_SHARE = 1 / 8
"""States are large where those of all runs would take more than this share of the array."""


@dataclass(frozen=True)
class Block:
    """Images `rows` × features `columns` (along the second dim)."""

    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """The cut of one pass.

    Parameters
    ----------
    runs : tuple of tuple of Block
        Each run is one task; runs of the same columns are neighbours and in image order.
    block_bytes : int
        Of the largest block, all arrays together, as stored in memory.
    chunk_bytes : int
        Of the largest chunk that has to be read for it.
    rows, features : int
        Shape of the largest block, as the kernels see it.
    """

    runs: tuple[tuple[Block, ...], ...]
    block_bytes: int
    chunk_bytes: int
    rows: int
    features: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(map(len, self.runs))

    @cached_property
    def panels(self) -> dict[tuple[int, int], list[tuple[Block, ...]]]:
        """The runs of each range of columns, in image order."""
        panels: dict[tuple[int, int], list[tuple[Block, ...]]] = {}
        for run in self.runs:
            panels.setdefault(run[0].columns, []).append(run)
        return panels


def cut(
    xs: Sequence[xr.DataArray],
    *,
    whole_rows: bool,
    pooled: bool = False,
    target: int = BLOCK_BYTES,
    runs: int = RUNS,
) -> Grid:
    """Cut arrays (image, features…) that share their images into runs of blocks.

    Parameters
    ----------
    xs : sequence of DataArray
        The first dim is the same in all; the second too, if columns may be cut.
    whole_rows : bool
        Every block holds all features of its images.
    pooled : bool
        The kernels will see one number for all positions of a channel.
    target : int
        Wished size of a block, in bytes; a block is never smaller than one chunk.
    runs : int
        Wished number of runs, at most.
    """
    lead = xs[0]
    width = lead.shape[1] if lead.ndim > 1 else 1
    per_row = sum(x.dtype.itemsize * math.prod(x.shape[1:]) for x in xs)
    per_cell = math.ceil(per_row / width)
    row_edges = _row_edges(xs, per_row, target)
    column_edges = [0, width]
    if not whole_rows:
        column_edges = grouped(edges_of(lead, 1, 0, target), target // (per_cell * _longest(row_edges)))
    row_edges = grouped(row_edges, target // (per_cell * _longest(column_edges)))
    bands = list(itertools.pairwise(row_edges))
    panels = list(itertools.pairwise(column_edges))
    per_run = math.ceil(len(bands) * len(panels) / runs)
    cuts = [
        tuple(Block(rows, columns) for rows in bands[i : i + per_run])
        for columns in panels
        for i in range(0, len(bands), per_run)
    ]
    tallest, widest = _longest(row_edges), _longest(column_edges)
    return Grid(
        runs=tuple(cuts),
        block_bytes=per_cell * tallest * widest,
        chunk_bytes=max(_chunk_bytes(x) for x in xs),
        rows=tallest,
        features=widest * (1 if pooled else math.prod(lead.shape[2:])),
    )


def narrowed(grid: Grid, x: xr.DataArray, rows: NDArray[np.bool_]) -> Grid:
    """Return the grid without the rows of chunks of `x` of which no image takes part; what is left stays in order."""
    edges = list(itertools.pairwise(edges_of(x, 0, 1, len(x))))
    needed = [(a, b) for a, b in edges if rows[a:b].any()]

    def parts(block: Block) -> Iterator[Block]:
        first, last = block.rows
        start = end = -1
        for a, b in ((max(a, first), min(b, last)) for a, b in needed if a < last and b > first):
            if a != end and end > 0:
                yield Block((start, end), block.columns)
            start, end = (start, b) if a == end else (a, b)
        if end > 0:
            yield Block((start, end), block.columns)

    runs = (tuple(part for block in run for part in parts(block)) for run in grid.runs)
    return replace(grid, runs=tuple(run for run in runs if run))


def thinned(grid: Grid, every: int) -> Grid:
    """Return a grid with one block of images in `every`, each a run of its own as far as there may be so many."""
    if every == 1:
        return grid
    kept = {columns: [block for run in runs for block in run][::every] for columns, runs in grid.panels.items()}
    per_run = math.ceil(sum(map(len, kept.values())) / RUNS)
    runs = [
        tuple(blocks[i : i + per_run]) for blocks in kept.values() for i in range(0, len(blocks), per_run)
    ]
    return replace(grid, runs=tuple(runs))


def _row_edges(xs: Sequence[xr.DataArray], bytes_per_row: int, target: int) -> list[int]:
    """Return the chunk borders along the images that arrays have in common.

    Where that would make blocks larger than wished, it is the borders of the array with the longest chunks: chunks of
    the others that reach across one of them are read for both blocks.
    """
    chunked = [edges_of(x, 0, bytes_per_row, target) for x in xs if x.chunks is not None]
    if not chunked:
        return edges_of(xs[0], 0, bytes_per_row, target)
    common = sorted(set[int].intersection(*map(set, chunked)))
    coarsest = max(chunked, key=_longest)
    return common if _longest(common) <= max(_longest(coarsest), target // bytes_per_row) else coarsest


def edges_of(x: xr.DataArray, axis: int, bytes_per_step: int, target: int) -> list[int]:
    """Return the chunk borders along an axis; of an array in memory, borders along the images that make sense."""
    if x.ndim <= axis:
        return [0, 1]
    if x.chunks is not None:
        return [0, *itertools.accumulate(length for length in x.chunks[axis] if length)]
    step = max(1, target // bytes_per_step) if axis == 0 else x.shape[axis]
    return [*range(0, x.shape[axis], step), x.shape[axis]]


def _longest(edges: list[int]) -> int:
    return max(b - a for a, b in itertools.pairwise(edges))


def grouped(edges: list[int], length: int) -> list[int]:
    """Drop borders so that neighbours join up to `length`."""
    kept = [edges[0]]
    for before, edge in itertools.pairwise(edges[1:]):
        if edge - kept[-1] > length:
            kept.append(before)
    return [*kept, edges[-1]]


def _chunk_bytes(x: xr.DataArray) -> int:
    if x.chunks is None:
        return 0
    own = int(x.dtype.itemsize * math.prod(max(lengths, default=0) for lengths in x.chunks))
    return max(own, between_bytes(x.data))
