"""Reading ahead and writing behind: order, bounds, errors, and threads that end."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dneuro as dn
from dneuro.engine.device import CUDA_BYTES
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DeviceError, FingerprintError, UnreadableImageError
from dneuro.extract import pipeline, reading
from dneuro.extract.behind import Behind
from dneuro.extract.pipeline import batches, source_of
from dneuro.extract.reading import read_ahead
from dneuro.extract.slots import AHEAD
from dneuro.extract.task import extract_unit
from dneuro.extract.work import ExtractWork
from dneuro.images.decode import Picture
from dneuro.images.memory import NO_LIMIT, PictureMemory, Share
from dneuro.images.preprocess import to_input, view
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.quantities import GiB
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]
Begin = Callable[..., ExtractWork]


@pytest.fixture
def work(make_job: MakeJob, begin: Begin) -> ExtractWork:
    """40 digits in 3 units, 4 at a time, three threads that read."""
    return dataclasses.replace(begin(make_job(batch=4)), threads=3)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("dneuro-read", "dneuro-write"))]
    assert left == []


class Source:
    """Stands in for the images: notes who reads what; may be slow, may fail."""

    def __init__(self, honest: Any, fail: dict[int, Exception] | None = None, slow: tuple[int, ...] = ()) -> None:
        self.manifest, self._honest, self._fail, self._slow = honest.manifest, honest, fail or {}, slow
        self.held_bytes, self.is_near = 0, True
        self.read_so_far: list[int] = []
        self.fetched: list[int] = []
        self.readers: set[str] = set()

    def fetch(self, index: int) -> None:
        self.fetched.append(index)

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        raise AssertionError("what is to be scaled stays with Pillow")

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        if index in self._slow:
            time.sleep(0.05)
        self.read_so_far.append(index)
        self.readers.add(threading.current_thread().name)
        if index in self._fail:
            raise self._fail[index]
        picture: tuple[Picture, int] = self._honest.load(index, share)
        return picture


def room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.full(shape, 77, np.uint8)


def test_reading__keeps_the_order_whoever_is_first(work: ExtractWork) -> None:
    source = Source(source_of(work), slow=(0, 5, 21))
    found = list(read_ahead(work, source, PictureMemory(), 3, 30, room))
    numbers = [pictures.numbers.tolist() for pictures in found]
    assert numbers == [list(range(i, min(i + 4, 30))) for i in range(3, 30, 4)]
    for pictures in found:
        for number, pixels, checksum in zip(pictures.numbers, pictures.pixels, pictures.checksums, strict=True):
            picture, wanted = source_of(work).read(int(number))
            np.testing.assert_array_equal(pixels, view(picture, work.preprocessing))
            assert checksum == wanted


def test_reading__goes_no_further_ahead_than_planned(work: ExtractWork) -> None:
    source = Source(source_of(work))
    with contextlib.closing(read_ahead(work, source, PictureMemory(), 0, 40, room)) as pictures:
        for turn in range(1, 6):
            next(pictures)
            time.sleep(0.05)
            assert turn * 4 <= len(source.read_so_far) <= (turn + AHEAD) * 4
        assert len(source.read_so_far) > 5 * 4, "the next ones are read meanwhile"
    assert len(source.read_so_far) < 40


def test_reading__on_one_core_decodes_in_turn_and_has_the_rest_fetched(work: ExtractWork) -> None:
    work = dataclasses.replace(work, threads=1)
    source = Source(source_of(work), {9: UnreadableImageError("torn")})
    with contextlib.closing(read_ahead(work, source, PictureMemory(), 0, 40, room)) as pictures:
        for turn in range(1, 6):
            last = next(pictures)
            assert source.read_so_far == list(range(turn * 4)), "nobody else reads"
            assert last.numbers.tolist() == list(range(turn * 4 - 4, turn * 4))
            assert last.readable.tolist() == [number != 9 for number in last.numbers]
    assert source.readers == {threading.current_thread().name}
    assert source.fetched == list(range(4, 4 * (5 + AHEAD))), "each once, before its turn"


def test_reading__over_a_connection_goes_ahead_on_one_core_too(work: ExtractWork) -> None:
    work, source = dataclasses.replace(work, threads=1), Source(source_of(work))
    source.is_near = False
    assert len(list(read_ahead(work, source, PictureMemory(), 0, 40, room))) == 10
    assert source.readers == {"dneuro-read_0"}
    assert source.fetched == []


def test_reading__masks_what_cannot_be_read_in_order(work: ExtractWork) -> None:
    torn = {9: UnreadableImageError("torn"), 11: UnreadableImageError("worn")}
    (pictures,) = read_ahead(work, Source(source_of(work), torn, slow=(9,)), PictureMemory(), 8, 12, room)
    assert pictures.readable.tolist() == [True, False, True, False]
    assert [why for _, why in pictures.reasons] == ["torn", "worn"]
    assert pictures.checksums[[1, 3]].tolist() == [0, 0]
    assert not pictures.small[[1, 3]].any()


@pytest.mark.parametrize("error", [OSError("the disk is gone"), MemoryError()])
def test_reading__an_error_ends_it_where_it_belongs(work: ExtractWork, error: Exception) -> None:
    source = Source(source_of(work), {22: error})
    seen = []
    with pytest.raises(type(error)):
        for pictures in read_ahead(work, source, PictureMemory(), 0, 40, room):
            seen += pictures.numbers.tolist()
    assert seen == list(range(20)), "all batches before it, and none after it"


def test_reading__says_of_which_file_the_disk_would_not_give(work: ExtractWork) -> None:
    source = Source(source_of(work), {22: OSError(errno.EIO, "Input/output error")})
    with pytest.raises(OSError, match="Input/output error") as caught:
        list(read_ahead(work, source, PictureMemory(), 0, 40, room))
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, source.manifest.names[22])


def test_batches__a_consumer_that_fails_leaves_no_thread(work: ExtractWork) -> None:
    with pytest.raises(ZeroDivisionError), contextlib.closing(batches(work, ["relu1"], 0, 40)) as found:
        for _ in found:
            raise ZeroDivisionError
    extract_unit(work, 0, work.missing(0))  # and the next one works
    assert work.missing(0) == ()


def test_unit__whose_reading_fails_is_not_done(work: ExtractWork, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Source(source_of(work), {13: OSError("gone")})
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "source_of", lambda _work: broken)
        with pytest.raises(OSError, match="gone"):
            extract_unit(work, 0, work.missing(0))
    assert len(work.missing(0)) == 3
    extract_unit(work, 0, work.missing(0))


@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("batch", [3, 16])
def test_batches__do_not_depend_on_readers_or_chunks(work: ExtractWork, readers: int, batch: int) -> None:
    """One batch at a time through the network as it is, without reading ahead, gives the same."""
    import torch

    plan = dataclasses.replace(work.plan, batch=batch)
    work = dataclasses.replace(work, threads=readers, plan=plan)
    source, network = source_of(work), pipeline.network_of(work)
    found = list(batches(work, ["relu1", "fc"], 0, 40))
    assert [len(one.numbers) for one in found] == [min(batch, 40 - i) for i in range(0, 40, batch)]
    inputs = np.stack([to_input(view(source.read(i)[0], work.preprocessing), work.preprocessing) for i in range(40)])
    with torch.inference_mode():
        wanted = network.module(torch.from_numpy(inputs)).numpy()
    logits = np.concatenate([one.outputs["fc"] for one in found])
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    classes = [one.predictions for one in found if one.predictions is not None]
    np.testing.assert_array_equal(np.concatenate(classes), wanted.argmax(axis=1))


def test_pieces__split_a_batch_over_the_threads(work: ExtractWork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads must meet inside one batch."""
    work = dataclasses.replace(work, threads=2, plan=dataclasses.replace(work.plan, batch=2 * reading.PIECE))
    meeting = threading.Barrier(2, timeout=10)
    honest = source_of(work)

    class Meeting(Source):
        def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
            if index in (0, reading.PIECE):
                meeting.wait()
            return super().load(index, share)

    assert len(list(read_ahead(work, Meeting(honest), PictureMemory(), 0, 2 * reading.PIECE, room))) == 1


