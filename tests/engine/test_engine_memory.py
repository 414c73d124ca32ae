"""The plan against what workers really use."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import at_work

CHUNKS, ROWS, NEURONS = 26, 8192, 512
LIMIT = 400 * 2**20


@pytest.fixture(scope="module")
def large() -> xr.DataArray:
    """416 MiB of activations, more than a worker may use, made where they are wanted."""

    def make(block_info: Any = None) -> np.ndarray:
        number = block_info[None]["chunk-location"][0]
        rows = np.arange(ROWS, dtype="f4") % np.float32(60 - number)  # top images are found early, as in real data
        return np.multiply.outer(rows, np.arange(NEURONS, dtype="f4") % np.float32(5 + number % 3))

    shape = ((ROWS,) * CHUNKS, (NEURONS,))
    lazy = da.map_blocks(make, chunks=shape, dtype="f4", meta=np.empty((0, 0), "f4"))
    return xr.DataArray(lazy, dims=("image", "channel"))


def peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("analysis", "parameters"),
    [
        ("top_images", {"k": 50}),
        ("similarity", {"metric": "pearson"}),
        ("svd", {"rank": 2, "standardize": "center", "method": "krylov"}),
        ("svd", {"rank": 2, "method": "gram"}),
    ],
    ids=["top_images", "similarity", "krylov", "gram"],
)
def test_plan__bounds_the_measured_peak_of_a_worker(
    cluster: Any, large: xr.DataArray, analysis: str, parameters: dict[str, Any]
) -> None:
    # Peaks are since the start of a worker; what earlier analyses left behind makes the test harder, not easier.
    plan = dn.plan(analysis, large, client=cluster, **parameters)
    assert plan.worker_bytes <= LIMIT < large.nbytes
    result = getattr(dn, analysis)(large, client=cluster, **parameters)
    measured = max(cluster.run(peak).values())
    assert measured <= plan.worker_bytes, (measured / 2**20, plan.worker_bytes / 2**20)
    assert result.attrs.get("passes", 1) <= plan.passes


def test_worker__gives_back_what_it_keeps_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(at_work, "time", SimpleNamespace(monotonic=lambda: now[0]))
    worker = at_work._AtWork()
    assert not worker.begin(), "it has just begun"
    now[0] += 10
    assert not worker.begin(), "another thread is at work"
    worker.end()
    worker.end()
    now[0] += at_work.REST / 2
    assert not worker.begin(), "task follows task"
    worker.end()
    now[0] += 2 * at_work.REST
    assert worker.begin()


def test_task__begins_after_a_rest_with_no_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(at_work, "release_memory", lambda: seen.append("released"))
    monkeypatch.setattr(at_work, "keep_memory", lambda **settings: True)
    monkeypatch.setattr(at_work, "_limit", lambda: None)
    stand_in = SimpleNamespace(begin=lambda: not seen, end=lambda: seen.append("end"), busy=True)
    monkeypatch.setattr(at_work, "_AT_WORK", stand_in)
    for _ in range(2):
        at_work.run_task(seen.append, "task")
    assert seen == ["released", "task", "end", "task", "end"]


@pytest.mark.parametrize(("busy", "limit", "released"), [(True, 1, True), (False, 1, False), (True, 2**50, False)])
def test_task__gives_back_in_between_only_on_a_worker_that_is_full(
    monkeypatch: pytest.MonkeyPatch, busy: bool, limit: int, released: bool
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(at_work, "release_memory", lambda: seen.append("released"))
    monkeypatch.setattr(at_work, "_limit", lambda: limit)
    monkeypatch.setattr(at_work, "_AT_WORK", SimpleNamespace(busy=busy, left=0))
    at_work.give_back_if_full()
    assert bool(seen) is released


def test_task__at_work_gives_back_again_once_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def release() -> None:
        now[0] = 0.7

    monkeypatch.setattr(at_work, "release_memory", release)
    monkeypatch.setattr(at_work, "_limit", lambda: 1000)
    monkeypatch.setattr(at_work, "_AT_WORK", SimpleNamespace(busy=True, left=0))
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1000 * now[0]))
    monkeypatch.setattr(at_work.psutil, "Process", lambda: held)
    for held_before, held_after in [(0.8, 0.7), (0.72, 0.72), (0.75, 0.75), (0.77, 0.7), (0.6, 0.6), (0.69, 0.7)]:
        now[0] = held_before
        at_work.give_back_if_full(at_work=True)
        assert now[0] == held_after
    now[0] = 0.71
    at_work.give_back_if_full()
    assert now[0] == 0.7, "no task begins with what the last one kept"
