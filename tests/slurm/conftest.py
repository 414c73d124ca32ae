"""A real Slurm on this machine, started for the tests: a controller and two nodes, on loopback."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dneuro.cluster.slurm import queue
from dneuro.spec import ProfileSpec

DEPLOY = Path(__file__).parents[2] / "deploy" / "slurm"
COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch")


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    places = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [command for command in COMMANDS if shutil.which(command, path=places) is None]
    return f"not installed: {', '.join(absent)} (deploy/slurm/start says how)" if absent else ""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Start Slurm in a folder of its own; give that folder."""
    if why := missing():
        pytest.skip(why)
    # Not pytest's own temporary folder: munge wants one that everybody may look into.
    with tempfile.TemporaryDirectory(prefix="dneuro-slurm-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("SLURM_TEST_PORT", str(free_ports()))
        started = subprocess.run([DEPLOY / "start", folder], capture_output=True, text=True, check=False)
        if started.returncode:
            pytest.fail(f"Slurm did not start: {started.stderr}")
        patch.setenv("SLURM_CONF", started.stdout.strip().partition("=")[2])
        yield folder
        subprocess.run([DEPLOY / "stop", folder], check=True, capture_output=True)


def free_ports(count: int = 3) -> int:
    """The first of so many neighbouring ports that are free."""
    for first in range(17000, 20000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture
def make_profile(slurm: Path, tmp_path: Path) -> Callable[..., ProfileSpec]:
    """Return ``make_profile(pools, **settings)``: a profile of this Slurm; the test leaves no job behind."""

    def make(extract: dict[str, Any] | None = None, **settings: Any) -> ProfileSpec:
        pools = {"extract": {"workers": 2, "memory": "3GiB", **(extract or {})}}
        return ProfileSpec.model_validate(
            {
                "backend": "slurm",
                "state": str(tmp_path / "state"),
                "security": {"bind": "lo"},
                "driver": {"cpus": 1, "memory": "3GiB"},
                "start_timeout": "90s",
                "pools": pools,
                **settings,
            }
        )

    return make


@pytest.fixture(autouse=True)
def nothing_left(slurm: Path) -> Iterator[None]:
    """After each test the queue is empty, whatever it promised."""
    yield
    left = in_queue()
    if left:
        queue.cancel(left)
    wait_until(lambda: not in_queue(), 30, "jobs to end")
    assert left == [], "the test has left jobs in the queue"


def in_queue() -> list[str]:
    """The numbers of the jobs that wait or run; those that are being ended do not count."""
    return [number for number, job in queue.look().items() if not job.ended and job.state != "COMPLETING"]


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for `true()` to be so, and return it."""
    over = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < over, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return found


def start_again(number: str, *, ends: str = "COMPLETED") -> None:
    """Have a job start that was queued again, and that Slurm would hold for two minutes from then on.

    It runs after that, or has ended already in the state `ends`.
    """
    asked = -math.inf

    def has_started() -> bool:
        nonlocal asked
        job = queue.look()[number]
        # More than once: Slurm says until when when the last of the job has ended, which may be after the job waits.
        if job.state == "PENDING" and time.monotonic() - asked > 5:
            asked = time.monotonic()
            with contextlib.suppress(queue.SlurmError):  # it has just started
                # Not now: both in whole seconds, a start in that one of its end is to slurmd one that was called off.
                queue.call("scontrol", "update", f"jobid={number}", "starttime=now+2")
        held = job.waits and ("held" in job.reason.lower() or job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"))
        assert not held and (not job.ended or job.state == ends), f"{job}\n{told_of(number)}"
        return job.state in ("RUNNING", ends)

    wait_until(has_started, 120, f"job {number} to start again")


def told_of(number: str) -> str:
    """What the logs of Slurm's daemons say of a job."""
    its = re.compile(rf"(?i)\b(job|jobid=|stepid=)\s?{number}\b|\[{number}\.")
    logs = sorted((Path(os.environ["SLURM_CONF"]).parent / "logs").glob("slurm*.log"))
    lines = [(log.name, line) for log in logs for line in log.read_text(errors="replace").splitlines()]
    return "\n".join(f"{name}: {line}" for name, line in lines if its.search(line))


def node_of(number: str) -> str:
    """The node that a job runs on."""
    return queue.call("squeue", "--noheader", f"--jobs={number}", "--format=%N").strip()


def processes_of(numbers: list[str]) -> list[psutil.Process]:
    """The processes of jobs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_JOB_ID") in numbers:
                found.append(process)
    return found


@contextlib.contextmanager
def stopped_node(slurm: Path, node: str) -> Iterator[None]:
    """Stop the daemon of a node, whose jobs' processes go on; it is back after the block."""
    subprocess.run(["kill", (slurm / "run" / f"slurmd-{node}.pid").read_text().strip()], check=True)
    try:
        yield
    finally:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        subprocess.run(["slurmd", "-N", node], check=True, env={**os.environ, "PATH": path})
    # "idle*" and "drained" are names of states, too, in which it is given nothing to do.
    said = lambda: set(queue.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split())  # noqa: E731
    wait_until(lambda: said() <= {"idle", "mixed", "allocated"}, 60, f"node {node} to be back")
