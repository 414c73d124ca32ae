"""A pass on threads: what is read, what is told, what happens when something fails."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
import weakref
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from dneuro import events
from dneuro.engine import ThreadExecutor, get_executor, reduce
from dneuro.errors import UsageError
from dneuro.kernels import CrossProducts, ImageMoments, Moments, TopK

RNG = np.random.default_rng(0)


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int = 4000) -> None:
    """Make many blocks and runs of little arrays."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", size)
    monkeypatch.setattr("dneuro.engine.plan.MiB", 1)


@pytest.mark.parametrize("slots", [1, 3])
def test_reduce__every_chunk_is_read_once(counted: Any, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    values = RNG.standard_normal((70, 9, 4, 4)).astype("f4")
    x, reads = counted(values, ((10, 30, 7, 23), (4, 5), (1, 3), (2, 2)))
    kernels = {"moments": Moments(), "top": TopK(3), "bottom": TopK(3, largest=False)}
    found = reduce([x], kernels, ThreadExecutor(slots))
    assert len(reads) == 4 * 2 * 2 * 2
    assert set(reads.values()) == {1}
    np.testing.assert_allclose(found["moments"]["mean"], values.mean(0, dtype="f8"), rtol=1e-12)
    reduce([x], {"products": CrossProducts()}, ThreadExecutor(slots))
    assert set(reads.values()) == {2}


def test_reduce__panels_of_columns_are_joined_right(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    values = RNG.standard_normal((60, 13, 3)).astype("f4")
    x = xr.DataArray(da.from_array(values, chunks=(20, (5, 1, 7), 2)), dims=("image", "channel", "y"))
    found = reduce([x], {"moments": Moments(), "top": TopK(2)}, ThreadExecutor(2))
    np.testing.assert_array_equal(found["moments"]["max"], values.max(0))
    assert found["top"]["value"].shape == (2, 13, 3)
    np.testing.assert_array_equal(found["top"]["image"], np.argsort(-values, 0, kind="stable")[:2])


def test_reduce__progress_is_monotone_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 400)
    x = xr.DataArray(da.from_array(RNG.standard_normal((500, 8)), chunks=(7, 8)), dims=("image", "channel"))
    seen: list[events.Event] = []
    with events.listening(seen.append):
        reduce([x], {"moments": Moments()}, ThreadExecutor(3), step="look")
    kinds = [event.kind for event in seen]
    assert kinds == ["started", *["progress"] * (len(seen) - 2), "finished"]
    assert {event.step for event in seen} == {"look"}
    assert {event.what for event in seen} == {"blocks"}
    (total,) = {event.total for event in seen}
    assert total == 72
    done = [event.done for event in seen]
    assert done[0] == 0
    assert done[-1] == done[-2] == total
    assert all(a < b for a, b in itertools.pairwise(done[:-1]))


def test_reduce__rows_that_do_not_take_part(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 100)
    values = RNG.standard_normal((40, 3)).astype("f4")
    rows = RNG.random(40) < 0.5
    rows[10:20] = False  # a whole chunk
    values[~rows] = np.nan
    x, reads = counted(values, (10, 3))
    found = reduce([x], {"images": ImageMoments(), "moments": Moments()}, ThreadExecutor(2), rows=rows)
    np.testing.assert_array_equal(found["images"]["image"], np.flatnonzero(rows))
    np.testing.assert_allclose(found["images"]["mean"], values[rows].mean(1, dtype="f8"), rtol=1e-12)
    assert (found["moments"]["count"] == rows.sum()).all()
    assert sorted(place[0][0] for place in reads) == [0, 20, 30], "a chunk of which nothing takes part is not read"


def test_reduce__an_error_reaches_the_caller_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 100)

    class OwnError(Exception):
        pass

    started = []

    def broken(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        started.append(block_info[0]["chunk-location"][0])
        if started[-1] == 3:
            raise OwnError("row 30")
        return block

    raw = da.zeros((5000, 2), chunks=(10, 2), dtype="f4")
    x = xr.DataArray(raw.map_blocks(broken, dtype="f4", meta=np.empty((0, 0), "f4")), dims=("image", "channel"))
    with pytest.raises(OwnError, match="row 30"):
        reduce([x], {"moments": Moments()}, ThreadExecutor(2))
    assert len(started) < 100, "the rest is not even begun"


def test_reduce__an_error_holds_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers were sent is let go of at once, not when the garbage collector comes round."""
    small_blocks(monkeypatch, 100)

    class Watched(Moments):
        def update(self, state: Any, blocks: Any, origin: Any) -> Any:
            raise OSError("disk")

    kernel = Watched()
    watched = weakref.ref(kernel)
    x = xr.DataArray(da.zeros((100, 5), chunks=(5, 5), dtype="f4"), dims=("image", "channel"))
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            reduce([x], {"moments": kernel}, ThreadExecutor(1))
        del kernel
        deadline = time.monotonic() + 5
        while watched() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # threads may be at the second task
        assert watched() is None
    finally:
        gc.enable()


def test_reduce__arrays_that_are_still_to_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 400)
    raw = RNG.standard_normal((60, 5)).astype("f4")
    x = xr.DataArray(da.from_array(raw, chunks=(7, 5)), dims=("image", "channel"))
    relu = (x.where(x > 0, 0) * 2).isel(channel=slice(None, None, 2))[::-1]
    found = reduce([relu], {"moments": Moments(), "top": TopK(2)}, ThreadExecutor(2))
    values = np.maximum(raw, 0)[::-1, ::2] * 2
    np.testing.assert_allclose(found["moments"]["mean"], values.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found["top"]["value"], -np.sort(-values, 0)[:2])
    unfused = {"optimization.fuse.active": False}
    with dask.config.set(unfused):
        again = reduce([relu], {"moments": Moments()}, ThreadExecutor(2))
    np.testing.assert_array_equal(again["moments"]["mean"], found["moments"]["mean"])


def test_reduce__several_arrays_reach_the_kernels_together() -> None:
    values, places = RNG.standard_normal((30, 4)).astype("f4"), np.arange(120, dtype="i4").reshape(30, 4)
    xs = [xr.DataArray(da.from_array(a, chunks=(8, 3)), dims=("image", "channel")) for a in (values, places)]
    found = reduce(xs, {"top": TopK(3)}, ThreadExecutor(2))["top"]
    np.testing.assert_array_equal(found["position"], np.take_along_axis(places, found["image"], 0))


def test_reduce__a_state_lives_across_the_blocks_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand blocks are a few dozen tasks."""
    small_blocks(monkeypatch, 40)
    starts: list[int] = []

    class Watched(Moments):
        def start(self) -> Any:
            starts.append(1)
            return super().start()

    x = xr.DataArray(da.zeros((1000, 10), chunks=(1, 10), dtype="f4"), dims=("image", "channel"))
    found = reduce([x], {"moments": Watched()}, ThreadExecutor(2))
    assert (found["moments"]["count"] == 1000).all()
    assert 16 <= len(starts) <= 64


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_reduce__same_bits_with_any_number_of_threads(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 40_000)
    x = xr.DataArray(RNG.standard_normal((2000, 30)).astype("f4"), dims=("image", "channel"))
    kernels = {"moments": Moments(), "products": CrossProducts()}
    alone, found = (reduce([x], kernels, ThreadExecutor(n)) for n in (1, slots))
    for name, results in alone.items():
        for key, values in results.items():
            assert values.tobytes() == found[name][key].tobytes(), (name, key)


def test_reduce__never_more_tasks_at_a_time_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 100)
    running, most, lock = [0], [0], threading.Lock()

    def watch(blocks: Any, origin: Any) -> Any:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1
        return blocks

    x = xr.DataArray(da.zeros((400, 5), chunks=(5, 5), dtype="f4"), dims=("image", "channel"))
    reduce([x], {"moments": Moments()}, ThreadExecutor(2), prepare=watch)
    assert most[0] <= 2


def test_get_executor__something_that_is_no_client() -> None:
    with pytest.raises(UsageError, match=r"client is a str, not a distributed\.Client") as caught:
        get_executor("tcp://127.0.0.1:8786")
    assert caught.value.hint == "client=distributed.Client(address)"


def test_get_executor__threads_unless_there_is_a_client() -> None:
    executor = get_executor()
    assert isinstance(executor, ThreadExecutor)
    assert executor.slots == executor.slots_per_process >= 1
    assert get_executor(executor) is executor
