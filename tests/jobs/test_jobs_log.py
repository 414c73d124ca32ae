"""The job's folder: the job as it was run, its state, every event of every run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import CancelledError, PartialError
from dneuro.extract import task
from dneuro.jobs import driver
from dneuro.jobs.driver import run_job
from dneuro.jobs.folder import JobFolder
from dneuro.spec import JobSpec, ProfileSpec

MakeJob = Callable[..., JobSpec]


def job_folder(state: Path) -> Path:
    (folder,) = (state / "jobs").iterdir()
    return folder


def status(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job_folder(state) / "status.json").read_bytes())
    return found


def profile(state: Path) -> ProfileSpec:
    return ProfileSpec(backend="local", state=str(state))


@pytest.mark.usefixtures("threads_as_machines")
def test_log__keeps_every_event_of_every_run(make_job: MakeJob, tmp_path: Path) -> None:
    job, state = make_job({"moments": None}), tmp_path / "state"
    for _ in range(2):
        dn.run(job, cluster=profile(state))
    folder = job_folder(state)
    assert folder.name.startswith("small-")
    assert JobFolder(folder).read_job() == job
    assert JobFolder(folder).read_profile() == profile(state)
    for number in ("001", "002"):
        lines = (folder / "attempts" / number / "events.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        kinds = [e["kind"] for e in found if e["step"] == "extract"]
        assert (kinds[0], kinds[-1]) == ("started", "finished")
        assert found[-1]["step"] == "moments"
        assert all(e["time"] > 1e9 for e in found)
    assert status(state)["state"] == "done"
    assert status(state)["attempt"] == 2
    steps = {step["step"]: step for step in status(state)["steps"]}
    assert list(steps) == ["extract", "moments"]
    assert {key: steps["extract"][key] for key in ("state", "done", "total", "what")} == {
        "state": "done", "done": 40, "total": 40, "what": "images"}  # fmt: skip
    assert status(state)["units"] == {"total": 3, "done": 3, "failed": 0, "masked": 0}
    assert status(state)["exit_code"] == 0


@pytest.mark.usefixtures("threads_as_machines")
def test_log__is_kept_apart_for_each_store(make_job: MakeJob, tmp_path: Path) -> None:
    for store in ("a.zarr", "b.zarr"):
        dn.run(make_job(store=store), cluster=profile(tmp_path / "state"))
    assert len(list((tmp_path / "state" / "jobs").iterdir())) == 2


def test_log__of_nobody_is_not_written(make_job: MakeJob, threads: ThreadExecutor, tmp_path: Path) -> None:
    run_job(make_job(), threads)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts.zarr", "acts.zarr.units"]


@pytest.mark.usefixtures("threads_as_machines")
@pytest.mark.parametrize(("state", "code"), [("failed", 4), ("partial", 3), ("cancelled", 5)])
def test_status__says_how_a_run_ended(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    def fail(*_: Any, **settings: Any) -> Any:
        raise ValueError("torn")

    def stop(*_: Any, **settings: Any) -> Any:
        assert status(tmp_path)["state"] == "running"
        raise KeyboardInterrupt

    if state == "partial":
        monkeypatch.setattr(task, "batches", fail)
    else:
        monkeypatch.setattr(driver, "extract", fail if state == "failed" else stop)
    expected = {"failed": ValueError, "partial": PartialError, "cancelled": CancelledError}[state]
    with pytest.raises(expected):
        dn.run(make_job(), cluster=profile(tmp_path))
    found = status(tmp_path)
    assert (found["state"], found["exit_code"], found["error"]["type"]) == (state, code, expected.__name__)
    assert found["units"]["failed"] == (3 if state == "partial" else 0) if found["units"] else state != "partial"
    (log,) = job_folder(tmp_path).glob("attempts/001/events.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["kind"] == "failed"
    assert ("torn" in last["trace"]) == (state == "failed"), "a traceback where nobody raised it on purpose"
