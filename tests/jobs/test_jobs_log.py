"""The job's folder: the job as it was run, its state, every event of every run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import CancelledError, PartialError
from dneuro.extract import task
from dneuro.jobs import driver
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]


def job_folder(state: Path) -> Path:
    (folder,) = (state / "jobs").iterdir()
    return folder


def status(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job_folder(state) / "status.json").read_bytes())
    return found


def test_log__keeps_every_event_of_every_run(make_job: MakeJob, threads: ThreadExecutor, tmp_path: Path) -> None:
    job, state = make_job({"moments": None}), tmp_path / "state"
    for _ in range(2):
        run_job(job, threads, state=state)
    folder = job_folder(state)
    assert folder.name.startswith("small-")
    assert JobSpec.model_validate(json.loads((folder / "job.json").read_bytes())) == job
    for number in ("001", "002"):
        lines = (folder / "attempts" / number / "events.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        kinds = [e["kind"] for e in found if e["step"] == "extract"]
        assert (kinds[0], kinds[-1]) == ("started", "finished")
        assert found[-1]["step"] == "moments"
        assert all(e["time"] > 1e9 for e in found)
    assert status(state)["state"] == "done"
    assert status(state)["attempt"] == 2
    assert status(state)["steps"]["extract"] == {"done": 40, "total": 40, "what": "images", "kind": "finished"}


def test_log__is_kept_apart_for_each_store(make_job: MakeJob, threads: ThreadExecutor, tmp_path: Path) -> None:
    for store in ("a.zarr", "b.zarr"):
        run_job(make_job(store=store), threads, state=tmp_path / "state")
    assert len(list((tmp_path / "state" / "jobs").iterdir())) == 2


def test_log__of_nobody_is_not_written(make_job: MakeJob, threads: ThreadExecutor, tmp_path: Path) -> None:
    run_job(make_job(), threads)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts.zarr", "acts.zarr.units"]


@pytest.mark.parametrize("state", ["failed", "partial", "cancelled"])
def test_status__says_how_a_run_ended(
    make_job: MakeJob, threads: ThreadExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("torn")

    def stop(*_: Any) -> Any:
        assert status(tmp_path)["state"] == "running"
        raise KeyboardInterrupt

    if state == "partial":
        monkeypatch.setattr(task, "batches", fail)
    else:
        monkeypatch.setattr(driver, "extract", fail if state == "failed" else stop)
    expected = {"failed": ValueError, "partial": PartialError, "cancelled": CancelledError}[state]
    with pytest.raises(expected):
        run_job(make_job(), threads, state=tmp_path)
    assert status(tmp_path)["state"] == state
