"""Drivers in Slurm's batch jobs: queued again they go on, cancelled they leave nothing."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import dneuro as dn
from dneuro.cluster import DriverRef, backend_of, standing
from dneuro.cluster.record import entries
from dneuro.cluster.slurm import queue
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, DneuroError
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec, ProfileSpec
from tests.slurm.conftest import in_queue, node_of, processes_of, start_again, stopped_node, wait_until

MakeJob = Callable[..., JobSpec]
MakeProfile = Callable[..., ProfileSpec]
Measured = Callable[..., None]
STEPS: list[Any] = [{"moments": None}, {"svd": {"rank": 3, "layer": "relu1", "method": "krylov"}}]
LONG: dict[str, Any] = {"images": {"source": "digits", "sample": 160}, "batch": 1, "images_per_unit": 4}


def done(job: JobSpec) -> int:
    return len(list(Path(f"{job.store}.units").glob("extract/relu1/*.done")))


def begun(job: JobSpec) -> int:
    """How many units were begun and are not done: they are what is redone."""
    return len(list(Path(f"{job.store}.units").glob("extract/relu1/*.attempts")))


def log(folder: Path) -> str:
    return (folder / "driver.log").read_text()


def driver(folder: Path) -> str:
    """The number of the batch job that drives a job."""
    return str(json.loads((folder / "driver.json").read_text())["id"])


def drivers(folder: Path) -> set[str]:
    """The numbers of all batch jobs that were to drive a job."""
    return {entry["id"] for entry in entries(folder) if entry.get("role") == "driver" and "id" in entry}


def workers(job: str) -> list[str]:
    """The numbers of the jobs in the queue that are not that driver."""
    return [number for number in in_queue() if number != job]


def test_job__whose_worker_is_cancelled_and_whose_driver_is_queued_again_ends_as_on_threads(
    make_profile: MakeProfile, make_job: MakeJob, tmp_path: Path, threads: ThreadExecutor,
    same_store: Callable[[Path, Path], None], measured: Measured,
) -> None:  # fmt: skip
    job = make_job(*STEPS, store="slurm.zarr", **LONG)
    submitted = dn.submit(job, make_profile())
    folder = next((tmp_path / "state" / "jobs").iterdir())
    wait_until(lambda: done(job) > 1, 120, "the first units")
    queue.cancel([min(workers(driver(folder)))])
    reached = done(job)
    wait_until(lambda: done(job) > reached, 120, "another unit")
    queue.call("scontrol", "requeue", driver(folder))
    # Slurm holds a job that it queues again for two minutes.
    wait_until(lambda: queue.look()[driver(folder)].state == "PENDING", 60, "the driver to wait")
    reached, redone = done(job), begun(job)
    start_again(driver(folder))
    began = time.monotonic()
    wait_until(lambda: done(job) > reached, 120, "a unit of the second life")
    took = time.monotonic() - began
    assert submitted.wait(240).state == "done", log(folder)
    assert reached < 40 == done(job)
    assert len(list((folder / "attempts").iterdir())) == 2
    wait_until(lambda: not in_queue(), 30, "an empty queue")
    assert queue.look()[driver(folder)].state == "COMPLETED"
    reference = run_job(make_job(*STEPS, store="threads.zarr", **LONG), threads)
    same_store(Path(job.store), reference.store)
    measured(
        seconds_from_the_second_start_of_a_driver_to_a_unit=round(took, 1),
        units_that_it_redid=redone,
    )


def test_driver__whose_node_is_lost_goes_on_on_another(
    slurm: Path, make_profile: MakeProfile, make_job: MakeJob, tmp_path: Path, threads: ThreadExecutor,
    same_store: Callable[[Path, Path], None], measured: Measured,
) -> None:  # fmt: skip
    """Slurm gives the node up and starts the driver again; its first life, which nobody has told, is still there."""
    job = make_job(*STEPS, store="slurm.zarr", **LONG)
    submitted = dn.submit(job, make_profile({"partition": "gpu"}))  # the other node's
    folder = next((tmp_path / "state" / "jobs").iterdir())
    wait_until(lambda: done(job) > 1, 120, "the first units")
    number = driver(folder)
    assert node_of(number) == "n1"
    for process in processes_of(workers(number)):  # the rest is left to the second life
        process.suspend()
    reached = done(job)
    first = psutil.Process(json.loads((folder / "attempts" / "001" / "lease.json").read_text())["pid"])
    with stopped_node(slurm, "n1"):
        wait_until(lambda: queue.look()[number].state == "PENDING", 120, "Slurm to give the node up")
        assert first.is_running()
        start_again(number)
        wait_until(lambda: (folder / "attempts" / "002").is_dir(), 120, "the second life")
        began = time.monotonic()
        wait_until(lambda: not first.is_running(), 60, "the first life to see that it is overtaken")
        took = time.monotonic() - began
        assert queue.look()[number].ended or node_of(number) == "n2"
        assert submitted.wait(240).state == "done", log(folder)
        wait_until(lambda: not in_queue(), 60, "an empty queue")
    assert reached < 40 == done(job)
    assert len(list((folder / "attempts").iterdir())) == 2
    reference = run_job(make_job(*STEPS, store="threads.zarr", **LONG), threads)
    same_store(Path(job.store), reference.store)
    measured(seconds_until_a_driver_on_a_lost_node_left_to_its_successor=round(took, 1))


def test_driver__writes_its_log_whatever_letters_are_in_its_path(make_profile: MakeProfile, tmp_path: Path) -> None:
    names = ["a%jb", "a b", "a'b", 'a"b', "a#b", r"a\b", r"a\b %j'\\", "Ä"]
    backend = backend_of(make_profile(driver={"memory": "1GiB"}))
    started = {name: backend.start_driver(tmp_path / name / "job", ["echo", name], "odd") for name in names}
    for name, ref in started.items():
        wait_until(lambda ref=ref: backend.driver_state(ref) == "gone", 60, "the driver to end")
        assert queue.look()[ref.id].state == "COMPLETED", name
        assert log(tmp_path / name / "job") == f"{name}\n"
    assert {path.name for path in tmp_path.iterdir()} == set(names), "nothing beside them"


@pytest.mark.parametrize("killed", [False, True], ids=["alive", "dead"])
def test_cancel__leaves_nothing_in_the_queue(
    make_profile: MakeProfile, make_job: MakeJob, tmp_path: Path, killed: bool
) -> None:
    job = make_job(store="slurm.zarr", **LONG)
    submitted = dn.submit(job, make_profile({"workers": 1}))
    folder = next((tmp_path / "state" / "jobs").iterdir())
    wait_until(lambda: done(job) > 1, 120, "the first units")
    assert len(in_queue()) == 2
    if killed:
        queue.call("scancel", "--full", "--signal=KILL", driver(folder))
        wait_until(lambda: driver(folder) not in in_queue(), 30, "the driver to be gone")
    began = time.monotonic()
    assert submitted.cancel().state == "cancelled"
    wait_until(lambda: not in_queue(), 30, "an empty queue")
    assert time.monotonic() - began < 30
    assert not list(folder.glob("attempts/*/keys"))


def test_job__that_is_submitted_twice_at_once_has_one_driver(
    make_profile: MakeProfile, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, profile = make_job(store="slurm.zarr", **LONG), make_profile({"workers": 1})
    honest, barrier = queue.submit, threading.Barrier(2)

    def together(script: Path, name: str) -> str:
        barrier.wait(60)
        return honest(script, name)

    monkeypatch.setattr(queue, "submit", together)
    both = [threading.Thread(target=dn.submit, args=(job, profile)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    (submitted,) = dn.jobs(cluster=profile)
    folder = next((tmp_path / "state" / "jobs").iterdir())
    wait_until(lambda: done(job) > 1, 120, "the first units")
    wait_until(lambda: "is at work on this job (run 1)" in log(folder), 60, "the other driver to leave")
    ended = [number for number in drivers(folder) if queue.look()[number].ended]
    assert len(drivers(folder)) == 2
    for left in {driver(folder), *ended}:  # whichever was written down last
        (folder / "driver.json").write_text(json.dumps(DriverRef("slurm", left).to_dict()))
        assert submitted.status().state == "running"
        with pytest.raises(BusyError):
            submitted.resume()
    assert submitted.wait(240).state == "done", log(folder)
    assert len(list((folder / "attempts").iterdir())) == 1
    wait_until(lambda: not in_queue(), 30, "an empty queue")


def test_driver__that_waits_is_cancelled_at_once(make_profile: MakeProfile, tmp_path: Path) -> None:
    backend = backend_of(make_profile(driver={"memory": "1GiB", "directives": ["--begin=now+1hour"]}))
    ref = backend.start_driver(tmp_path / "job", ["true"], "waiting")
    assert backend.driver_state(ref) == "pending"
    backend.stop_driver(ref, grace=20)
    assert backend.driver_state(ref) == "gone"
    assert DriverRef.from_dict(json.loads(json.dumps(ref.to_dict()))) == ref


def test_driver__that_is_lost_again_and_again_is_given_up(make_profile: MakeProfile, tmp_path: Path) -> None:
    backend = backend_of(make_profile(driver={"memory": "1GiB", "max_restarts": 0}))
    ref = backend.start_driver(tmp_path / "job", ["sleep", "100"], "lost")
    wait_until(lambda: backend.driver_state(ref) == "running", 30, "the driver")
    queue.call("scontrol", "requeue", ref.id)
    wait_until(lambda: backend.driver_state(ref) == "pending", 60, "the driver to wait")
    start_again(ref.id, ends="FAILED")
    wait_until(lambda: backend.driver_state(ref) == "gone", 60, "the driver to end")
    assert "this driver was started 0 times again" in log(tmp_path / "job")


def test_driver__whose_time_is_up_queues_itself_again(
    make_profile: MakeProfile, tmp_path: Path, measured: Measured
) -> None:
    """Slurm's notice is a signal to the batch script, two minutes before the end; here it comes early."""
    backend = backend_of(make_profile(driver={"memory": "1GiB", "walltime": "10m"}))
    waits = "trap 'echo told to stop; exit 5' TERM; echo started; [ $SLURM_RESTART_COUNT ] || sleep 60 & wait"
    ref = backend.start_driver(tmp_path / "job", ["bash", "-c", waits], "short")
    assert "#SBATCH --signal=B:USR1@120" in (tmp_path / "job" / "driver.sh").read_text()
    wait_until(lambda: (tmp_path / "job" / "driver.log").is_file() and "started" in log(tmp_path / "job"), 30, "it")
    queue.cancel([ref.id], signal="USR1")
    began = time.monotonic()
    wait_until(lambda: backend.driver_state(ref) == "pending", 60, "the driver to wait again")
    measured(seconds_from_the_notice_of_a_drivers_walltime_to_the_queue=round(time.monotonic() - began, 1))
    start_again(ref.id)
    wait_until(lambda: log(tmp_path / "job").count("started") == 2, 60, "the driver to start again")
    wait_until(lambda: backend.driver_state(ref) == "gone", 60, "the driver to end")
    assert [line for line in log(tmp_path / "job").splitlines() if line in ("started", "told to stop")] == [
        "started", "told to stop", "started",
    ]  # fmt: skip
    assert queue.look()[ref.id].state == "COMPLETED"


