"""Folders of jobs that are not whole, or whose driver could not be started: others are seen all the same."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dneuro as dn
from dneuro import cli, events
from dneuro.cluster import DriverRef, WorkerSizes, record
from dneuro.cluster.local import LocalBackend
from dneuro.errors import BusyError, DneuroError, UsageError
from dneuro.jobs import ending, submitting
from dneuro.jobs.folder import JobFolder, folders
from dneuro.jobs.progress import Progress
from dneuro.jobs.watching import status
from dneuro.spec import JobSpec, ProfileSpec

MakeJob = Callable[..., JobSpec]
Call = Callable[..., Any]


@pytest.fixture
def profile(tmp_path: Path) -> ProfileSpec:
    return ProfileSpec(backend="local", state=str(tmp_path / "state"))


@pytest.fixture
def call(
    profile: ProfileSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Return ``call("status", id)``, which runs a command about the jobs of the profile; it must end well."""
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps(profile.model_dump(mode="json")))

    def run(*args: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["dneuro", *args, "--cluster", str(own)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        return capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("profile.yaml", "backend: local\nworkers_old: 3\n", "unreadable"),
        ("profile.yaml", None, "unreadable"),
        ("driver.json", '{"a": 1}', "lost"),
        ("job.yaml", "nonsense: 1\n", "done"),
        ("job.yaml", None, "done"),
    ],
)
def test_list_and_gc__go_on_past_the_folder_of_a_job_that_is_not_whole(
    make_job: MakeJob, profile: ProfileSpec, call: Call, name: str, content: str | None, state: str
) -> None:
    for which in ("bad", "good"):
        spec = make_job(name=which)
        folder = JobFolder.of(profile.state, spec)
        folder.write(spec, profile, {}, "submit")
        ended = {"state": "done", "ended": 1.0, "exit_code": 0}
        folder.remember("status", ended if which == "good" or state == "done" else {"state": "running", "attempt": 1})
    folder.remember("submitted", {**folder.read("submitted"), "time": 1.0})
    bad = JobFolder.of(profile.state, make_job(name="bad"))
    bad.remember("submitted", {**bad.read("submitted"), "time": 2.0})
    (bad.path / name).unlink(missing_ok=True)
    if content is not None:
        (bad.path / name).write_text(content)
    listed = {one["id"]: one for one in json.loads(call("list", "--json").out)}
    assert listed.keys() == {bad.id, folder.id}
    assert (listed[bad.id]["state"], listed[folder.id]["state"]) == (state, "done")
    if state == "unreadable":
        assert name in listed[bad.id]["error"]["message"]
        assert f"{bad.id}: " in call("list").out
    found = call("gc", "--json")
    assert [one["path"] for one in json.loads(found.out)["found"]] == [str(folder.path)]
    if state != "lost":
        assert f"{bad.id}: is left alone" in found.err
    assert bad.path.is_dir()


@pytest.mark.parametrize(
    "content", [{"attempt": "q"}, {"steps": 7}, {"units": {"done": 1}}, {"state": "done", "ended": "x"}, "torn"]
)
def test_status_and_cancel__of_a_job_whose_state_is_damaged(
    make_job: MakeJob, profile: ProfileSpec, call: Call, content: Any
) -> None:
    spec = make_job()
    folder = JobFolder.of(profile.state, spec)
    folder.write(spec, profile, {}, "submit")
    folder.remember("submitted", {**folder.read("submitted"), "time": 1.0})
    (folder.path / "status.json").write_text(content if content == "torn" else json.dumps(content))
    shown = call("status", folder.id).out
    assert shown.startswith(f"{folder.id}: lost\n")
    assert "status.json is damaged" in shown
    assert [one["state"] for one in json.loads(call("list", "--json").out)] == ["lost"]
    assert call("cancel", folder.id).out == f"{folder.id}: cancelled\n"
    assert call("status", folder.id).out.startswith(f"{folder.id}: cancelled")


