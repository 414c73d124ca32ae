"""Workers that are lost in every way, while a job runs on them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

import dneuro as dn
from dneuro import events
from dneuro.cluster import Machines, backend_of
from dneuro.engine.executors import ThreadExecutor
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec, PoolSpec, ProfileSpec

MakeJob = Callable[..., JobSpec]
Measured = Callable[..., None]
ENDS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, None)
"""Killed, segmentation fault, told to end, closed in order by the scheduler."""


PROFILE = ProfileSpec(backend="local", pools={"extract": PoolSpec(workers=2, memory="1792MiB")})


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two workers."""
    with backend_of(PROFILE).open() as opened:
        yield opened


@pytest.fixture
def impatient(times: Callable[[int, int], int]) -> Iterator[Machines]:
    """Two workers; one that no longer answers is given up after seconds, not five minutes."""
    given_up = {"distributed.scheduler.worker-ttl": f"{max(8, times(8, 15))}s"}
    with dask.config.set(given_up), backend_of(PROFILE).open() as opened:
        yield opened


def pids(machines: Machines) -> dict[str, int]:
    """Process id of each worker, by its address."""
    found: dict[str, int] = machines.client.run(os.getpid, on_error="ignore")
    return found


def restart(machines: Machines, address: str) -> None:
    with contextlib.suppress(Exception):  # the answer may come when the test is over
        machines.client.restart_workers([address], raise_for_error=False)


def all_here(machines: Machines) -> bool:
    return len(machines.client.scheduler_info(n_workers=-1)["workers"]) == 2


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "in time"
        time.sleep(0.05)


def lose(machines: Machines, random_one: random.Random) -> None:
    """End a random worker in a random way."""
    address, pid = random_one.choice(sorted(pids(machines).items()))
    how = random_one.choice(ENDS)
    if how is None:
        threading.Thread(target=restart, args=(machines, address), daemon=True).start()
    else:
        os.kill(pid, how)


