"""A scheduler apart from its driver can be lost under a run: that has one name, and other errors keep theirs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster.kubernetes import scheduler as scheduler_module
from dneuro.cluster.kubernetes.scheduler import noticed_when_lost
from dneuro.engine.executors import DaskExecutor
from dneuro.errors import DneuroError, PartialError, SchedulerLostError
from dneuro.jobs.attempt import INTERRUPTED, Attempt
from dneuro.jobs.folder import JobFolder

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path, port: int) -> Iterator[Start]:
    """Return ``start("scheduler" or "worker")``, which starts one as a process of its own, at the same address."""
    started = []

    def run(kind: str) -> subprocess.Popen[bytes]:
        own = {"scheduler": ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"],
               "worker": [f"tcp://127.0.0.1:{port}", "--no-nanny", "--no-dashboard"]}[kind]  # fmt: skip
        command = [sys.executable, "-m", "dask", kind, *own, "--dashboard-address", "127.0.0.1:0"]
        with (tmp_path / f"{kind}.log").open("ab") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(start: Start, port: int) -> subprocess.Popen[bytes]:
    """A scheduler that listens."""
    process = start("scheduler")
    over = time.monotonic() + 60
    while time.monotonic() < over:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process
        time.sleep(0.05)
    raise AssertionError("it does not listen")


@pytest.fixture
def client(scheduler: Any, port: int) -> Iterator[Any]:
    from distributed import Client

    with Client(f"tcp://127.0.0.1:{port}", timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "ANSWER", 2.0)


@pytest.mark.parametrize("error", [ValueError("x"), OSError("no disk"), DneuroError("x"), PartialError("x")])
def test_errors__are_left_as_they_are_while_the_scheduler_answers(client: Any, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, noticed_when_lost(client):
        raise error
    assert caught.value is error


def test_errors__are_said_to_come_of_a_scheduler_that_is_gone(client: Any, scheduler: Any, port: int) -> None:
    with (
        pytest.raises(SchedulerLostError, match=rf"scheduler at tcp://127\.0\.0\.1:{port} has ended") as caught,
        noticed_when_lost(client),
    ):
        scheduler.kill()
        scheduler.wait()
        raise KeyError("workers")
    assert isinstance(caught.value.__cause__, KeyError)
    assert "what is done stays done" in str(caught.value.hint)
    with pytest.raises(PartialError), noticed_when_lost(client):
        raise PartialError("what said why keeps saying it")


def test_errors__are_said_to_come_of_a_scheduler_that_took_the_place_of_the_first(
    client: Any, scheduler: Any, start: Start
) -> None:
    first = client.scheduler_info(n_workers=0)["id"]
    with pytest.raises(SchedulerLostError), noticed_when_lost(client):
        scheduler.kill()
        scheduler.wait()
        start("scheduler")
        over = time.monotonic() + 60
        while client.scheduler_info(n_workers=0)["id"] == first:
            assert time.monotonic() < over, "the client comes back to it"
            time.sleep(0.05)
        raise DneuroError("every worker is lost")


def test_wait__for_a_task_ends_when_the_scheduler_does(client: Any, scheduler: Any, start: Start) -> None:
    start("worker")
    client.wait_for_workers(1, timeout=60)
    executor = DaskExecutor(client)
    future = executor.submit(time.sleep, 300)
    scheduler.kill()
    with pytest.raises(SchedulerLostError, match="has ended, or was restarted"):
        executor.wait([future])


@pytest.mark.parametrize(("detached", "state", "code"), [(True, "interrupted", INTERRUPTED), (False, "failed", 4)])
def test_attempt__is_to_be_made_again_where_somebody_starts_drivers(
    tmp_path: Path, detached: bool, state: str, code: int
) -> None:
    folder = JobFolder(tmp_path)
    with pytest.raises(SchedulerLostError), Attempt(folder, ["extract"], "acts.zarr", detached=detached):
        raise SchedulerLostError("the dask scheduler has ended", hint="again")
    said = folder.read("status")
    assert (said["state"], said["exit_code"]) == (state, code)
    assert said["error"]["type"] == "SchedulerLostError"
