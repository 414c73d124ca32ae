from __future__ import annotations

import itertools
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.engine.blocks import RUNS, cut


def cuts(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Irregular chunks of one dim."""
    inner = st.sets(st.integers(1, max(1, length - 1)), max_size=8) if length > 1 else st.just(set())
    return inner.map(lambda at: tuple(b - a for a, b in itertools.pairwise(sorted({0, length} | at))))


@st.composite
def arrays(draw: st.DrawFn) -> xr.DataArray:
    shape = (draw(st.integers(1, 200)), draw(st.integers(1, 40)), *draw(st.sampled_from([(), (2, 3)])))
    chunks = tuple(draw(cuts(length)) for length in shape)
    return xr.DataArray(da.zeros(shape, chunks=chunks, dtype="f4"), dims=("image", "channel", "y", "x")[: len(shape)])


@given(arrays(), st.booleans(), st.integers(1, 20_000), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_cut__every_cell_once_along_the_borders_of_chunks(x: Any, whole: bool, target: int, runs: int) -> None:
    grid = cut([x], whole_rows=whole, target=target, runs=runs)
    covered = np.zeros(x.shape[:2], int)
    edges = [{0, *itertools.accumulate(lengths)} for lengths in x.chunks]
    for run in grid.runs:
        assert len({block.columns for block in run}) == 1
        assert [b.rows[0] for b in run[1:]] == [b.rows[1] for b in run[:-1]], "neighbours, in image order"
        for block in run:
            covered[slice(*block.rows), slice(*block.columns)] += 1
            assert set(block.rows) <= edges[0]
            assert set(block.columns) <= edges[1]
            assert not whole or block.columns == (0, x.shape[1])
    assert (covered == 1).all()
    for panel in grid.panels.values():
        assert [run[0].rows[0] for run in panel[1:]] == [run[-1].rows[1] for run in panel[:-1]]
    sizes = [(b.rows[1] - b.rows[0], b.columns[1] - b.columns[0]) for run in grid.runs for b in run]
    cell = 4 * int(np.prod(x.shape[2:]))
    assert max(rows * columns for rows, columns in sizes) * cell <= grid.block_bytes
    assert max(rows for rows, _ in sizes) == grid.rows
    assert grid.blocks == len(sizes)
    assert len(grid.runs) <= runs + len(grid.panels)
    largest_chunk = max(x.chunks[0]) * (x.shape[1] if whole else max(x.chunks[1])) * cell
    assert grid.block_bytes <= max(target, largest_chunk), "no larger than wished, but for a chunk"


def test_cut__arrays_in_memory_are_cut_by_size() -> None:
    x = xr.DataArray(np.broadcast_to(np.float32(0), (1000, 10, 5, 2)), dims=("image", "channel", "y", "x"))
    grid = cut([x], whole_rows=False, target=40_000)
    assert {block.rows[1] - block.rows[0] for run in grid.runs for block in run} == {100}
    assert grid.chunk_bytes == 0
    assert (grid.rows, grid.features) == (100, 100)
    assert cut([x], whole_rows=False, pooled=True, target=40_000).features == 10


def test_cut__joins_small_chunks() -> None:
    x = xr.DataArray(da.zeros((10_000, 64), chunks=(1, 64), dtype="f4"), dims=("image", "channel"))
    grid = cut([x], whole_rows=True, target=2560 * 100)
    assert grid.rows == 1000
    assert grid.blocks == 10


def test_cut__many_blocks_make_few_runs() -> None:
    x = xr.DataArray(da.zeros((100_000, 8), chunks=(100, 8), dtype="f4"), dims=("image", "channel"))
    grid = cut([x], whole_rows=True, target=3200)
    assert grid.blocks == 1000
    assert RUNS / 2 < len(grid.runs) <= RUNS
