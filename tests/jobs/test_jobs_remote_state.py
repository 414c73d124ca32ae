"""The state of a job in an object store, with a driver that is a process of this machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dneuro as dn
from dneuro.cluster import backend_of, processes
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, UsageError
from dneuro.jobs import ending, submitting
from dneuro.jobs.driver import run_job
from dneuro.jobs.folder import folders
from dneuro.spec import JobSpec, ProfileSpec

MakeJob = Callable[..., JobSpec]
STATE = "s3://dneuro-test/state"
LONG: dict[str, Any] = {"images": {"source": "digits", "sample": 400}, "batch": 1, "images_per_unit": 8}


@pytest.fixture
def profile(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProfileSpec:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pools = {"extract": {"workers": 1, "memory": "3GiB"}}
    return ProfileSpec.model_validate({"backend": "local", "state": STATE, "pools": pools})


def log(job: Any, tmp_path: Path) -> Path:
    return tmp_path / "cache" / "dneuro" / "drivers" / f"{job.id}.log"


def test_job__whose_state_is_in_an_object_store_is_submitted_from_here(
    make_job: MakeJob, profile: ProfileSpec, tmp_path: Path, threads: ThreadExecutor,
    same_store: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    spec = make_job({"moments": None}, store="there.zarr", **LONG)
    job = dn.submit(spec, profile)
    with pytest.raises(BusyError, match="is at work on"):
        dn.submit(spec, profile)
    assert job.wait(120).state == "done", log(job, tmp_path).read_text()
    assert "extract: " in log(job, tmp_path).read_text()
    assert [one.id for one in dn.jobs(cluster=profile)] == [job.id]
    assert {entry["kind"] for entry in job.logs()} >= {"started", "finished"}
    same_store(tmp_path / "there.zarr", run_job(make_job({"moments": None}, store="here.zarr", **LONG), threads).store)
    ending.clear(ending.waste(list(folders(STATE))))
    assert list(folders(STATE)) == []
    assert not log(job, tmp_path).exists(), "it goes with the job's folder"


def test_driver__that_died_is_told_from_one_that_lives_and_its_job_goes_on(
    make_job: MakeJob, profile: ProfileSpec, tmp_path: Path
) -> None:
    spec = make_job(**LONG)
    job = dn.submit(spec, profile)
    done = lambda: len(list(tmp_path.glob("acts.zarr.units/extract/fc/*.done")))  # noqa: E731
    over = time.monotonic() + 120
    while done() < 2:
        assert time.monotonic() < over, log(job, tmp_path).read_text()
        time.sleep(0.05)
    ref = job._folder.read_driver()
    assert ref is not None
    os.kill(int(ref.id), signal.SIGKILL)
    over = time.monotonic() + 30
    while job.status().state != "lost":
        assert time.monotonic() < over
        time.sleep(0.1)
    job.resume()
    assert job.wait(120).state == "done", log(job, tmp_path).read_text()
    assert job.status().found["attempt"] == 2


def test_driver__that_ended_before_it_began_says_where_its_output_is(
    make_job: MakeJob, profile: ProfileSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "command_of", lambda folder: ["sh", "-c", "echo no room; exit 1"])
    job = dn.submit(make_job(), profile)
    now = job.wait(30)
    assert now.state == "lost"
    assert str(log(job, tmp_path)) in now.found["error"]["message"]
    assert log(job, tmp_path).read_text() == "no room\n"


def test_slurm__needs_a_folder_and_says_so(make_job: MakeJob, bucket: Any) -> None:
    profile = ProfileSpec.model_validate(
        {"backend": "slurm", "state": STATE, "pools": {"extract": {"memory": "2GiB"}}}
    )
    with pytest.raises(UsageError, match="scripts, logs and keys of these machines need a folder") as caught:
        dn.submit(make_job(), profile)
    assert "a folder that all machines see" in str(caught.value.hint)
    assert list(folders(STATE)) == []


def test_log__lies_in_the_folder_of_a_job_on_a_disk(tmp_path: Path) -> None:
    assert processes.log_of(tmp_path) == tmp_path / "driver.log"
    assert backend_of(ProfileSpec(backend="local")).preview(tmp_path, ["true"], "x") == "true\n"