def test_driver__is_what_the_profile_says_whatever_variables_the_user_has(
    make_profile: MakeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NO_REQUEUE": "1", "TIMELIMIT": "1", "ARRAY_INX": "1-3", "MEM_PER_CPU": "2G"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    backend = backend_of(make_profile(driver={"memory": "1GiB", "walltime": "10m"}))
    ref = backend.start_driver(tmp_path / "job", ["sleep", "100"], "mine")
    said = queue.call("scontrol", "show", "job", ref.id).split()
    assert {"Requeue=1", "TimeLimit=00:10:00", "MinMemoryNode=1G"} <= set(said)
    assert in_queue() == [ref.id]
    backend.stop_driver(ref, grace=0)


def test_driver__whose_number_was_lost_is_found_by_its_name(make_profile: MakeProfile, tmp_path: Path) -> None:
    backend = backend_of(make_profile(driver={"memory": "1GiB"}))
    ref = backend.start_driver(tmp_path / "job", ["sleep", "100"], "named")
    record = tmp_path / "job" / "machines.jsonl"
    record.write_text("\n".join(line for line in record.read_text().splitlines() if '"id"' not in line))
    assert backend.clean_up(tmp_path / "job") == [ref.id]


def test_driver__may_stay_on_the_login_node(make_profile: MakeProfile, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(store="login.zarr")
    submitted = dn.submit(job, make_profile({"workers": 1}, slurm={"submit_workers_from": "login"}))
    folder = next((tmp_path / "state" / "jobs").iterdir())
    wait_until(in_queue, 60, "a worker")
    assert driver(folder) not in in_queue()
    assert psutil.pid_exists(int(driver(folder))), "it is a process of this machine"
    assert submitted.wait(120).state == "done", log(folder)
    wait_until(lambda: not in_queue(), 30, "an empty queue")


def test_job__without_workers_says_what_slurm_says(
    make_profile: MakeProfile, make_job: MakeJob, tmp_path: Path
) -> None:
    profile = make_profile({"workers": 1, "directives": ["--begin=now+1hour"]}, start_timeout="5s")
    submitted = dn.submit(make_job(store="slurm.zarr"), profile)
    now = submitted.wait(60)
    assert now.state == "failed"
    assert "pool extract has no worker: none came within 5.0 s" in now.found["error"]["message"]
    assert "PENDING (BeginTime)" in now.found["error"]["message"]
    wait_until(lambda: not in_queue(), 30, "an empty queue")


def test_setup__that_fails_is_shown(make_profile: MakeProfile) -> None:
    profile = make_profile(slurm={"setup": ["echo no such module: cuda/99", "exit 7"]})
    began = time.monotonic()
    with pytest.raises(DneuroError) as caught, backend_of(profile).open():
        raise AssertionError("there can be no worker")
    assert re.search(r"pool extract has no worker: [34] of its jobs ended", str(caught.value))
    assert "FAILED (NonZeroExitCode)" in str(caught.value)
    assert "no such module: cuda/99" in str(caught.value)
    assert time.monotonic() - began < 60, "long before start_timeout"


def test_workers__of_other_versions_are_refused_by_name(make_profile: MakeProfile, tmp_path: Path) -> None:
    """A zarr of another version lies before the real one on the workers' path."""
    info = tmp_path / "other" / "zarr-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 9.9\n")
    profile = make_profile(slurm={"setup": [f'export PYTHONPATH={info.parent}:"$PYTHONPATH"']})
    with pytest.raises(DneuroError, match=r"zarr 9\.9 instead of"), backend_of(profile).open():
        raise AssertionError("they must not work together")


def test_partition__that_does_not_exist_is_refused_at_once(make_profile: MakeProfile) -> None:
    profile = make_profile({"partition": "nowhere"})
    with pytest.raises(DneuroError, match="invalid partition") as caught, backend_of(profile).open():
        raise AssertionError("Slurm must refuse it")
    assert "nowhere" in str(caught.value)


def test_cluster__stands_until_it_is_ended(make_profile: MakeProfile, tmp_path: Path) -> None:
    path = tmp_path / "my own.yaml"
    path.write_text(make_profile({"workers": 1}).model_dump_json())
    found = standing.up(path)
    assert (found.state, found.workers) == ("running", {"extract": 1})
    assert found.address.startswith("tls://")
    assert len(in_queue()) == 2
    with pytest.raises(BusyError, match="stands already"):
        standing.up(path)
    with standing.connect(path) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    with standing.connect(found.address, credentials=found.credentials) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
    standing.down(path)
    wait_until(lambda: not in_queue(), 30, "an empty queue")
    assert not Path(found.credentials).exists()
