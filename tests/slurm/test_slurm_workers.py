"""Workers in Slurm's batch jobs: they compute what threads compute, are replaced when lost, and are shut to others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dneuro import events
from dneuro.cluster import Machines, backend_of
from dneuro.cluster.slurm import queue
from dneuro.cluster.slurm.backend import NANNY
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DneuroError
from dneuro.jobs.driver import run_job
from dneuro.quantities import GiB
from dneuro.spec import JobSpec, ProfileSpec
from tests.slurm.conftest import in_queue, node_of, stopped_node, wait_until

MakeJob = Callable[..., JobSpec]
Measured = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


@pytest.fixture(scope="module")
def profile(folder: Path) -> ProfileSpec:
    """Everything but loopback is allowed: what listens there must be shut by keys."""
    return ProfileSpec.model_validate(
        {
            "backend": "slurm",
            "state": str(folder / "state"),
            "start_timeout": "90s",
            "pools": {
                "extract": {"workers": 2, "memory": "3GiB", "cpus": 1, "gpus": 1, "partition": "gpu", "env": {"A": 7}},
                "memory": {"memory": "2GiB", "cpus": 2, "walltime": "30m"},
            },
        }
    )


@pytest.fixture(scope="module")
def machines(slurm: Path, folder: Path, profile: ProfileSpec) -> Iterator[Machines]:
    with backend_of(profile).open(folder=folder, name="tested") as machines:
        machines.client.wait_for_workers(3, timeout=90)
        yield machines
    assert not (folder / "keys").exists()


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """The jobs of `machines` outlive each test here."""


def workers(machines: Machines) -> dict[str, dict[str, Any]]:
    found = machines.client.scheduler_info(n_workers=-1)["workers"].values()
    return {worker["name"]: worker for worker in found}


def environment(machines: Machines, name: str) -> dict[str, set[str | None]]:
    def get() -> tuple[str, str | None]:
        import os

        return os.environ["SLURM_JOB_ID"], os.environ.get(name)

    by_job = dict(machines.client.run(get).values())
    jobs = queue.look()
    found: dict[str, set[str | None]] = {}
    for job, value in by_job.items():
        found.setdefault(jobs[job].name.split("-")[2], set()).add(value)
    return found


def test_pools__are_batch_jobs_of_their_own(machines: Machines, profile: ProfileSpec) -> None:
    jobs = {job.name.split("-")[2]: job for job in queue.look().values() if job.state == "RUNNING"}
    assert set(jobs) == {"extract", "memory"}
    assert len(in_queue()) == len(workers(machines)) == 3, "one process for each job"
    of_extract = [worker for worker in workers(machines).values() if "extract" in worker["resources"]]
    assert [(worker["nthreads"], worker["memory_limit"]) for worker in of_extract] == [(1, 3 * GiB - NANNY)] * 2
    shown = queue.call("scontrol", "show", "job", "--oneliner", jobs["memory"].id)
    assert all(said in shown for said in ("TimeLimit=00:30:00", "NumCPUs=2", "MinMemoryNode=2G", "Requeue=0"))
    extract, memory = machines.executor("extract"), machines.executor("memory")
    assert (extract.slots, memory.slots) == (2, 1)

    def job() -> str:  # inside, for workers cannot import this file
        import os

        return os.environ["SLURM_JOB_ID"]

    where = {pool: executor.submit(job).result() for pool, executor in (("extract", extract), ("memory", memory))}
    names = queue.look()
    assert {pool: names[job].name.split("-")[2] for pool, job in where.items()} == {
        "extract": "extract",
        "memory": "memory",
    }


def test_workers__have_the_environment_of_their_pool(machines: Machines) -> None:
    assert environment(machines, "OMP_NUM_THREADS") == {"extract": {"1"}, "memory": {"2"}}
    assert environment(machines, "A") == {"extract": {"7"}, "memory": {None}}
    assert environment(machines, "CUDA_VISIBLE_DEVICES")["extract"] == {"0", "1"}, "a GPU each"


def test_machines__are_shut_to_whoever_has_no_key_of_the_run_while_a_job_is_at_work(
    machines: Machines, make_job: MakeJob
) -> None:
    """Every port that a process of the run listens on, off loopback, wants a certificate."""
    host, _, port_of_scheduler = machines.client.scheduler.address.removeprefix("tls://").rpartition(":")
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    listening: set[tuple[str, int]] = set()
    outside: set[int] = set()
    heard: list[tuple[str, int, str]] = []

    def scan(event: events.Event) -> None:
        for ip, port in set(_listeners()) - listening:
            listening.add((ip, port))
            if not ip.startswith("127.") and ip != "::1":
                outside.add(port)
                # Not through loopback, where another one may listen on the same port.
                place = (host if ip in ("0.0.0.0", "::") else ip, port)
                heard.extend(
                    (*place, who)
                    for who, context in (("without TLS", None), ("without a certificate", stranger))
                    if answer(place, context)
                )

    with events.listening(scan):
        run_job(make_job(store="scanned.zarr"), machines)
    assert len(listening) > 6
    assert int(port_of_scheduler) in outside, "else there is nothing to try"
    assert heard == [], "nothing is said to whoever speaks so"


def _listeners() -> Iterator[tuple[str, int]]:
    """Yield where the processes of the run listen, those of this one and of the workers' jobs."""
    for process in (psutil.Process(), *filter(_is_worker, psutil.process_iter())):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield connection.laddr.ip, connection.laddr.port


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "SLURM_JOB_ID" in process.environ()
    except psutil.Error:
        return False


