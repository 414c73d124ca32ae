"""Persist or stream: who decides what, that it is said, and that it changes no bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.engine import DaskExecutor, ThreadExecutor, reduce
from dneuro.engine.executors import PROCESS_BYTES
from dneuro.engine.residence import decide, in_chunks, is_resident, resident, share_of
from dneuro.errors import MemoryLimitError, UsageError
from dneuro.kernels import Moments
from dneuro.quantities import GiB, MiB

VALUES = np.random.default_rng(0).standard_normal((400, 50)).astype("f4")


class Workers:
    """Two workers of one thread."""

    slots, slots_per_process, process_bytes = 2, 1, PROCESS_BYTES

    def __init__(self, memory: int) -> None:
        self.memory = self.driver_memory = memory


def test_decide__persists_what_is_read_again_and_fits() -> None:
    x = xr.DataArray(np.broadcast_to(np.float32(0), (1000, 1000)), dims=("image", "channel")).chunk(image=100)
    room = int((PROCESS_BYTES + share_of(x, Workers(GiB))) / 0.6)
    for memory, passes, expected in [(room + MiB, 3, True), (room - MiB, 3, False), (room + MiB, 1, False)]:
        assert decide(x, Workers(memory), passes=passes, worker_bytes=PROCESS_BYTES) is expected
    assert decide(x, Workers(room - MiB), passes=3, worker_bytes=PROCESS_BYTES, persist=True)
    assert not decide(x, Workers(room + MiB), passes=3, worker_bytes=PROCESS_BYTES, persist=False)
    assert not decide(x.load(), Workers(GiB), passes=3, worker_bytes=PROCESS_BYTES, persist=True), "it is in memory"


def test_decide__refuses_what_cannot_be() -> None:
    x = xr.DataArray(da.zeros((10**6, 1000), chunks=(10**5, 1000), dtype="f4"), dims=("image", "channel"))
    with pytest.raises(MemoryLimitError, match=r"persist=True needs .* \(3.73 GiB in all\), the limit is 1 GiB"):
        decide(x, Workers(GiB), passes=2, worker_bytes=PROCESS_BYTES, persist=True)
    with pytest.raises(UsageError, match="persist='often'"):
        decide(x, Workers(GiB), passes=2, worker_bytes=0, persist="often")  # type: ignore[arg-type]


def test_resident__threads_read_each_chunk_once(counted: Any, threads: ThreadExecutor) -> None:
    x, reads = counted(VALUES, (64, 20))
    seen: list[events.Event] = []
    with events.listening(seen.append), resident(x, threads, passes=3, worker_bytes=0, step="svd") as held:
        found = [reduce([held], {"m": Moments()}, threads)["m"] for _ in range(3)]
    assert set(reads.values()) == {1}
    assert len(reads) == 7 * 3
    assert held.chunks == x.chunks
    here = reduce([x], {"m": Moments()}, threads)["m"]
    for other in found:
        for name in here:
            assert other[name].tobytes() == here[name].tobytes()
    notes = [event for event in seen if event.kind == "note"]
    assert [note.data["persisted"] for note in notes] == [True]
    assert "persisting 78.1 KiB read 3 times" in notes[0].message


def test_resident__threads_hold_the_values_once(counted: Any, threads: ThreadExecutor) -> None:
    x, _ = counted(VALUES, (64, 20))
    with resident(x, threads, passes=3, worker_bytes=0) as held:
        chunks = [chunk for layer in held.data.dask.layers.values() for chunk in layer.values()]
    assert len(chunks) == 7 * 3
    whole = chunks[0].base
    assert whole.nbytes == VALUES.nbytes
    assert all(chunk.base is whole for chunk in chunks), "views of one array, no copies"
    np.testing.assert_array_equal(whole, VALUES)


def test_in_chunks__is_the_array(threads: ThreadExecutor) -> None:
    cube = VALUES.reshape(400, 5, 10)
    for chunks in [(64, 2, 10), ((100, 300), (5,), (3, 7)), 90, (-1, 1, -1)]:
        found = in_chunks(cube, chunks)
        assert found.chunks == da.from_array(cube, chunks=chunks).chunks
        np.testing.assert_array_equal(found.compute(scheduler="synchronous"), cube)
    assert in_chunks(cube, 90).name != in_chunks(cube, 90).name


def test_resident__streams_when_told_to(counted: Any, threads: ThreadExecutor) -> None:
    x, _ = counted(VALUES, (64, 20))
    seen: list[events.Event] = []
    with events.listening(seen.append):
        with resident(x, threads, passes=3, worker_bytes=0, persist=False) as held:
            assert held is x
        with resident(x, threads, passes=1, worker_bytes=0) as held:
            assert held is x
    assert [event.data["persisted"] for event in seen] == [False], "said where it matters"


def test_resident__an_error_while_loading_is_the_callers(threads: ThreadExecutor) -> None:
    def broken(block: Any) -> Any:
        raise OSError("disk")

    x = xr.DataArray(VALUES, dims=("image", "channel")).chunk(image=100)
    x = x.copy(data=x.data.map_blocks(broken, dtype="f4", meta=np.empty((0, 0), "f4")))
    with pytest.raises(OSError, match="disk"), resident(x, threads, passes=2, worker_bytes=0):
        pass


@pytest.mark.parametrize("fetching", [0.0, 0.5])
def test_resident__workers_hold_the_chunks_and_let_go(
    fetching: float, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does an error keep them that was raised, and caught, because workers took long to fetch what they share."""
    monkeypatch.setattr("dneuro.engine.executors.FETCHING", fetching)
    executor = DaskExecutor(cluster)
    x = xr.DataArray(VALUES, dims=("image", "channel")).chunk(image=64)
    assert not is_resident(x)
    with resident(x, executor, passes=2, worker_bytes=0, persist=True) as held:
        assert is_resident(held)
        assert len(cluster.futures) == 7
        found = reduce([held], {"m": Moments()}, executor)["m"]
    np.testing.assert_allclose(found["mean"], VALUES.mean(0, dtype="f8"), rtol=0, atol=1e-12)
    del held
    deadline = time.monotonic() + 10
    while cluster.futures and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not cluster.futures