def slow() -> Any:
    """Return a plugin that has each unit take a while, so that a worker is lost in the midst of one."""
    from distributed import WorkerPlugin

    class Slow(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            from dneuro.extract import task

            self.honest = task.batches
            task.batches = self.batches

        def batches(self, *args: Any) -> Any:
            time.sleep(0.1)
            return self.honest(*args)

        def teardown(self, worker: Any) -> None:
            from dneuro.extract import task

            task.batches = self.honest

    return Slow()


def tries(store: Path) -> dict[str, int]:
    """How often each unit was begun until it was done, as its markers say."""
    found: dict[str, int] = {}
    for path in Path(f"{store}.units").glob("extract/*/*.done"):
        found[path.stem] = max(found.get(path.stem, 0), json.loads(path.read_bytes())["tries"])
    return found


def test_workers__lost_at_random_cost_nothing(
    machines: Machines, make_job: MakeJob, threads: ThreadExecutor, same_store: Callable[[Path, Path], None],
    times: Callable[[int, int], int], measured: Measured,
) -> None:  # fmt: skip
    count = times(2, 20)
    sample, unit = (1600, 4) if count > 2 else (320, 16)
    settings: dict[str, Any] = {"images": {"source": "digits", "sample": sample}, "images_per_unit": unit, "batch": 1}
    one, lost = random.Random(6), []

    def strike(event: events.Event) -> None:
        if event.kind != "progress" or event.step != "extract" or len(lost) == count:
            return
        if all_here(machines):
            lose(machines, one)
            lost.append(event.data["unit"])
        while not all_here(machines):  # the next one is lost in the midst of other units
            time.sleep(0.1)

    with events.listening(strike):
        machines.client.register_plugin(slow(), name="slow")
        try:
            result = run_job(make_job(store="lost.zarr", **settings), machines)
        finally:
            machines.client.unregister_worker_plugin("slow")
    assert len(lost) == count
    assert result.outcome.quarantined == {}
    assert result.outcome.units == len(list(Path(f"{result.store}.units").glob("extract/fc/*.done")))
    same_store(result.store, run_job(make_job(store="clean.zarr", **settings), threads).store)
    tried = tries(result.store)
    assert len(tried) == result.outcome.units
    measured(
        workers_lost=count,
        units=result.outcome.units,
        units_failed=len(result.outcome.quarantined),
        units_tried_again=sum(number > 1 for number in tried.values()),
    )


def test_worker__lost_twice_in_a_row_comes_back(machines: Machines) -> None:
    """dask looks 15 seconds after a loss whether the worker is there, and else gives its place up."""

    def workers() -> dict[str, str]:
        return {worker["name"]: at for at, worker in machines.client.scheduler_info(n_workers=-1)["workers"].items()}

    began = time.monotonic()
    for moment in (0, 14.4):
        wait_for(lambda: all_here(machines))
        time.sleep(max(0, began + moment - time.monotonic()))
        address = workers()["extract-0"]
        os.kill(pids(machines)[address], signal.SIGKILL)
        wait_for(lambda address=address: address not in workers().values())
    time.sleep(max(0, began + 16 - time.monotonic()))
    wait_for(lambda: all_here(machines))


def test_worker__that_stands_still_is_given_up_and_its_units_move(
    impatient: Machines, make_job: MakeJob, threads: ThreadExecutor, same_store: Callable[[Path, Path], None],
    measured: Measured,
) -> None:  # fmt: skip
    settings: dict[str, Any] = {"images": {"source": "digits", "sample": 320}, "batch": 1}
    stopped: list[psutil.Process] = []

    def stop(event: events.Event) -> None:
        if event.kind == "progress" and event.step == "extract" and not stopped:
            stopped.append(psutil.Process(random.Random(1).choice(sorted(pids(impatient).values()))))
            stopped[0].suspend()

    began = time.monotonic()
    try:
        with events.listening(stop):
            result = run_job(make_job(store="stopped.zarr", **settings), impatient)
        took = time.monotonic() - began
    finally:
        for process in stopped:
            if process.is_running():
                process.resume()
    assert stopped
    assert result.outcome.quarantined == {}
    assert result.outcome.images == 320
    same_store(result.store, run_job(make_job(store="moving.zarr", **settings), threads).store)
    measured(seconds_with_a_stopped_worker=round(took, 1))


@pytest.mark.parametrize("way", ["segfaults", "exhausts its memory"])
def test_unit__that_kills_its_worker_each_time_is_left_out(
    machines: Machines, make_job: MakeJob, way: str, tmp_path: Path, measured: Measured
) -> None:
    """The limit of the nanny, 99 % of a worker's memory, ends it as the kernel would."""
    from distributed import WorkerPlugin

    def deadly(work: Any, layers: Any, start: int, stop: int) -> None:
        import ctypes

        if work.store.name == "deadly.zarr" and start == 16:
            with (tmp_path / "tries").open("a") as log:
                log.write(f"{os.getpid()}\n")
            if way == "segfaults":
                ctypes.string_at(0)
            held = []
            while True:
                held.append(bytearray(os.urandom(1)) * 2**26)
                time.sleep(0.05)

    class Deadly(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            from dneuro.extract import task

            honest = task.batches

            def batches(work: Any, layers: Any, start: int, stop: int) -> Any:
                deadly(work, layers, start, stop)
                return honest(work, layers, start, stop)

            task.batches = batches

    machines.client.register_plugin(Deadly(), name="deadly")  # on workers that are started later, too
    try:
        with pytest.raises(dn.DneuroError) as caught:
            run_job(make_job(store="deadly.zarr"), machines)
    finally:
        machines.client.unregister_worker_plugin("deadly")
    assert caught.value.exit_code == 3
    assert "1 of 3 units" in str(caught.value)
    assert "unit 1 was begun 3 times and never finished" in str(caught.value)
    tried = (tmp_path / "tries").read_text().split()
    assert len(tried) == len(set(tried)) == 3, "the scheduler's own tries count too"
    done = {path.name for path in tmp_path.glob("deadly.zarr.units/extract/*/*.done")}
    assert done == {"00000.done", "00002.done"}
    measured(**{f"tries_of_a_unit_that_{way.split()[0]}": len(tried)})


def test_ports__of_a_running_job_listen_on_loopback_alone(
    machines: Machines, make_job: MakeJob, measured: Measured
) -> None:
    seen: set[tuple[str, int]] = set()

    def scan(event: events.Event) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    seen.add((connection.laddr.ip, connection.laddr.port))

    with events.listening(scan):
        run_job(make_job(store="scanned.zarr"), machines)
    assert len(seen) >= 3
    assert {ip for ip, _ in seen} <= {"127.0.0.1", "::1"}
    measured(listeners=len(seen), listeners_beyond_loopback=0)


def test_pool__whose_workers_cannot_start_is_named_in_time(measured: Measured) -> None:
    pool = PoolSpec(workers=1, memory="1GiB", env={"PYTHONHOME": "/nowhere"})  # no Python can start there
    profile = ProfileSpec(backend="local", pools={"extract": pool}, start_timeout=5)
    began = time.monotonic()
    with pytest.raises(dn.DneuroError, match=r"within 5 s \(pool extract: 1 workers"), backend_of(profile).open():
        raise AssertionError("there can be no worker")
    took = time.monotonic() - began
    assert took < 5 + 10
    measured(start_timeout=5, seconds_until_named=round(took, 1))