def answer(place: tuple[str, int], context: ssl.SSLContext | None) -> bytes:
    """What a listener says to a request for its identity; nothing if it hangs up."""
    try:
        with socket.create_connection(place, timeout=3) as plain:
            line: socket.socket = context.wrap_socket(plain) if context else plain
            with line:
                line.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return line.recv(1)
    except (TimeoutError, OSError):
        return b""


def test_keys__are_for_their_owner_only(machines: Machines, folder: Path) -> None:
    keys = folder / "keys"
    assert keys.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
    assert sorted(path.name for path in keys.iterdir()) == [
        "ca.pem", "client.key", "client.pem", "scheduler.key", "scheduler.pem", "worker.key", "worker.pem",
    ]  # fmt: skip


def test_job__whose_worker_is_cancelled_ends_with_what_threads_compute(
    machines: Machines, make_job: MakeJob, threads: ThreadExecutor, same_store: Callable[[Path, Path], None],
    measured: Measured,
) -> None:  # fmt: skip
    settings: dict[str, Any] = {"images": {"source": "digits", "sample": 240}, "batch": 1}
    steps: list[Any] = [{"moments": None}, {"svd": {"rank": 3, "layer": "relu1", "method": "krylov"}}]
    before = {job for job in in_queue() if "-extract-" in queue.look()[job].name}
    there = workers(machines).keys()
    cancelled: list[str] = []
    times: list[float] = []

    def cancel(event: events.Event) -> None:
        if event.kind == "progress" and event.step == "extract" and not cancelled:
            cancelled.append(min(before))
            queue.cancel(cancelled)
            times.append(time.monotonic())
        elif len(times) == 1 and workers(machines).keys() - there:
            times.append(time.monotonic())

    with events.listening(cancel):
        result = run_job(make_job(*steps, store="slurm.zarr", **settings), machines.executor("extract"))
    assert cancelled
    wait_until(lambda: len(workers(machines)) == 3, 60, "the replaced worker")
    times.append(time.monotonic())
    assert (result.outcome.quarantined, result.outcome.images) == ({}, 240)
    same_store(result.store, run_job(make_job(*steps, store="threads.zarr", **settings), threads).store)
    after = {job for job in in_queue() if "-extract-" in queue.look()[job].name}
    assert cancelled[0] not in after
    assert len(after - before) == 1
    tries = [json.loads(path.read_bytes())["tries"] for path in Path(f"{result.store}.units").glob("extract/*/*.done")]
    measured(
        seconds_until_a_cancelled_worker_was_replaced=round(times[1] - times[0], 1),
        units_tried_again_after_that=sum(number > 1 for number in tries),
    )


def test_worker__that_is_killed_is_started_again_by_its_own_job(machines: Machines) -> None:
    wait_until(lambda: len(workers(machines)) == 3, 60, "all workers")
    jobs, pids = set(in_queue()), set(machines.client.run(os.getpid).values())
    os.kill(min(pids), 9)
    wait_until(lambda: set(machines.client.run(os.getpid, on_error="ignore").values()) - pids, 60, "another process")
    assert set(in_queue()) == jobs


