"""A job that is submitted twice at the same moment: the driver that holds its lease is the one that is asked about."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dneuro as dn
from dneuro.cluster import DriverRef, backend_of, processes
from dneuro.cluster.slurm.backend import SlurmBackend
from dneuro.errors import BusyError, DneuroError
from dneuro.jobs import attempt, ending, submitting
from dneuro.jobs.asking import Asking, drivers, liveliest
from dneuro.jobs.drive import drive
from dneuro.jobs.folder import JobFolder, folders
from dneuro.jobs.lease import holder
from dneuro.jobs.watching import status
from dneuro.spec import JobSpec, ProfileSpec

MakeJob = Callable[..., JobSpec]

# Gives no number before two have asked for one, as when both have seen that nobody drives the job.
SBATCH = """\
for number in 101 102; do mkdir $QUEUE/$number 2>/dev/null && break; done
echo "${2#--job-name=}" >$QUEUE/$number/name
while [ ! -d $QUEUE/102 ]; do sleep 0.02; done
echo RUNNING >$QUEUE/$number/state
echo $number
"""
SQUEUE = 'for job in $QUEUE/1*; do echo "$(basename $job)|$(cat $job/state)|None|$(cat $job/name)"; done'
SCANCEL = """\
echo "$@" >>$QUEUE/cancelled
for word in "$@"; do [ -d $QUEUE/$word ] && echo CANCELLED >$QUEUE/$word/state; done
exit 0
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a queue that the test makes believe: a folder with a state for each job, and what was cancelled."""
    place, commands = tmp_path / "queue", tmp_path / "bin"
    place.mkdir()
    commands.mkdir()
    for name, shell in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "sacct": "exit 1"}.items():
        (commands / name).write_text(f"#!/bin/bash\n{shell}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(place))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return place


@pytest.fixture
def profile(tmp_path: Path) -> ProfileSpec:
    pools = {"extract": {"memory": "4GiB"}}
    return ProfileSpec.model_validate({"backend": "slurm", "state": str(tmp_path / "state"), "pools": pools})


def submitted_twice(job: JobSpec, profile: ProfileSpec) -> JobFolder:
    """Submit a job from two threads that meet in sbatch."""
    both = [threading.Thread(target=dn.submit, args=(job, profile)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    (folder,) = folders(profile.state)
    return folder


def test_driver__that_has_the_lease_is_asked_about_whichever_was_submitted_last(
    make_job: MakeJob, profile: ProfileSpec, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = submitted_twice(make_job(), profile)
    last = folder.read("driver")["id"]
    first = {"101": "102", "102": "101"}[last]
    hosts, seen = [socket.gethostname(), "node7"], []

    @contextlib.contextmanager
    def looked_at(self: SlurmBackend, **settings: Any) -> Iterator[Any]:
        """Its driver has the lease; from here on it is looked at from another machine."""
        hosts.pop()
        monkeypatch.delenv("SLURM_JOB_ID")
        (queue / last / "state").write_text("FAILED")  # it has found the first one at work
        seen.append(status(folder).state)
        with pytest.raises(BusyError, match="on node7 is at work on job"):
            submitting.resume(folder)
        assert not (queue / "cancelled").exists(), "nobody's job was ended"
        seen.append(ending.cancel(folder, grace=5).status.state)
        raise DneuroError("its job was cancelled")
        yield

    monkeypatch.setattr(SlurmBackend, "open", looked_at)
    monkeypatch.setattr(attempt, "TICK", 600)  # else it would see that it is to end
    monkeypatch.setenv("SLURM_JOB_ID", first)
    monkeypatch.setenv("SLURM_JOB_NAME", (queue / first / "name").read_text().strip())
    monkeypatch.setattr(socket, "gethostname", lambda: hosts[-1])
    with pytest.raises(DneuroError, match="its job was cancelled"):
        drive(str(folder.path))
    assert seen == ["starting", "cancelled"]
    told = (queue / "cancelled").read_text().splitlines()
    assert told == [f"--batch --signal=TERM {first}"], "the other one has ended"


def test_drivers__are_the_one_with_the_lease_and_the_one_that_waits(
    make_job: MakeJob, profile: ProfileSpec, queue: Path
) -> None:
    folder = submitted_twice(make_job(), profile)
    last = folder.read("driver")["id"]
    first = {"101": "102", "102": "101"}[last]
    hold(folder, {"host": "node7", "pid": 7}, DriverRef("slurm", first))
    for one, other, state in [("RUNNING", "PENDING", "running"), ("COMPLETED", "PENDING", "pending"),
                              ("PENDING", "FAILED", "pending"), ("FAILED", "COMPLETED", "gone")]:  # fmt: skip
        (queue / first / "state").write_text(one)
        (queue / last / "state").write_text(other)
        said = Asking().states(drivers(folder, holder(folder.attempts)), backend_of(profile))
        assert liveliest(said) == state


def test_cancel__ends_the_process_that_has_the_lease_whichever_was_started_last(
    make_job: MakeJob, tmp_path: Path
) -> None:
    here = ProfileSpec(backend="local", state=str(tmp_path / "state"))
    folder = JobFolder.of(here.state, make_job())
    folder.write(make_job(), here, {}, "submit")
    working, left = (processes.start("local", folder.path, ["sleep", time]) for time in ("60", "0"))
    hold(folder, {**working.details, "pid": int(working.id)}, working)
    folder.remember("driver", left.to_dict())
    folder.remember("status", {"state": "running", "attempt": 1})
    assert processes.state(working) == "running"
    assert ending.cancel(folder, grace=5).status.state == "cancelled"
    assert processes.state(working) == "gone"


def hold(folder: JobFolder, content: dict[str, Any], driver: DriverRef) -> None:
    """Leave the lease of a driver that is at work."""
    place = folder.attempt(1)
    place.mkdir(parents=True)
    lease = {"started": 1.0, "boot": 1.0, "ended": None, **content, "driver": driver.to_dict()}
    (place / "lease.json").write_text(json.dumps(lease))
