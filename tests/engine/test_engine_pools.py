"""A cluster of two kinds of workers: each task goes to those of its pool, whichever of them is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import DaskExecutor
from dneuro.engine.window import each
from dneuro.errors import DneuroError, UsageError

MiB = 2**20


def _where(number: int) -> str:
    from distributed import get_worker

    return str(get_worker().name)


@pytest.fixture(scope="module")
def pools() -> Iterator[Any]:
    """A client of one worker of pool small and two of pool large, each with two slots."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    def worker(pool: str, memory: int) -> dict[str, Any]:
        options = {"nthreads": 2, "memory_limit": memory, "host": "127.0.0.1", "dashboard": False,
                   "resources": {pool: 2}, "silence_logs": 50}  # fmt: skip
        return {"cls": Nanny, "options": options}

    workers = {"s": worker("small", 300 * MiB), "l0": worker("large", 500 * MiB), "l1": worker("large", 400 * MiB)}
    listening = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": listening}
    with SpecCluster(workers, scheduler, silence_logs=50) as cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def test_pool__has_the_slots_and_the_memory_of_its_own_workers(pools: Any) -> None:
    small, large, both = (DaskExecutor(pools, pool) for pool in ("small", "large", None))
    assert (small.slots, small.slots_per_process, small.memory) == (2, 2, 300 * MiB)
    assert (large.slots, large.memory) == (4, 400 * MiB)
    assert (both.slots, both.memory) == (6, 300 * MiB)
    with pytest.raises(UsageError, match="has no workers of pool huge"):
        DaskExecutor(pools, "huge")


def test_pool__gets_its_tasks_and_no_others(pools: Any) -> None:
    for pool, names in (("small", {"s"}), ("large", {"l0", "l1"})):
        executor = DaskExecutor(pools, pool)
        assert {future.result() for _, future in each(executor, ((n, _where, (n,)) for n in range(40)))} == names


def test_pool__computes_and_persists_what_dask_itself_computes(pools: Any) -> None:
    executor = DaskExecutor(pools, "small")
    x = da.zeros(8, chunks=1, dtype="int64").map_blocks(lambda block: block + len(_where(0)), dtype="int64")
    with executor.computing():
        assert x.compute().tolist() == [1] * 8  # "s", not "l0"
        assert x.persist().compute().tolist() == [1] * 8
    kept = executor.persist(x)
    executor.finish(kept)
    assert {name for names in pools.who_has(kept).values() for name in names} == {
        address for address, worker in pools.scheduler_info()["workers"].items() if worker["name"] == "s"
    }


def test_persist__gives_each_worker_neighbours_and_as_much_as_it_has_threads(pools: Any) -> None:
    executor = DaskExecutor(pools)
    x = da.from_array(np.arange(72).reshape(36, 2), chunks=(3, 1))  # 12 rows of chunks, three workers of two threads
    kept = executor.persist(x)
    executor.finish(kept)
    assert kept.name == x.name
    holders = [pools.who_has(kept)[key] for key in dask.core.flatten(kept.__dask_keys__())]
    assert all(len(one) == 1 for one in holders)
    order = [one[0] for one in holders]
    assert [order.count(address) for address in dict.fromkeys(order)] == [8, 8, 8]
    assert order == sorted(order, key=list(dict.fromkeys(order)).index), "a worker's chunks are neighbours"
    assert kept.compute().tolist() == x.compute().tolist()


def test_persist__of_fewer_rows_than_workers_has_all_chunks_somewhere(pools: Any) -> None:
    executor = DaskExecutor(pools)
    x = da.ones((4, 6), chunks=(4, 2))
    kept = executor.persist(x)
    executor.finish(kept)
    assert kept.sum().compute() == 24


def test_pool__answers_as_any_executor_does(pools: Any) -> None:
    values = np.random.default_rng(0).standard_normal((300, 20)).astype("f4")
    x = xr.DataArray(da.from_array(values, chunks=(50, 20)), dims=("image", "channel"))
    found = dn.svd(x, rank=2, standardize=None, client=DaskExecutor(pools, "large"))
    expected = np.linalg.svd(values.astype("f8"), compute_uv=False)[:2]
    np.testing.assert_allclose(found["singular_value"], expected, rtol=1e-6)


def test_pool__whose_workers_are_replaced_goes_on_with_the_new_ones(pools: Any) -> None:
    executor = DaskExecutor(pools, "small")
    before = executor.submit(os.getpid).result()
    os.kill(before, signal.SIGKILL)
    after = executor.submit(os.getpid)
    assert executor.wait([after]) == {after}
    assert after.result() != before


def test_pool__without_workers_for_too_long_says_so(pools: Any) -> None:
    executor = DaskExecutor(pools, "small", patience=1.0)
    address = next(a for a, w in pools.scheduler_info()["workers"].items() if w["name"] == "s")
    pools.retire_workers([address], close_workers=True, remove=True)
    began = time.monotonic()
    with pytest.raises(DneuroError, match=r"every worker of pool small is lost, and for 1\.0 s no other has come"):
        executor.wait([executor.submit(os.getpid)])
    assert time.monotonic() - began >= 1