class Slow:
    """A writer that waits for a signal, and may fail."""

    def __init__(self, fail: bool = False) -> None:
        self.rows: list[Any] = []
        self.go = threading.Event()
        self._fail = fail

    def add(self, rows: NDArray[Any]) -> None:
        assert self.go.wait(10)
        if self._fail:
            raise OSError("full")
        self.rows.append(rows)

    def finish(self) -> int:
        return len(self.rows)

    def files(self) -> list[Path]:
        return []


def test_behind__writes_in_order_and_holds_two_turns() -> None:
    slow = Slow()
    turns: list[int] = []

    def fill(behind: Behind) -> None:
        writer = behind.follow(slow)
        for turn in range(4):
            writer.add(np.array([turn]))
            behind.turn()
            turns.append(turn)

    with Behind() as behind:
        filling = threading.Thread(target=fill, args=(behind,))
        filling.start()
        time.sleep(0.1)
        assert turns == [0], "the second turn waits for the rows of the first"
        slow.go.set()
        filling.join()
        assert behind.follow(slow).finish() == 4
    assert [int(rows[0]) for rows in slow.rows] == [0, 1, 2, 3]


def test_behind__an_error_comes_out_and_nothing_is_written_after_it() -> None:
    broken, other = Slow(fail=True), Slow()
    broken.go.set()
    other.go.set()
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.follow(broken).add(np.zeros(1))
        behind.follow(other).add(np.zeros(1))
        behind.settle()
    assert other.rows == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile takes a C++ compiler on a CPU")