def test_workers__that_cannot_run_are_named_with_what_slurm_says(machines: Machines, folder: Path) -> None:
    """Both GPUs are taken, so that another job that wants one waits."""
    waiting = ProfileSpec.model_validate(
        {"backend": "slurm", "state": str(folder / "state"), "security": {"bind": "lo"}, "start_timeout": "4s",
         "pools": {"extract": {"memory": "1GiB"}, "memory": {"memory": "1GiB", "gpus": 1, "partition": "gpu"}}}
    )  # fmt: skip
    jobs, began = set(in_queue()), time.monotonic()
    with pytest.raises(DneuroError) as caught, backend_of(waiting).open():
        raise AssertionError("there can be no worker")
    assert time.monotonic() - began < 4 + 10 + 5, "start_timeout, ten seconds, and those of the start itself"
    text = str(caught.value)
    assert "has no worker: none came within 4.0 s" in text
    assert "pool memory" in text or "pool extract" in text
    if "pool memory" in text:
        assert "PENDING (Resources)" in text
    assert ".log" in text
    wait_until(lambda: set(in_queue()) == jobs, 20, "the others' jobs to be gone")


def test_worker__whose_time_is_up_is_replaced(slurm: Path, folder: Path, measured: Measured) -> None:
    profile = ProfileSpec.model_validate(
        {"backend": "slurm", "state": str(folder / "state"), "security": {"bind": "lo"},
         "pools": {"extract": {"memory": "2GiB", "walltime": "1m", "partition": "cpu"}}}
    )  # fmt: skip
    with backend_of(profile).open(name="timed") as machines:
        (first,) = workers(machines)
        number = first.rpartition(".")[2]
        wait_until(lambda: queue.look()[number].state == "TIMEOUT", 150, "Slurm to end it")
        began = time.monotonic()
        wait_until(lambda: workers(machines).keys() - {first}, 60, "another worker")
        took = time.monotonic() - began
        assert machines.executor("extract").submit(sum, [1, 2]).result(timeout=30) == 3
    measured(seconds_from_a_workers_walltime_to_another_one=round(took, 1))


def test_slurmd__stopped_costs_its_node_and_no_more(
    slurm: Path, folder: Path, make_job: MakeJob, threads: ThreadExecutor, same_store: Callable[[Path, Path], None],
    measured: Measured,
) -> None:  # fmt: skip
    profile = ProfileSpec.model_validate(
        {"backend": "slurm", "state": str(folder / "state"), "security": {"bind": "lo"},
         "pools": {"extract": {"workers": 2, "cpus": 1, "memory": "2GiB", "partition": "cpu"}}}
    )  # fmt: skip
    with backend_of(profile).open(name="nodes") as machines:
        machines.client.wait_for_workers(2, timeout=60)
        mine = {number for number, job in queue.look().items() if job.name.startswith("nodes-") and not job.ended}
        stopped = min(node_of(number) for number in mine)  # both are there, unless a job before them is just ending
        (other,) = {"n1", "n2"} - {stopped}
        began = time.monotonic()
        with stopped_node(slurm, stopped):
            wait_until(lambda: {node_of(n) for n in _running("nodes-")} == {other}, 90, "the jobs on the other node")
            wait_until(lambda: len(_running("nodes-")) == 2, 60, "both jobs on the other node")
            took = time.monotonic() - began
            result = run_job(make_job(store="one.zarr"), machines.executor("extract"))
    same_store(result.store, run_job(make_job(store="threads.zarr"), threads).store)
    measured(seconds_from_a_stopped_slurmd_to_its_jobs_on_another_node=round(took, 1))


@pytest.mark.parametrize("name", ["a%j b", r"a\b 'c' %j"])
def test_workers__come_up_whatever_letters_are_in_the_path_of_their_logs(
    slurm: Path, folder: Path, name: str
) -> None:
    profile = ProfileSpec.model_validate(
        {"backend": "slurm", "state": str(folder / name), "security": {"bind": "lo"}, "slurm": {"scratch": str(folder)},
         "start_timeout": "90s", "pools": {"extract": {"memory": "2GiB", "partition": "cpu"}}}
    )  # fmt: skip
    with backend_of(profile).open(name="odd ones") as machines:
        assert machines.executor("extract").submit(sum, [1, 2]).result(timeout=30) == 3
    (own,) = (folder / name / "clusters").iterdir()
    (log,) = (own / "logs").iterdir()
    assert log.name.startswith("odd-ones-")
    assert "distributed" in log.read_text()


def _running(name: str) -> list[str]:
    return [number for number, job in queue.look().items() if job.name.startswith(name) and job.state == "RUNNING"]
