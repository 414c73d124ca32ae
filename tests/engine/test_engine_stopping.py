"""A call that fails comes back when none of its tasks is at work any more."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.engine import DaskExecutor, ThreadExecutor, reduce
from dneuro.engine.visits import Reader, Visit, visit
from dneuro.engine.window import Window
from dneuro.kernels import Moments

BANDS = [(i, i + 1) for i in range(400)]
X = xr.DataArray(da.zeros((400, 4), chunks=(1, 2), dtype="f4"), dims=("image", "channel"))
PAUSE = 0.02
"""Seconds between two writes: all bands take eight seconds."""


class Writes:
    """A visit that writes a file per band, or in one go; or fails if another has begun, whichever that is."""

    def __init__(self, folder: Path, *, reads: bool, fails: bool = False) -> None:
        self.folder, self.reads, self.fails = folder, reads, fails

    def __call__(self, reader: Reader, name: str) -> str:
        if self.fails:
            try:
                (self.folder / "begun").mkdir()
            except FileExistsError:
                while not written(self.folder):
                    time.sleep(PAUSE)
                raise OSError("no space left on device") from None
        for band in range(reader.bands if self.reads else 25):
            if self.reads:
                reader.read(band, 0)
            (self.folder / f"{name}-{band}").write_text("")
            time.sleep(PAUSE)
        return name


@pytest.fixture(params=["threads", "cluster"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "threads":
        yield ThreadExecutor(2)
    else:
        yield DaskExecutor(request.getfixturevalue("cluster"))


def written(folder: Path) -> int:
    return len(list(folder.glob("*-*")))


@pytest.mark.parametrize("reads", [True, False])
def test_visit__a_task_that_fails_ends_the_others_first(executor: Any, tmp_path: Path, reads: bool) -> None:
    visits = [Visit(((0, 2),), (f"task{number}",)) for number in range(5)]
    with pytest.raises(OSError, match="no space left"):
        list(visit([X], Writes(tmp_path, reads=reads, fails=True), visits, executor, bands=BANDS))
    left = written(tmp_path)
    time.sleep(10 * PAUSE)
    assert written(tmp_path) == left, "nobody writes any more"
    if reads:
        assert 1 <= left < 400, "a task that reads ends at its next block"
    else:
        assert left == 25, "one that does not is waited for"


def test_visit__an_interrupt_ends_its_tasks_first(executor: Any, tmp_path: Path) -> None:
    visits = [Visit(((0, 2),), (f"task{number}",)) for number in range(6)]

    def interrupt(future: Any) -> Any:
        while not written(tmp_path):
            time.sleep(PAUSE)
        raise KeyboardInterrupt

    executor.wait = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(visit([X], Writes(tmp_path, reads=True), visits, executor, bands=BANDS))
    left = written(tmp_path)
    time.sleep(10 * PAUSE)
    assert written(tmp_path) == left < 400


def test_visit__a_caller_that_fails_ends_its_tasks_first(executor: Any, tmp_path: Path) -> None:
    visits = [Visit(((0, 2),), ("writes",)), Visit(((0, 2),), ("writes too",))]
    found = visit([X], Writes(tmp_path, reads=False), visits, executor, bands=BANDS)
    with pytest.raises(OSError, match="the result does not fit"), contextlib.closing(found):
        for _ in found:
            while len({path.name.rpartition("-")[0] for path in tmp_path.glob("*-*")}) < 2:
                time.sleep(PAUSE)  # one that has not begun yet would not be begun any more
            raise OSError("the result does not fit")
    assert written(tmp_path) == 50


def test_reduce__a_run_that_is_stopped_reads_no_further(executor: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 16)
    monkeypatch.setattr("dneuro.engine.plan.MiB", 1)

    def noted(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["array-location"]:
            first = block_info[0]["array-location"][0][0]
            if first % 25 == 0 and any(tmp_path.iterdir()):  # a run of 25 blocks begins, and is not the first one
                raise OSError("unreadable")
            (tmp_path / f"block-{first:03d}").write_text("")
            time.sleep(10 * PAUSE)
        return block

    raw = da.zeros((400, 4), chunks=(1, 4), dtype="f4")
    x = xr.DataArray(raw.map_blocks(noted, dtype="f4", meta=np.empty((0, 0), "f4")), dims=("image", "channel"))
    with pytest.raises(OSError, match="unreadable"):
        reduce([x], {"moments": Moments()}, executor)
    left = written(tmp_path)
    time.sleep(20 * PAUSE)
    assert written(tmp_path) == left < 20


def test_window__what_follows_a_failure_is_not_stopped(executor: Any) -> None:
    """Tokens belong to one window."""
    with pytest.raises(ZeroDivisionError), contextlib.closing(iter(Window(executor, [(0, divmod, (1, 0))]))) as ended:
        for _, future in ended:
            future.result()
    found = {key: future.result() for key, future in Window(executor, ((i, divmod, (7, i)) for i in range(1, 5)))}
    assert found == {i: divmod(7, i) for i in range(1, 5)}


def test_similarity__a_refused_write_leaves_nothing_behind(
    executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)
    values = np.random.default_rng(0).standard_normal((200, 64)).astype("f4")

    def broken(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"] == (19, 7):
            raise OSError("no space left on device")
        time.sleep(0.01)
        return block

    lazy = da.from_array(values, chunks=(10, 8)).map_blocks(broken, dtype="f4", meta=np.empty((0, 0), "f4"))
    x = xr.DataArray(lazy, dims=("image", "channel"))
    with pytest.raises(OSError, match="no space left"), events.listening(lambda event: None):
        dn.similarity(x, metric="pearson", out=tmp_path / "matrix.zarr", persist=False, client=executor)
    time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []
