"""A run at which somebody sits is ended from elsewhere, and whoever sits there goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dneuro as dn
from dneuro import events
from dneuro.errors import CancelledError
from dneuro.jobs import attempt, ending
from dneuro.jobs.attempt import Attempt
from dneuro.jobs.folder import JobFolder, folders
from dneuro.jobs.lease import holder
from dneuro.jobs.watching import status
from dneuro.spec import JobSpec, ProfileSpec

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def profile(tmp_path: Path) -> ProfileSpec:
    return ProfileSpec(backend="local", state=str(tmp_path / "state"))


@pytest.mark.parametrize("where", ["notebook", "background of a script", "another thread"])
@pytest.mark.usefixtures("threads_as_machines")
def test_run__is_interrupted_by_cancel_and_whoever_called_it_lives(
    make_job: MakeJob, profile: ProfileSpec, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(attempt, "TICK", 0.05)
    spec = make_job()
    before: list[str] = []
    raised: list[BaseException] = []

    def cancel(event: events.Event) -> None:
        if event.kind == "progress" and not before:
            (folder,) = folders(profile.state)
            before.append(status(folder).state)
            folder.remember("cancel", {"time": time.time()})
            over = time.monotonic() + 120
            while time.monotonic() < over:  # the interruption comes here
                time.sleep(0.01)

    def run() -> None:
        try:
            with events.listening(cancel):
                dn.run(spec, cluster=profile)
        except BaseException as error:
            raised.append(error)

    kept = signal.getsignal(signal.SIGINT)
    try:
        # A shell without job control ignores the signal for whatever it starts with `&`.
        signal.signal(signal.SIGINT, signal.SIG_IGN if where.startswith("background") else signal.default_int_handler)
        if where == "another thread":
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        else:
            run()
    finally:
        signal.signal(signal.SIGINT, kept)
    assert [type(error) for error in raised] == [CancelledError]
    assert before == ["running"]
    (folder,) = folders(profile.state)
    assert (status(folder).state, status(folder).exit_code) == ("cancelled", 5)
    assert ending.cancel(folder).status.state == "cancelled"


def test_attempt__that_is_interrupted_while_it_ends_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs" / "x-1").mkdir(parents=True)
    folder = JobFolder(tmp_path / "jobs" / "x-1")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Attempt(folder, ["extract"], "store") as running:
        monkeypatch.setattr(running._ticker, "join", interrupted)
    assert folder.read_status()["state"] == "done"
    last = holder(folder.attempts)
    assert last is not None
    assert last.alive is False
