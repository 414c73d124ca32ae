"""The commands about submitted jobs; tests/jobs/test_jobs_lives.py has real drivers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dneuro import cli
from dneuro.cluster import DriverRef
from dneuro.cluster.local import LocalBackend


@dataclass
class Ended:
    code: int
    out: str
    err: str


@dataclass
class Drivers:
    """Drivers that a test starts itself; what is said of them."""

    state: str = "pending"
    commands: list[list[str]] = field(default_factory=list)


Call = Callable[..., Ended]


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Drivers:
    found = Drivers()

    def start(self: LocalBackend, folder: Path, command: list[str], name: str) -> DriverRef:
        found.commands.append(command)
        found.state = "pending"
        return DriverRef("queue", str(len(found.commands)))

    def stop(self: LocalBackend, ref: DriverRef, *, grace: float) -> None:
        found.state = "gone"

    monkeypatch.setattr(LocalBackend, "start_driver", start)
    monkeypatch.setattr(LocalBackend, "driver_state", lambda self, ref: found.state)
    monkeypatch.setattr(LocalBackend, "stop_driver", stop)
    return found


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Return a function that runs the command line in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dneuro", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 1, *capsys.readouterr())

    return run


@pytest.mark.usefixtures("threads_as_machines")
def test_commands__follow_a_job_from_its_submission_to_its_end(
    call: Call, drivers: Drivers, write_job: Callable[..., Path]
) -> None:
    job = write_job({"svd": {"rank": 2, "layer": "fc"}})
    done = call("submit", job, "--set", "steps.svd.rank=3")
    assert done.code == 0, done.err
    name = done.out.strip()
    assert name.startswith("small-")
    for command in ("status", "logs", "cancel"):
        assert f"dneuro {command} {name}" in done.err
    assert call("submit", job).code == 4, "its driver waits to be started"
    assert json.loads(call("status", "small", "--json").out)["state"] == "pending"
    assert call("resume", name).code == 4

    (command,) = drivers.commands
    assert command[1:4] == ["-m", "dneuro", "drive"]
    drivers.state = "running"
    driven = call(*command[3:])
    assert driven.code == 0, driven.err
    drivers.state = "gone"
    found = json.loads(call("status", "small", "--json").out)
    assert (found["state"], found["exit_code"], found["units"]["done"]) == ("done", 0, 3)
    shown = call("status", name).out
    for words in (f"{name}: done, attempt 1", "extract", "40 of 40 images", "3 of 3 done, 0 failed"):
        assert words in shown
    logged = call("logs", name)
    assert any(line.startswith("extract: 40 of 40 images") for line in logged.out.splitlines())
    assert logged.err == "done\n"
    entries = [json.loads(line) for line in call("logs", name, "--json").out.splitlines()]
    assert {"extract", "svd"} <= {entry["step"] for entry in entries}
    assert call("logs", name, "-f").code == 0
    assert call("logs", name, "--attempt", 1).out == logged.out
    absent = call("logs", name, "--attempt", 99)
    assert absent.code == 2
    assert "has no attempt 99\nhint: attempts there: 1\n" in absent.err
    assert [one["id"] for one in json.loads(call("list", "--json").out)] == [name]
    assert name in call("status").out

    assert call("resume", name).code == 2, "it is done"
    assert call("retry", name).code == 2
    assert "dneuro retry" in call("retry", name).err
    assert call("retry", name, "--failed").code == 2, "no unit has failed"
    listed = call("gc")
    assert str(Path(".dneuro/jobs").absolute() / name) in listed.out
    assert Path(".dneuro/jobs", name).is_dir()
    assert call("gc", "--yes", "--dry-run").code == 0
    assert Path(".dneuro/jobs", name).is_dir()
    assert call("gc", "--yes").code == 0
    assert not Path(".dneuro/jobs", name).exists()
    assert (job.parent / "acts.zarr").is_dir()


def test_submit__to_a_state_that_is_no_folder_says_so(
    call: Call, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"backend: local\nstate: {tmp_path}/file/state\n")
    refused = call("submit", write_job(), "--cluster", profile)
    assert refused.code == 2
    assert "the state of the job cannot be written to" in refused.err
    assert "hint: state: in the profile" in refused.err


def test_commands__cancel_a_job_that_waits_and_name_what_is_not_there(
    call: Call, drivers: Drivers, write_job: Callable[..., Path]
) -> None:
    name = call("submit", write_job()).out.strip()
    wrong = call("status", "smal-")
    assert wrong.code == 2
    assert name in wrong.err
    cancelled = call("cancel", name)
    assert (cancelled.code, cancelled.out) == (0, f"{name}: cancelled\n")
    assert drivers.state == "gone"
    assert call("logs", name, "-f").code == 5
    assert f"hint    dneuro resume {name}" in call("status", name).out
    assert call("resume", name).code == 0
    assert len(drivers.commands) == 2
    drivers.state = "gone"
    assert "lost" in call("status", name).out


def test_job__that_its_queue_starts_no_more_says_why(
    call: Call, drivers: Drivers, write_job: Callable[..., Path]
) -> None:
    name = call("submit", write_job()).out.strip()
    folder = Path(".dneuro/jobs", name)
    why = "error: this driver was started 5 times again, that is enough (driver.max_restarts)"
    (folder / "driver.log").write_text(f"extract: 3 of 40 images\n{why}\n\n")
    (folder / "status.json").write_text('{"state": "interrupted", "attempt": 1, "exit_code": 143}')
    assert "note" in json.loads(call("status", name, "--json").out), "it waits"
    drivers.state = "gone"
    found = json.loads(call("status", name, "--json").out)
    assert (found["state"], found["note"]) == ("interrupted", f"its driver is gone; driver.log ends with: {why}")
    assert why in call("status", name).out
    assert f"driver.log: {why}\n" in call("logs", name).err


def test_hints__are_commands_that_find_the_job_of_another_profile(
    call: Call, drivers: Drivers, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    profile = tmp_path / "my profile.yaml"
    profile.write_text(f"backend: local\nstate: {tmp_path}/elsewhere\n")
    name = call("submit", write_job(), "--cluster", profile).out.strip()
    of = f"--cluster '{profile}'"
    for command in (("resume", name), ("submit", tmp_path / "job.yaml")):
        busy = call(*command, "--cluster", profile)
        assert busy.code == 4
        assert f"hint: dneuro logs {name} -f {of} follows it, dneuro cancel {name} {of} ends it\n" in busy.err
    drivers.state = "gone"
    assert f"hint: dneuro resume {name} {of}\n" in call("retry", name, "--failed", "--cluster", profile).err
    assert f"hint: dneuro retry {name} --failed {of}\n" in call("retry", name, "--cluster", profile).err
    assert call("cancel", name, "--cluster", profile).code == 0


def test_submit__refuses_what_plan_refuses_and_leaves_nothing(
    call: Call, drivers: Drivers, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    done = call("submit", write_job(layers=["relu9"]))
    assert done.code == 2
    assert "relu9" in done.err
    assert drivers.commands == []
    assert not (tmp_path / ".dneuro").exists()


def test_drive__of_no_job_says_so(call: Call, tmp_path: Path) -> None:
    done: Any = call("drive", tmp_path)
    assert done.code == 2
    assert "is no folder of a job" in done.err


@pytest.mark.parametrize("state", ["/dev/null/x", "file"])
def test_list__of_a_state_that_can_be_no_folder_is_refused(call: Call, tmp_path: Path, state: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "p.yaml").write_text(f"backend: local\nstate: {state}\n")
    for command in ("list", "gc"):
        ended = call(command, "--cluster", "p.yaml")
        assert (ended.code, ended.out) == (2, "")
        assert f"state: {state} is no folder" in ended.err
