from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dneuro.cluster.births import birth_of
from dneuro.errors import BusyError
from dneuro.extract.work import Attempt
from dneuro.jobs import lease
from dneuro.jobs.lease import HEARTBEAT, SILENCE, Lease


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "acts.zarr.units" / "attempts"


@pytest.fixture
def living() -> Iterator[dict[str, Any]]:
    """Pid and start of another process that lives."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield {"pid": child.pid, "started": psutil.Process(child.pid).create_time()}
    child.communicate(b"\n")


def leave(folder: Path, age: float, content: dict[str, Any]) -> None:
    """Leave the lease of another run behind: of this host, its process gone, but for what `content` says."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()  # a pid that was, and is no more
    known = {"host": os.uname().nodename, "pid": child.pid, "started": time.time(), "boot": psutil.boot_time()}
    path = folder / "001" / "lease.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**known, "ended": None, **content}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_lease__is_given_to_one_run_at_a_time(folder: Path) -> None:
    first = Lease.acquire(folder)
    with pytest.raises(BusyError, match=rf"process {os.getpid()} on .* is at work on this store \(run 1\)") as caught:
        Lease.acquire(folder)
    assert "stays done" in str(caught.value.hint)
    first.release()
    second = Lease.acquire(folder)
    assert (first.attempt.number, second.attempt.number) == (1, 2)
    second.release()


def test_lease__is_busy_for_another_process(folder: Path) -> None:
    held = Lease.acquire(folder)
    program = (
        "import sys, pathlib\nfrom dneuro.jobs.lease import Lease\nfrom dneuro.errors import BusyError\n"
        "try: Lease.acquire(pathlib.Path(sys.argv[1]))\nexcept BusyError as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert f"process {os.getpid()}" in done.stdout
    held.release()


def test_lease__tells_whether_it_is_the_newest(folder: Path) -> None:
    held = Lease.acquire(folder)
    assert held.attempt.is_newest
    (folder / "notes.txt").write_text("not an attempt")
    assert held.attempt.is_newest
    (folder / "002").mkdir()
    assert not held.attempt.is_newest
    assert Attempt(folder, 2).is_newest
    held.release()


@pytest.mark.parametrize(
    ("lives", "content", "age"),
    [
        (False, {}, 0),
        (True, {"boot": 1.0}, 0),
        (True, {"started": 1.0}, 0),
        (True, {"host": "elsewhere"}, SILENCE + 5),
        (True, {"ended": 5.0}, 0),
        (True, {"host": "elsewhere", "ended": 5.0}, 0),
    ],
    ids=["process gone", "other boot", "other process of this number", "other host silent", "ended", "ended elsewhere"],
)
def test_lease__of_a_dead_run_is_taken_over_at_once(
    folder: Path, living: dict[str, Any], lives: bool, content: dict[str, Any], age: float
) -> None:
    leave(folder, age, {**(living if lives else {}), **content})
    held = Lease.acquire(folder)
    assert held.attempt.number == 2
    held.release()


@pytest.mark.parametrize(
    ("lives", "content", "age"),
    [(True, {}, 0), (True, {}, SILENCE + 5), (False, {"host": "elsewhere"}, SILENCE - 30)],
    ids=["alive", "alive though silent", "other host not yet silent"],
)
def test_lease__of_a_run_that_lives_is_respected(
    folder: Path, living: dict[str, Any], lives: bool, content: dict[str, Any], age: float
) -> None:
    leave(folder, age, {**(living if lives else {}), **content})
    with pytest.raises(BusyError):
        Lease.acquire(folder)
    assert [path.name for path in folder.iterdir()] == ["001"]


def test_lease__of_a_run_that_lives_is_respected_though_the_clock_was_set(
    folder: Path, living: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(folder, 0, {"pid": living["pid"], **birth_of(living["pid"])})
    began, boot = psutil.Process.create_time, psutil.boot_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began(self) + 7)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 7)
    with pytest.raises(BusyError):
        Lease.acquire(folder)
    assert [path.name for path in folder.iterdir()] == ["001"]


def test_lease__that_is_being_written_is_respected_for_a_moment(folder: Path) -> None:
    (folder / "004").mkdir(parents=True)
    with pytest.raises(BusyError, match=r"another process is at work on this store \(run 4\)"):
        Lease.acquire(folder)
    old = time.time() - HEARTBEAT - 5
    os.utime(folder / "004", (old, old))
    held = Lease.acquire(folder)
    assert held.attempt.number == 5
    held.release()


def test_lease__shows_signs_of_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    held = Lease.acquire(folder)
    path = folder / "001" / "lease.json"
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 30
    while path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 1
    held.release()
    assert json.loads(path.read_text())["ended"] is not None


def test_lease__is_over_though_the_disk_is_too_full_to_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Lease.acquire(folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(lease, "write_json", full)
        held.release()  # what ended the run is not hidden behind this
    again = Lease.acquire(folder)
    assert again.attempt.number == 2
    again.release()


@pytest.mark.parametrize(
    ("driver", "life", "taken"), [("demo-1", "2", True), ("demo-1", "1", False), ("x", "2", False)]
)
def test_lease__of_an_earlier_life_of_the_same_driver_is_taken_over_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, driver: str, life: str, taken: bool
) -> None:
    # As the pods of a Kubernetes Job: each on a host of its own, the next one made when the last one has ended.
    leave(folder, 1.0, {"host": "demo-1-abcde", "batch": "demo-1", "life": "1"})
    monkeypatch.setenv("DNEURO_DRIVER", driver)
    monkeypatch.setenv("DNEURO_DRIVER_LIFE", life)
    if taken:
        held = Lease.acquire(folder)
        assert held.attempt.number == 2
        held.release()
    else:
        with pytest.raises(BusyError, match="on demo-1-abcde is at work"):
            Lease.acquire(folder)


@pytest.mark.parametrize("host", [os.uname().nodename, "elsewhere"])
@pytest.mark.parametrize(("lease_life", "own_life", "taken"), [("0", "1", True), ("9", "10", True), ("2", "1", False)])
def test_lease__of_an_earlier_life_is_taken_over_though_its_process_lives_and_never_that_of_a_later_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, living: dict[str, Any], host: str, lease_life: str, own_life: str,
    taken: bool,
) -> None:  # fmt: skip
    # As under Slurm: a node whose slurmd does not answer is given up, and the driver requeued while its process lives.
    leave(folder, 1.0, {**living, "host": host, "batch": "17", "life": lease_life})
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", own_life)
    if taken:
        held = Lease.acquire(folder)
        assert held.attempt.number == 2
        held.release()
    else:
        with pytest.raises(BusyError, match="is at work"):
            Lease.acquire(folder)
