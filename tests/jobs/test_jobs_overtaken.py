"""A driver that stood still while another took over wakes up, and leaves everything to that one."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError
from dneuro.jobs import attempt as attempts
from dneuro.jobs.attempt import Attempt
from dneuro.jobs.driver import run_job
from dneuro.jobs.folder import JobFolder
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    (tmp_path / "jobs" / "x-1").mkdir(parents=True)
    return JobFolder(tmp_path / "jobs" / "x-1")


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in time"
        time.sleep(0.02)


@pytest.mark.parametrize("ends", [True, False], ids=["done", "failed"])
def test_overtaken_driver__leaves_the_state_to_its_successor(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(attempts, "TICK", 0.02)
    successor = {"attempt": 2, "state": "done", "exit_code": 0}
    try:
        with Attempt(folder, ["extract"], "store") as first:
            first.machines_are_up(object())
            assert folder.read("status")["state"] == "running"
            folder.attempt(2).mkdir()
            folder.remember("status", successor)
            events.emit("progress", "extract", done=1, total=2, what="images")
            until(lambda: not first._changed)  # the status thread has looked at it
            assert folder.read("status") == successor
            if not ends:
                raise BusyError("another run has taken over")
    except BusyError:
        pass
    assert folder.read("status") == successor


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "attended"])
def test_overtaken_driver__at_which_nobody_sits_ends(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    """Its queue has given up its node and started it again; here it would keep workers of its own."""
    monkeypatch.setattr(attempts, "TICK", 0.02)
    ended: list[int] = []
    monkeypatch.setattr(attempts.os, "kill", lambda pid, number: ended.append(number))
    with Attempt(folder, ["extract"], "store", detached=detached) as first:
        time.sleep(0.2)
        assert ended == []
        folder.attempt(2).mkdir()
        if detached:
            until(lambda: ended == [signal.SIGTERM])
        else:
            time.sleep(0.2)
            assert ended == []
            assert first._ticker.is_alive()


def test_status__goes_on_after_a_disk_that_did_not_answer(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "TICK", 0.02)
    honest, asked = JobFolder.read, []

    def read(self: JobFolder, name: str) -> dict[str, Any]:
        if name == "cancel":
            asked.append(name)
            raise OSError(116, "Stale file handle")
        return honest(self, name)

    monkeypatch.setattr(JobFolder, "read", read)
    with Attempt(folder, ["extract"], "store") as running:
        until(lambda: len(asked) >= 2)
        events.emit("progress", "extract", done=7, total=9, what="images")
        until(lambda: honest(folder, "status")["steps"][0]["done"] == 7)
        assert running._ticker.is_alive()
    assert honest(folder, "status")["state"] == "done"


@pytest.mark.parametrize(
    ("kind", "step", "unpublished"),
    [
        ("progress", "train", "train/*.done"),
        ("finished", "extract", "extract/statistics.done"),
        ("started", "svd", "results/svd/*.done"),
        ("started", "coupled_nmf", "results/coupled_nmf/*.done"),
        ("started", "report", "report/*.done"),
    ],
)
def test_overtaken_run__publishes_nothing_more(
    make_job: MakeJob, threads: ThreadExecutor, kind: str, step: str, unpublished: str
) -> None:
    steps: dict[str, dict[str, Any]] = {
        "train": {"train": {"epochs": 1}},
        "svd": {"svd": {"rank": 2, "layer": "fc"}},
        "coupled_nmf": {"coupled_nmf": {"rank": 2, "layer": ["relu1"], "max_iter": 2}},
        "report": {"report": {"neurons": 1, "images": 1}},
    }
    job = make_job(*([steps[step]] if step in steps else []))
    units = units_folder(job.store)
    seen: list[str] = []

    def overtake(event: events.Event) -> None:
        seen.append(event.step)
        if (event.kind, event.step) == (kind, step):
            (Path(str(units)) / "attempts" / "002").mkdir(exist_ok=True)

    with events.listening(overtake), pytest.raises(BusyError, match=r"another run has taken over; .*is left to it"):
        run_job(job, threads)
    assert step in seen
    assert not list(Path(str(units)).glob(unpublished))