def test_compile__yields_the_same_and_is_part_of_what_a_store_is_made_from(
    make_job: MakeJob, threads: ThreadExecutor
) -> None:
    def job(compiled: bool, store: str) -> JobSpec:
        network = {"name": "dneuro:convnet", "weights": "none", "compile": compiled}
        return make_job(network=network, store=store, layers={"relu1": {"keep": "full"}, "conv2": {"keep": "max"}})

    plain = dn.open(run_job(job(False, "a.zarr"), threads).store)
    fast = dn.open(run_job(job(True, "b.zarr"), threads).store)
    assert (plain.attrs["compile"], fast.attrs["compile"]) == (False, True)
    np.testing.assert_allclose(fast["relu1"].values, plain["relu1"].values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fast["conv2"].values, plain["conv2"].values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(fast["conv2"]["activation_x"], plain["conv2"]["activation_x"])
    for store, change in (("a.zarr", "None → True"), ("b.zarr", "True → None")):
        with pytest.raises(FingerprintError, match=f"compile: {change}"):
            run_job(job(store == "a.zarr", store), threads)
    planned = (plan_job(job(compiled, "c.zarr"), threads).extract.worker_bytes for compiled in (False, True))
    assert next(planned) < next(planned)


def test_precision__is_part_of_what_a_store_is_made_from(make_job: MakeJob, threads: ThreadExecutor) -> None:
    def job(precision: str, store: str) -> JobSpec:
        network = {"name": "dneuro:convnet", "weights": "none", "precision": precision}
        return make_job(network=network, store=store)

    exact = dn.open(run_job(job("float32", "a.zarr"), threads).store)
    half = dn.open(run_job(job("bfloat16", "b.zarr"), threads).store)
    assert (exact.attrs["precision"], half.attrs["precision"]) == ("float32", "bfloat16")
    assert half["relu1"].dtype == np.float32
    error = np.abs(half["relu1"].values - exact["relu1"].values).max() / exact["relu1"].values.max()
    assert 1e-5 < error < 0.05
    with pytest.raises(FingerprintError, match="precision: float32 → bfloat16"):
        run_job(job("bfloat16", "a.zarr"), threads)


FULL = """
import torch
from dneuro.nets.convnet import ConvNet

class Full(torch.nn.ReLU):
    def forward(self, x):
        if x.device.type != "meta" and x.abs().sum() > 0 and len(x) == 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)

def make():
    network = ConvNet()
    network.relu1 = Full()
    network.preprocessing = {"color": "grey"}
    return network
"""


def test_card__without_room_ends_the_job_with_the_way_out(
    make_job: MakeJob, tmp_path: Path, threads: ThreadExecutor
) -> None:
    (tmp_path / "full.py").write_text(FULL)
    network = {"name": f"python:{tmp_path / 'full.py'}:make"}
    with pytest.raises(DeviceError, match=r"no room for a batch of 8 images: CUDA out of memory\. Tried") as caught:
        run_job(make_job(network=network, batch=8), threads)
    assert str(caught.value.hint).startswith("extract: {batch: 4}")
    done = run_job(make_job(network=network, batch=4), threads)
    assert np.isfinite(dn.open(done.store)["relu1"].values).all(), "the same store goes on with the smaller batch"


def test_card__with_less_than_planned_is_refused_before_the_network_is_there(
    make_job: MakeJob, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begin(make_job(batch=8))
    pipeline.forget()
    large = dataclasses.replace(work.plan, device="cuda", device_bytes=CUDA_BYTES + 4 * GiB)
    work = dataclasses.replace(work, plan=large)
    monkeypatch.setattr("dneuro.nets.device.free_bytes", lambda device: 3 * GiB)
    monkeypatch.setattr("dneuro.nets.load.load", lambda *_, **__: pytest.fail("the network was loaded"))
    with pytest.raises(DeviceError, match=r"has 3 GiB free, the network with batches of 8 needs 4 GiB of it"):
        extract_unit(work, 0, work.missing(0))