def test_submit__whose_driver_is_refused_leaves_no_job(
    make_job: MakeJob, profile: ProfileSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def sizes(self, pool: str) -> WorkerSizes:
            return WorkerSizes(2, 1, 1, 4 * 2**30)

        def check_files(self, files: Any) -> None:
            pass

        def start_driver(self, *args: Any) -> Any:
            raise UsageError("sbatch: invalid partition specified: nowhere", hint="slurm: {driver: {partition: …}}")

    monkeypatch.setattr(submitting, "backend_of", lambda profile: Refusing())
    with pytest.raises(UsageError, match="invalid partition"):
        dn.submit(make_job(), profile)
    assert list(folders(profile.state)) == []
    folder = JobFolder.of(profile.state, make_job())
    folder.remember("status", {"state": "cancelled", "ended": 1.0, "exit_code": 5})  # from an earlier submission
    with pytest.raises(UsageError, match="invalid partition"):
        dn.submit(make_job(), profile)
    assert status(folder).state == "cancelled"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return ``commands(name, shell)``: Slurm's commands as scripts of the test."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def make(name: str, shell: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{shell}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return make


@pytest.fixture
def slurm(tmp_path: Path) -> ProfileSpec:
    pools = {"extract": {"memory": "4GiB"}}
    return ProfileSpec.model_validate({"backend": "slurm", "state": str(tmp_path / "state"), "pools": pools})


def test_submit__that_slurm_refuses_leaves_no_job(
    make_job: MakeJob, slurm: ProfileSpec, commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1")
    with pytest.raises(DneuroError, match="invalid partition"):
        dn.submit(make_job(), slurm)
    assert not list((tmp_path / "state" / "jobs").iterdir())


def test_submit__that_slurm_may_have_taken_leaves_a_job_that_can_be_cancelled(
    make_job: MakeJob, slurm: ProfileSpec, commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    failed = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    commands("sbatch", f"echo ${{2#--job-name=}} >{tmp_path}/name; echo '{failed}' >&2; exit 1")
    commands("squeue", f"echo \"17|PENDING|None|$(cat {tmp_path}/name)\"")
    commands("scancel", f"echo $@ >>{tmp_path}/told")
    with pytest.raises(DneuroError, match="timed out"):
        dn.submit(make_job(), slurm)
    (folder,) = folders(slurm.state)
    now = status(folder)
    assert (now.state, Path(now.found["store"]).name) == ("failed", Path(make_job().store).name)
    assert ending.cancel(folder).ended == ["17"]
    assert (tmp_path / "told").read_text() == "17\n"


def test_cancel__while_nobody_answers_says_that_machines_may_be_left_until_they_are_ended(
    make_job: MakeJob, slurm: ProfileSpec, commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    commands("sbatch", f"echo ${{2#--job-name=}} >{tmp_path}/name; echo 17")
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    commands("sacct", "exit 1")
    commands("scancel", f"echo $@ >>{tmp_path}/told")
    folder = JobFolder.of(slurm.state, make_job())
    dn.submit(make_job(), slurm)
    folder.remember("submitted", {**folder.read("submitted"), "time": 1.0})
    assert (status(folder).state, status(folder).found["note"]) == ("pending", "nobody answers for its driver")
    with pytest.raises(DneuroError, match=r"is told in its folder to end, but .* Unable to contact") as caught:
        ending.cancel(folder)
    assert caught.value.exit_code == 4
    assert caught.value.hint == f"dneuro cancel {folder.id} once more, later; sinfo: is the controller up?"
    assert "may be left" in status(folder).found["note"]
    assert status(folder).is_over, "whoever waits for it may go"
    folder.remember("status", {**folder.read_status(), "state": "cancelled", "ended": 1.0})  # its driver has read it
    now = status(folder)
    assert (now.state, now.advice) == ("cancelled", f"dneuro cancel {folder.id}")
    assert "machines of it may be left: squeue: slurm_load_jobs error: Unable to contact" in now.found["note"]
    assert ending.waste([folder]) == [], "who they are is in the folder"
    commands("squeue", f"echo \"17|RUNNING|None|$(cat {tmp_path}/name)\"")
    done = ending.cancel(folder)
    assert (done.status.state, done.status.advice, done.ended) == ("cancelled", f"dneuro resume {folder.id}", ["17"])
    assert "note" not in done.status.found


def test_job__that_waits_in_slurm_is_given_to_no_other_profile(
    make_job: MakeJob, slurm: ProfileSpec, profile: ProfileSpec, commands: Callable[[str, str], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    commands("sbatch", f"echo ${{2#--job-name=}} >{tmp_path}/name; echo 17")
    commands("squeue", f"echo \"17|PENDING|None|$(cat {tmp_path}/name)\"")
    commands("sacct", "exit 1")
    dn.submit(make_job(), slurm)
    (folder,) = folders(slurm.state)

    def refused(match: str) -> BusyError:
        with pytest.raises(BusyError, match=match):
            dn.run(make_job(), cluster=profile)
        with pytest.raises(BusyError, match=match) as caught:
            dn.submit(make_job(), profile)
        assert folder.read_profile() == slurm
        assert folder.read("driver")["id"] == "17"
        return caught.value

    refused("waits to be started")
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    error = refused("nobody can tell whether a driver waits .* slurm does not answer for 17")
    assert error.hint == f"dneuro cancel {folder.id}, when it does; where it is gone for certain, remove {folder.path}"
    commands("squeue", f"echo \"17|FAILED|None|$(cat {tmp_path}/name)\"")
    monkeypatch.setattr(LocalBackend, "start_driver", lambda *args: DriverRef("local", "1", {"host": "elsewhere"}))
    dn.submit(make_job(), profile)
    assert folder.read_profile() == profile


def test_submit__to_another_profile_ends_what_is_left_with_the_first(
    make_job: MakeJob, slurm: ProfileSpec, profile: ProfileSpec, commands: Callable[[str, str], None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Slurm may have taken a driver without an answer, of which only the folder knows."""
    commands("sbatch", f"echo ${{2#--job-name=}} >{tmp_path}/name; echo 'sbatch: error: timed out' >&2; exit 1")
    commands("squeue", f"echo \"17|PENDING|None|$(cat {tmp_path}/name)\"")
    commands("scancel", f"echo $@ >>{tmp_path}/told")
    with pytest.raises(DneuroError, match="timed out"):
        dn.submit(make_job(), slurm)
    monkeypatch.setattr(LocalBackend, "start_driver", lambda *args: DriverRef("local", "1", {"host": "elsewhere"}))
    dn.submit(make_job(), profile)
    assert (tmp_path / "told").read_text() == "17\n"


@pytest.mark.usefixtures("threads_as_machines")
def test_job__that_was_done_is_given_to_another_profile_where_there_is_no_slurm(
    make_job: MakeJob, slurm: ProfileSpec, profile: ProfileSpec
) -> None:
    dn.run(make_job(), cluster=profile)
    (folder,) = folders(slurm.state)
    folder.write(make_job(), slurm, {}, "submit")
    folder.remember("driver", DriverRef("slurm", "17", {"name": "x"}).to_dict())
    record.Record(folder.path).write(kind="slurm", role="driver", name="x", id="17")
    dn.run(make_job(), cluster=profile)
    assert folder.read_profile() == profile


@pytest.mark.usefixtures("threads_as_machines")
def test_run__goes_on_in_the_process_whose_last_run_could_not_say_that_it_ended(
    make_job: MakeJob, profile: ProfileSpec
) -> None:
    dn.run(make_job(), cluster=profile)
    (folder,) = folders(profile.state)
    lease = folder.attempt(1) / "lease.json"  # as on a full disk
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "ended": None}))
    folder.remember("status", {**folder.read_status(), "state": "running"})
    dn.run(make_job(), cluster=profile)
    assert (status(folder).state, status(folder).found["attempt"]) == ("done", 2)


def test_progress__counts_the_units_of_members_that_are_still_to_come() -> None:
    progress = Progress(["a/extract", "b/extract"])
    progress.expect({"a/extract": (10, 4), "b/extract": (20, 0)})
    assert progress.units == {"total": 30, "done": 4, "failed": 0, "masked": 0}
    units = {"total": 10, "done": 9, "failed": 1, "masked": 2}
    progress.take(events.Event("progress", "a/extract", done=1, total=1, data={"units": units}))
    assert progress.units == {"total": 30, "done": 9, "failed": 1, "masked": 2}


def test_progress__has_the_workers_there_are_and_the_peak_of_all_there_were() -> None:
    progress = Progress([])

    def look(*workers: tuple[str, int]) -> dict[str, Any]:
        there = {name: {"name": name, "memory_limit": 900, "metrics": {"memory": held}} for name, held in workers}
        progress.look(SimpleNamespace(scheduler_info=lambda n_workers: {"workers": there}))
        found = progress.to_dict()
        return {"peak": found["peak_memory"], "memory": found["memory"], "workers": found["workers"]}

    look(("extract-0.1", 500), ("extract-1.2", 100))
    for number in range(3, 50):
        last = look((f"extract-0.{number}", 300 - number), ("extract-1.2", 50))
    one, other = {"now": 251, "peak": 251, "limit": 900}, {"now": 50, "peak": 100, "limit": 900}
    assert last == {"peak": 500, "memory": {"extract-0.49": one, "extract-1.2": other}, "workers": {"extract": 2}}
    gone = look()
    assert gone["memory"] == {"extract-0.49": {**one, "now": 0}, "extract-1.2": {**other, "now": 0}}
    assert (gone["peak"], gone["workers"]) == (500, {})


def test_progress__counts_workers_by_their_pool_however_they_are_named() -> None:
    """As the backends name them, the operator of dask-kubernetes, and dask itself."""
    names = {
        "extract-0": {"extract": 2}, "extract-1.17": {"extract": 2}, "memory-0.18": {"memory": 1},
        "demo-81c2de-extract-worker-0123456789": {"extract": 2},
        "demo-81c2de-linear-algebra-worker-abcdef0123": {"linear-algebra": 1},
        "tcp://10.1.2.3:41234": {}, "SLURMCluster-3": {}, "gpu-7": {"GPU": 1, "SSD": 1},
    }  # fmt: skip
    there = {name: {"name": name, "memory_limit": 900, "metrics": {}, "resources": offered}
             for name, offered in names.items()}  # fmt: skip
    progress = Progress([])
    progress.look(SimpleNamespace(scheduler_info=lambda n_workers: {"workers": there}))
    found = progress.to_dict()["workers"]
    assert found == {"extract": 3, "memory": 1, "linear-algebra": 1, "workers": 1, "SLURMCluster": 1, "gpu": 1}


def test_progress__is_told_from_one_thread_and_asked_from_another() -> None:
    progress, failed = Progress([]), []
    over = threading.Event()

    def ask() -> None:
        try:
            while not over.is_set():
                progress.to_dict()
        except RuntimeError as error:
            failed.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    asking = threading.Thread(target=ask)
    asking.start()
    for number in range(2000):
        data = {"units": {"total": 1, "done": 1}}
        progress.take(events.Event("progress", f"{number}/extract", done=1, total=1, data=data))
    over.set()
    asking.join()
    sys.setswitchinterval(before)
    assert failed == []
    assert progress.units["total"] == 2000
