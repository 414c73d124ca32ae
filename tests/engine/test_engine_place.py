"""Where tasks compute: the device that was asked for, on whatever runs them, and never another one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

import dneuro as dn
from dneuro.engine import DaskExecutor, ThreadExecutor, reduce
from dneuro.engine.device import Device, chosen
from dneuro.engine.place import Card, opened, place_of
from dneuro.errors import ArrayError, DeviceError, UsageError
from dneuro.kernels import Moments
from dneuro.products import PRODUCTS

LACKING = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
VALUES = np.random.default_rng(0).standard_normal((300, 12)).astype("f4")


def lazy() -> xr.DataArray:
    return xr.DataArray(da.from_array(VALUES, chunks=(60, 12)), dims=("image", "channel"), name="conv1")


class Spy(Moments):
    """Moments that note what they get, and what float32 products are computed in meanwhile."""

    seen: ClassVar[list[tuple[type, str, str]]] = []

    def update(self, state: Any, blocks: Sequence[Any], origin: Any) -> Any:
        device = str(getattr(blocks[0], "device", ""))
        self.seen.append((type(blocks[0]), device, torch.get_float32_matmul_precision()))
        return super().update(state, blocks, origin)


@pytest.fixture
def seen() -> Iterator[list[tuple[type, str, str]]]:
    Spy.seen.clear()
    yield Spy.seen


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A client of one worker process with room for torch."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="2GiB", host="127.0.0.1",
                     dashboard_address="127.0.0.1:0", silence_logs=50) as running,
        Client(running) as client,
    ):  # fmt: skip
        yield client


def test_on_device__holds_inside_the_block_and_for_this_context() -> None:
    found: list[Any] = []
    with dn.on_device("cuda:1", tf32=True):
        assert chosen() == Device("cuda:1", tf32=True)
        with dn.on_device("torch:cpu"):
            assert chosen() == Device("torch:cpu")
        with dn.on_device("cpu"):
            assert chosen() is None
        other = threading.Thread(target=lambda: found.append(chosen()))
        other.start()
        other.join()
        assert chosen() == Device("cuda:1", tf32=True)
    assert chosen() is None
    assert found == [None], "another thread asks for itself"


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "cuda:", "cuda:x", "", 0, None, "CUDA", "cpu:0"])
def test_on_device__refuses_what_is_none(name: Any) -> None:
    with pytest.raises(UsageError, match="is no device that analyses run on") as caught, dn.on_device(name):
        pass
    assert "torch:cpu" in str(caught.value.hint)
    assert ("float64" in caught.value.message) == (name == "mps")


@pytest.mark.parametrize("name", ["cpu", "torch:cpu", "xpu"])
def test_on_device__tf32_is_one_of_nvidias(name: str) -> None:
    with pytest.raises(UsageError, match=rf"device '{name}' does not have it"), dn.on_device(name, tf32=True):
        pass


def test_pass__gives_the_kernels_tensors_and_returns_numpy(seen: Any, threads: ThreadExecutor) -> None:
    with dn.on_device("torch:cpu"):
        found = reduce([lazy()], {"moments": Spy()}, threads)["moments"]
    assert {kind for kind, *_ in seen} == {torch.Tensor}
    assert all(type(array) is np.ndarray for array in found.values())
    np.testing.assert_allclose(found["variance"], VALUES.astype("f8").var(axis=0), rtol=1e-12)
    seen.clear()
    reduce([lazy()], {"moments": Spy()}, threads)
    assert {kind for kind, *_ in seen} == {np.ndarray}


def test_device__goes_along_with_the_tasks_of_a_cluster(workers: Any, threads: ThreadExecutor) -> None:
    def loaded() -> bool:
        import sys

        return "torch" in sys.modules

    expected = dn.svd(lazy(), rank=2, client=workers)["singular_value"].values
    assert not any(workers.run(loaded).values()), "NumPy needs no torch"
    with dn.on_device("torch:cpu"):
        found = dn.svd(lazy(), rank=2, client=workers)["singular_value"].values
        top = dn.top_images(lazy(), k=3, client=workers)
    assert all(workers.run(loaded).values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    xr.testing.assert_identical(top, dn.top_images(lazy(), k=3, client=threads))


@LACKING
@pytest.mark.parametrize("analysis", ["moments", "similarity"])
def test_missing__is_said_with_the_worker_before_anything_is_read(workers: Any, analysis: str) -> None:
    (address,) = workers.scheduler_info(n_workers=-1)["workers"]
    with dn.on_device("cuda"), pytest.raises(DeviceError, match=r"does not have device 'cuda': .+") as caught:
        getattr(dn, analysis)(lazy(), client=workers)
    assert caught.value.message.startswith("worker 0 ")
    assert address in caught.value.message
    assert "dn.on_device('cpu')" in str(caught.value.hint)


@LACKING
def test_missing__is_said_by_a_task_too(workers: Any, threads: ThreadExecutor) -> None:
    """A worker may have joined after the plan was made."""
    for where, who in ((DaskExecutor(workers), r"worker 0 \(tcp://"), (threads, "this process")):
        with dn.on_device("cuda"), pytest.raises(DeviceError, match=rf"{who}.*does not have device 'cuda'"):
            reduce([lazy()], {"moments": Moments()}, where)


@LACKING
def test_missing__here(threads: ThreadExecutor) -> None:
    with dn.on_device("cuda:0"), pytest.raises(DeviceError, match="this process does not have device 'cuda:0'"):
        dn.moments(lazy(), client=threads)


@pytest.mark.parametrize(("tf32", "word"), [(False, "highest"), (True, "high")])
def test_products__are_exact_unless_asked_and_the_setting_is_restored(
    seen: Any, tf32: bool, word: str, monkeypatch: pytest.MonkeyPatch, threads: ThreadExecutor
) -> None:
    before = torch.get_float32_matmul_precision()
    for own in ("high", "highest"):
        torch.set_float32_matmul_precision(own)
        try:
            monkeypatch.setattr("dneuro.engine.passes.chosen", lambda: Device("torch:cpu", tf32))
            reduce([lazy()], {"moments": Spy()}, threads)
            assert torch.get_float32_matmul_precision() == own
        finally:
            torch.set_float32_matmul_precision(before)
    assert {precision for *_, precision in seen} == {word}


def test_products__of_another_precision_wait_for_their_turn() -> None:
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def exact() -> None:
        with PRODUCTS.rounded(False):
            order.append(torch.get_float32_matmul_precision())
            inside.set()
            leave.wait(30)
            order.append(torch.get_float32_matmul_precision())

    def rounded() -> None:
        with PRODUCTS.rounded(True):
            order.append(torch.get_float32_matmul_precision())

    before = torch.get_float32_matmul_precision()
    first, second, third = (threading.Thread(target=some) for some in (exact, rounded, exact))
    first.start()
    inside.wait(30)
    third.start()
    second.start()
    second.join(0.2)
    assert second.is_alive(), "waits until those have left that want it exact"
    leave.set()
    for one in (first, second, third):
        one.join(30)
    assert (order.count("high"), order.count("highest")) == (1, 4)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "u1", "u2", "i4", "i8", "?"])
def test_put__copies_whatever_lies_there(dtype: str) -> None:
    values = np.arange(24).reshape(4, 6).astype(dtype)
    values.setflags(write=False)
    place = place_of(Device("torch:cpu"))
    for block in (values, values[::-1, ::2], values.T, np.broadcast_to(values[0], (3, 6)), values[:0]):
        with place.computing():
            moved = place.put(block)
            found = place.fetch({"block": moved, "count": 3})
        assert isinstance(moved, torch.Tensor)
        np.testing.assert_array_equal(found["block"], block)
        assert found["count"] == 3
        moved[...] = 1  # a kernel may not; where one does, the caller's array is not what changes
    np.testing.assert_array_equal(values, np.arange(24).reshape(4, 6).astype(dtype))


def test_put__says_what_torch_does_not_have() -> None:
    with pytest.raises(ArrayError, match=f"torch has no {np.dtype(np.longdouble)}, a device computes with torch"):
        Card(Device("torch:cpu")).put(np.ones(3, np.longdouble))


def test_room__that_is_not_there_is_an_error_that_names_the_device() -> None:
    said = "device 'torch:cpu' of this process has no room for a task: tried to allocate 2 GiB$"
    place = place_of(Device("torch:cpu"))
    with pytest.raises(DeviceError) as caught, place.computing():
        raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB\nand more")
    assert re.match(said, caught.value.message)
    assert "smaller chunks" in str(caught.value.hint)


def test_opened__refuses_what_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*args: Any, **settings: Any) -> Any:
        raise TypeError("Cannot convert to float64")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(DeviceError, match="does not have device 'xpu': Cannot convert to float64"):
        opened("xpu")
