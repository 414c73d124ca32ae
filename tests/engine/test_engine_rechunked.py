"""Arrays that dask would rechunk by a shuffle between all workers: each block of theirs is computed by itself."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.core import flatten

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.engine.blocks import Block, cut
from dneuro.engine.parts import Source
from dneuro.engine.rechunked import between_bytes, by_tasks
from dneuro.engine.residence import share_of
from dneuro.engine.spread import persist_evenly

VALUES = (np.random.default_rng(0).standard_normal((600, 96)) * 0.95 ** np.arange(96)).astype("f4")

HOWS: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "by columns": lambda x: x.chunk(image=-1, channel=4),
    "by columns and back": lambda x: x.chunk(image=-1, channel=4).chunk(image=40, channel=-1),
    "by columns, derived": lambda x: abs(2 * x.chunk(image=-1, channel=4)).chunk(image=100),
    "less the mean of columns": lambda x: x - x.chunk(image=-1, channel=4).mean("image").chunk(channel=-1),
}


@pytest.fixture(autouse=True)
def shuffles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small arrays are rechunked as large ones are, and are many blocks."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 20_000)
    with dask.config.set({"array.rechunk.method": "p2p"}):
        yield


def has_shuffle(array: Any) -> bool:
    return any(type(layer).__name__ == "P2PRechunkLayer" for layer in array.__dask_graph__().layers.values())


@pytest.mark.parametrize(
    ("analysis", "asked"),
    [
        ("moments", {}),
        ("moments", {"per": "image"}),
        ("similarity", {}),
        ("svd", {"rank": 3, "method": "krylov", "persist": True}),
        ("svd", {"rank": 3, "method": "krylov", "persist": False}),
    ],
)
@pytest.mark.parametrize("how", HOWS)
def test_rechunked__under_a_client_is_what_it_is_without(
    cluster: Any, how: str, analysis: str, asked: dict[str, Any]
) -> None:
    x = xr.DataArray(da.from_array(VALUES, chunks=(40, 96)), dims=("image", "channel"))
    y = HOWS[how](x)
    assert has_shuffle(y.data), "dask makes no shuffle here any more"
    with dask.config.set({"array.rechunk.method": "tasks"}):
        plain = HOWS[how](x)
    assert not has_shuffle(plain.data)
    there = getattr(dn, analysis)(y, client=cluster, **asked)
    here = getattr(dn, analysis)(plain, client=ThreadExecutor(2), **asked)
    for name in here:
        np.testing.assert_array_equal(there[name].values, here[name].values, err_msg=name)
    plans = [dn.plan(analysis, z, client=cluster, **asked) for z in (y, plain)]
    assert plans[0].worker_bytes >= plans[1].worker_bytes, "of what was shuffled it is known what lies in between"
    assert replace(plans[0], worker_bytes=plans[1].worker_bytes) == plans[1]


def test_kmeans__of_what_was_rechunked_under_a_client_is_found_by_threads(cluster: Any) -> None:
    x = xr.DataArray(da.from_array(VALUES, chunks=(40, 48)), dims=("image", "channel"))
    here = dn.kmeans(xr.DataArray(VALUES, dims=x.dims), count=3, client=ThreadExecutor(2))
    for y in (x, HOWS["by columns"](x), HOWS["by columns and back"](x)):
        for client in (ThreadExecutor(2), cluster):
            there = dn.kmeans(y, count=3, client=client)
            np.testing.assert_array_equal(there["cluster"].values, here["cluster"].values)


def test_turned__of_positions_in_pieces_is_read_by_itself_too(cluster: Any) -> None:
    values = VALUES.reshape(600, 6, 4, 4)
    x = xr.DataArray(da.from_array(values, chunks=(60, 2, 2, 2)), dims=("image", "channel", "y", "x"))
    there = dn.similarity(x.isel(image=slice(50)), per="image", client=cluster)
    here = dn.similarity(xr.DataArray(values[:50], dims=x.dims), per="image", client=ThreadExecutor(2))
    np.testing.assert_allclose(there["pearson"].values, here["pearson"].values, atol=1e-6)


def peak_of(y: Any, block: Block) -> int:
    """Return what the tasks of a block hold at once, besides twice the block itself."""
    part, _ = Source(xr.DataArray(y, dims=("image", "channel"))).part(block)
    part.compute(())  # imports
    tracemalloc.start()
    try:
        size = part.compute(()).nbytes
        return tracemalloc.get_traced_memory()[1] - 2 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["f4", "f8", "f8 to f4"])
@pytest.mark.parametrize("between", ["128MiB", "4MiB", "100kiB"])
def test_by_tasks__takes_what_plans_count_of_what_is_made_in_between(cluster: Any, between: str, dtype: str) -> None:
    with dask.config.set({"array.chunk-size": between}):
        y = da.random.default_rng(0).random((2400, 2400), chunks=(40, 2400), dtype=dtype[:2]).rechunk((2400, 40))
    y = y.astype(dtype[-2:])
    assert has_shuffle(y)
    counted = cut([xr.DataArray(y, dims=("image", "channel"))], whole_rows=False).chunk_bytes
    assert peak_of(y, Block((0, 2400), (80, 120))) < counted + 2**20
    rows = {"128MiB": 2400, "4MiB": 400 if dtype == "f4" else 200, "100kiB": 40}[between]
    assert between_bytes(y) == 2 * int(dtype[1]) * 2400 * rows


@pytest.mark.parametrize("dtype", ["f4", "f8 to f4"])
@pytest.mark.parametrize("between", ["128MiB", "4MiB", "100kiB"])
def test_by_tasks__of_what_is_turned_back_takes_what_plans_count(cluster: Any, between: str, dtype: str) -> None:
    with dask.config.set({"array.chunk-size": between}):
        x = da.random.default_rng(0).random((2400, 2400), chunks=(40, 2400), dtype=dtype[:2]).rechunk((2400, 40))
        y = x.astype(dtype[-2:]).rechunk((100, 2400))
    counted = cut([xr.DataArray(y, dims=("image", "channel"))], whole_rows=False).chunk_bytes
    peak = peak_of(y, Block((100, 200), (0, 2400)))
    assert peak < counted + 2**23, "the graph of 7,000 tasks is some of it"
    assert peak > counted / 2


@pytest.mark.parametrize(
    ("chunks", "slots", "shares"),
    [((60, 96), (1, 1), (5, 5)), ((60, 48), (1, 1), (10, 10)), ((600, 8), (1, 1), (6, 6)), ((600, 8), (3, 1), (9, 3)),
     ((600, 96), (1, 1), (1,)), ((300, 48), (1, 1, 1, 1), (1, 1, 1, 1)), ((200, 8), (1, 1), (18, 18)),
     ((200, 96), (1, 1), (1, 2)), ((60, 24), (1, 1, 1), (13, 13, 14)), ((40, 24), (1, 1, 1), (20, 20, 20))],
)  # fmt: skip
def test_persist_evenly__gives_each_worker_the_share_that_plans_count(
    chunks: tuple[int, int], slots: tuple[int, ...], shares: tuple[int, ...]
) -> None:
    asked: dict[str, list[Any]] = {}

    class Client:
        def get(self, graph: Any, keys: list[Any], *, workers: list[str], **asks: Any) -> list[Any]:
            asked[workers[0]] = keys
            return keys

    array = da.from_array(VALUES, chunks=chunks)
    persist_evenly(Client(), array, {f"w{i}": count for i, count in enumerate(slots)}, {})
    assert tuple(map(len, asked.values())) == shares
    assert [key for keys in asked.values() for key in keys] == list(flatten(array.__dask_keys__()))
    if len(set(slots)) == 1:
        planned = share_of(xr.DataArray(array), SimpleNamespace(slots=len(slots), slots_per_process=1))
        assert max(shares) * 4 * math.prod(chunks) <= planned


def test_by_tasks__leaves_other_arrays_as_they_are() -> None:
    for array in (da.zeros((6, 4), chunks=2), da.zeros((6, 4), chunks=2).sum(axis=0)):
        assert by_tasks(array) is array