DERIVED: dict[str, tuple[bool, Callable[[Any, Any], Any]]] = {
    "doubled": (True, lambda x, held: 2 * held),
    "less its mean": (True, lambda x, held: held - held.mean("image")),
    "less a mean in memory": (True, lambda x, held: held - VALUES.mean(0)),
    "some of it": (True, lambda x, held: held.isel(image=slice(0, 300))),
    "less a persisted mean": (False, lambda x, held: x - x.mean("image").persist()),
    "with what is on disk": (False, lambda x, held: abs(held) + x),
    "before what is on disk": (False, lambda x, held: xr.concat([held, x], "image")),
    "less a mean on disk": (False, lambda x, held: held - x.mean("image")),
}


@pytest.mark.parametrize("how", DERIVED)
def test_resident__is_what_is_made_of_persisted_chunks_alone(
    how: str, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 20_000)
    executor, path = DaskExecutor(cluster), str(tmp_path / "x.zarr")
    xr.DataArray(VALUES, dims=("image", "channel"), name="x").to_dataset().to_zarr(
        path, encoding={"x": {"chunks": (64, 50)}}, consolidated=False
    )
    x = xr.open_zarr(path, chunks={"image": 64}, consolidated=False)["x"]
    expected, make = DERIVED[how]
    other = x.copy(data=x.data.map_blocks(np.copy))  # dask takes what is persisted for what it was made of
    y = make(x, other.persist())
    assert is_resident(y) is expected
    seen: list[events.Event] = []
    with events.listening(seen.append), resident(y, executor, passes=3, worker_bytes=0, persist=True) as held:
        assert is_resident(held)
        found = reduce([held], {"m": Moments()}, executor)["m"]
    assert [e.data["persisted"] for e in seen if "persisted" in e.data] == ([] if expected else [True])
    values = make(xr.DataArray(VALUES, dims=x.dims), xr.DataArray(VALUES, dims=x.dims)).values
    np.testing.assert_allclose(found["mean"], values.mean(0, dtype="f8"), rtol=0, atol=1e-6)


def test_similarity__of_what_is_less_a_persisted_mean_counts_no_chunks_that_travel(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 10)
    x = xr.DataArray(da.random.default_rng(0).random((400, 50), chunks=(64, 50), dtype="f4"), dims=("image", "channel"))
    held, mean = (x + 1).persist(), x.mean("image")
    streamed, less, doubled, mixed = (
        dn.plan("similarity", y, client=cluster, persist=False).worker_bytes
        for y in (x - mean, x - mean.persist(), 2 * held, held + x)
    )
    assert less == streamed
    assert doubled == streamed + x.nbytes
    assert mixed == streamed + x.nbytes, "half of what it is made of travels"


@pytest.mark.parametrize("persist", [True, False])
def test_similarity__persisted_or_streamed_is_the_same(
    persist: bool, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 10)
    x = xr.DataArray(VALUES, dims=("image", "channel")).chunk(image=64, channel=10)
    here = dn.similarity(x, client=ThreadExecutor(2), persist=False)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        there = dn.similarity(x, client=cluster, persist=persist)
    assert [e.data["persisted"] for e in seen if "persisted" in e.data] == [persist]
    for name in here:
        assert there[name].values.tobytes() == here[name].values.tobytes()
