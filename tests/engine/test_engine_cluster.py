"""The same pass on worker processes: same bits, persisted arrays, lost workers, errors."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client

import dneuro as dn
from dneuro import allocation, events
from dneuro.engine import DaskExecutor, ThreadExecutor, get_executor, reduce
from dneuro.engine.at_work import fetched
from dneuro.engine.window import each
from dneuro.errors import NonFiniteError, UsageError
from dneuro.kernels import CrossProducts, Moments, TopK

VALUES = (np.random.default_rng(0).standard_normal((3000, 300)) * 0.9 ** np.arange(300)).astype("f4")


@pytest.fixture
def lazy() -> xr.DataArray:
    return xr.DataArray(da.from_array(VALUES, chunks=(250, 300)), dims=("image", "channel"), name="conv1")


ANALYSES: list[tuple[str, dict[str, Any]]] = [
    ("moments", {}),
    ("moments", {"per": "image"}),
    ("top_images", {"k": 7}),
    ("similarity", {}),
    ("svd", {"rank": 3, "method": "gram"}),
    ("svd", {"rank": 3, "method": "krylov", "standardize": "center"}),
]


@pytest.mark.parametrize(("analysis", "parameters"), ANALYSES)
def test_cluster__same_bits_as_threads(
    cluster: Any, lazy: xr.DataArray, analysis: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 400_000)
    there = getattr(dn, analysis)(lazy, client=cluster, **parameters)
    for threads in (1, 2):
        here = getattr(dn, analysis)(lazy, client=ThreadExecutor(threads), **parameters)
        assert set(here) == set(there)
        for name in here:
            assert here[name].values.tobytes() == there[name].values.tobytes(), name


def test_cluster__active_client_is_taken(cluster: Any) -> None:
    executor = get_executor()
    assert isinstance(executor, DaskExecutor)
    assert executor.slots == 2
    assert executor.slots_per_process == 1
    assert executor.memory == 400 * 2**20


def test_share__is_with_all_workers_before_a_task_needs_it(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.run(fetched, None)  # whose import takes longer than anybody waits
    cluster.amm.stop()  # which takes copies away that nobody needs at that moment
    monkeypatch.setattr("dneuro.engine.executors.FETCHING", 30.0)
    try:
        shared = DaskExecutor(cluster).share(np.arange(1000))
        assert len(cluster.who_has([shared])[shared.key]) == 2
        busy = next(iter(cluster.scheduler_info()["workers"]))
        monkeypatch.setattr("dneuro.engine.executors.FETCHING", 0.2)
        sleeping = cluster.submit(time.sleep, 3, workers=[busy], pure=False)
        while not cluster.processing()[busy]:
            time.sleep(0.01)
        began = time.monotonic()
        shared = DaskExecutor(cluster).share(np.arange(2000))
        assert not sleeping.done(), f"a worker that is busy is not waited for: {time.monotonic() - began:.1f} s"
        assert DaskExecutor(cluster).submit(np.sum, shared).result() == np.arange(2000).sum()
        sleeping.result()
    finally:
        cluster.amm.start()


def test_share__asks_its_own_client_whichever_is_the_usual_one(cluster: Any) -> None:
    with Client(cluster.scheduler.address, set_as_default=False) as own:
        shared = DaskExecutor(own).share(np.arange(1000))
        assert shared.client is own
        with cluster.as_current():
            assert dn.moments(xr.DataArray(VALUES, dims=("image", "channel")), client=own).sizes["channel"] == 300


def test_workers__keep_things_for_the_same_package_until_others_come(cluster: Any, lazy: xr.DataArray) -> None:
    def keep(package: str) -> None:
        there = ["a network"]
        allocation.keep_until_others_come(package, lambda: bool(there and there.pop()))
        allocation._keepers["there"] = lambda: bool(there)  # asked, not called by its package

    def look(_number: int = 0) -> bool:
        return allocation._keepers["there"]()

    def forget() -> None:
        allocation._keepers.clear()

    cluster.run(keep, look.__module__)
    try:
        with contextlib.closing(each(DaskExecutor(cluster), [(n, look, (n,)) for n in range(6)])) as ended:
            assert all(future.result() for _, future in ended), "a task of the package itself does not end it"
        dn.moments(lazy, client=cluster)
        assert False in cluster.run(look).values(), "on a worker that had part in it"
    finally:
        cluster.run(forget)


def test_cluster__persisted_arrays(cluster: Any, lazy: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole chunks, parts of chunks, and what was made of persisted chunks."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 400_000)
    held = lazy.persist()
    for x, values in [
        (held, VALUES),
        (held.isel(image=slice(100, 1900), channel=slice(None, None, 3)), VALUES[100:1900, ::3]),
        (abs(held) + lazy, np.abs(VALUES) + VALUES),
        (held.chunk({"image": 170}), VALUES),
    ]:
        found = reduce([x], {"moments": Moments(), "top": TopK(2)}, DaskExecutor(cluster))
        np.testing.assert_allclose(found["moments"]["mean"], values.mean(0, dtype="f8"), rtol=1e-12)
        np.testing.assert_array_equal(found["top"]["image"], np.argsort(-values, 0, kind="stable")[:2])
    with dask.config.set({"optimization.fuse.active": False}):
        found = reduce([abs(held)], {"moments": Moments()}, DaskExecutor(cluster))
    np.testing.assert_allclose(found["moments"]["max"], np.abs(VALUES).max(0))


def test_cluster__arrays_in_memory_travel_with_their_tasks(cluster: Any) -> None:
    values = np.random.default_rng(1).standard_normal((60_000, 100)).astype("f4")  # one block alone is over 10 MB
    found = dn.moments(xr.DataArray(values, dims=("image", "channel")), client=cluster)
    np.testing.assert_allclose(found["mean"], values.mean(0, dtype="f8"), rtol=1e-10)


def test_cluster__every_chunk_is_computed_once_per_pass(cluster: Any, tmp_path: Any) -> None:
    def noted(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            name = "-".join(map(str, block_info[0]["chunk-location"]))
            with (tmp_path / name).open("a") as file:
                file.write("read\n")
        return block

    raw = da.from_array(VALUES, chunks=(500, 100))
    x = xr.DataArray(raw.map_blocks(noted, dtype="f4", meta=np.empty((0, 0), "f4")), dims=("image", "channel"))
    result = dn.svd(x, rank=2, method="krylov", client=cluster)
    assert len(list(tmp_path.iterdir())) == 18
    reads = {len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert reads == {result.attrs["passes"]}
    assert result.attrs["passes"] <= dn.plan("svd", x, rank=2, method="krylov", client=cluster).passes


def test_cluster__an_error_reaches_the_caller_as_it_is(cluster: Any, lazy: xr.DataArray) -> None:
    spoilt = lazy.where((lazy["image"] != 1234) | (lazy["channel"] != 5), np.inf)
    with pytest.raises(NonFiniteError, match=r"conv1: image 1234, neuron \(5,\) is inf") as caught:
        dn.moments(spoilt, client=cluster)
    assert caught.value.hint is not None
    assert cluster.submit(abs, -1).result() == 1, "the cluster goes on"


def test_cluster__nothing_is_left_on_the_workers(
    cluster: Any, lazy: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States that were merged are gone while the pass goes on, and all is gone after it."""
    gc.collect()  # errors that tests before this one have caught
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 100_000)
    x = lazy.chunk({"image": 50})
    held = []

    def look(event: events.Event) -> None:
        if event.kind == "progress":
            held.append(sum(len(keys) for keys in cluster.has_what().values()))

    with events.listening(look):
        reduce([x], {"products": CrossProducts()}, DaskExecutor(cluster))
    # One on each of the four levels of the tree, two per slot in flight with their inputs, the kernels on both.
    assert len(held) == 15
    assert max(held) <= 4 + 2 * 4 + 2
    deadline = time.monotonic() + 10
    while any(cluster.has_what().values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(cluster.has_what().values())


def test_cluster__a_worker_dies_in_the_middle(
    cluster: Any, lazy: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 100_000)

    def slow(block: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return block

    x = lazy.chunk({"image": 50}).copy(data=lazy.chunk({"image": 50}).data.map_blocks(slow, dtype="f4"))
    workers = list(cluster.run(os.getpid).values())
    killed = []

    def kill(event: events.Event) -> None:
        if event.kind == "progress" and event.done >= event.total / 2 and not killed:
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    with events.listening(kill):
        found = reduce([x], {"moments": Moments(), "top": TopK(3)}, DaskExecutor(cluster))
    assert killed
    here = reduce([lazy.chunk({"image": 50})], {"moments": Moments(), "top": TopK(3)}, ThreadExecutor(2))
    for name, results in here.items():
        for key, values in results.items():
            assert values.tobytes() == found[name][key].tobytes(), (name, key)
    cluster.wait_for_workers(2, timeout=30)


def test_cluster__without_workers_is_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "scheduler_info", lambda n_workers: {"workers": {}})
    with pytest.raises(UsageError, match="has no workers yet") as caught:
        get_executor(cluster)
    assert caught.value.hint == "client.wait_for_workers(1)"
