"""Workers that dask has paused: it is said which, and a run does not wait for them for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import dask
import pytest

from dneuro import events
from dneuro.engine import DaskExecutor, standstill
from dneuro.engine.standstill import stands_still
from dneuro.errors import DneuroError
from dneuro.quantities import GiB


@pytest.fixture
def client() -> Iterator[Any]:
    """Two workers, threads of this process, that nobody but the test pauses."""
    from distributed import Client, Scheduler, SpecCluster, Worker

    common: dict[str, Any] = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    worker = {"cls": Worker, "options": {**common, "nthreads": 1, "memory_limit": GiB, "resources": {"extract": 1}}}
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0}}
    with (
        dask.config.set({f"distributed.worker.memory.{at}": False for at in ("target", "spill", "pause")}),
        SpecCluster({"a": worker, "b": worker}, scheduler, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


def pause(client: Any, *workers: str, on: bool = True) -> None:
    """As a worker does itself when its memory is full."""
    from distributed.core import Status

    def turn(dask_worker: Any) -> None:
        dask_worker.status = Status.paused if on else Status.running

    client.run(turn, workers=list(workers))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []
    with events.listening(lambda event: said.append(event.message) if event.kind == "warning" else None):
        yield said


@pytest.mark.parametrize("pool", [None, "extract"])
def test_workers__that_all_stand_still_end_the_wait(
    client: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str], pool: str | None
) -> None:
    monkeypatch.setattr(standstill, "NOTICED", 0.5)
    executor = DaskExecutor(client, pool, patience=3)
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    pause(client, *workers)
    task = executor.submit(sum, [1, 2])
    with pytest.raises(DneuroError, match=r"has stood still for 3\.0 s: worker tcp://\S+ is paused") as caught:
        executor.wait([task])
    assert all(worker in str(caught.value) for worker in workers)
    assert f"of {1} GiB" in str(caught.value)
    assert "restart_workers" in str(caught.value.hint)
    assert ("of pool extract" in str(caught.value)) is (pool is not None)
    assert sorted(message.split()[1] for message in warnings) == workers, "each once, and before the end"


def test_worker__that_goes_on_in_time_ends_nothing(
    client: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(standstill, "NOTICED", 0.0)
    executor = DaskExecutor(client, patience=60)
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    pause(client, *workers)
    task = executor.submit(sum, [1, 2])
    threading.Timer(4, pause, (client, *workers), {"on": False}).start()
    assert executor.wait([task]) == {task}
    assert task.result() == 3
    assert len(warnings) == 2


def described(address: str, status: str, **tasks: int) -> dict[str, Any]:
    counts = {state.replace("_", "-"): count for state, count in tasks.items()}
    return {"address": address, "status": status, "memory_limit": GiB,
            "metrics": {"memory": GiB, "task_counts": counts}}  # fmt: skip


def test_worker__that_still_has_a_task_in_hand_may_yet_free_its_memory() -> None:
    assert stands_still(described("a", "paused", ready=3, memory=2))
    assert not stands_still(described("a", "paused", executing=1))
    assert not stands_still(described("a", "paused", long_running=1))
    assert not stands_still(described("a", "running"))
    assert not stands_still({"address": "a"})


def test_worker__that_stands_still_beside_others_is_spoken_of_and_no_more(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(standstill.time, "monotonic", lambda: now[0])
    watched = standstill.Standstill("", 60)
    one, other = described("tcp://a:1", "paused"), described("tcp://b:1", "running")
    for now[0] in (0.0, 9.0):
        watched.look([one, other])
    assert warnings == []
    for now[0] in (11.0, 100.0, 200.0):
        watched.look([one, other])
    assert len(warnings) == 1
    assert "tcp://a:1 is paused and begins nothing more, for its memory is full: it holds 1 GiB of 1 GiB" in warnings[0]
    assert "--memory-limit" in warnings[0]
    watched.clear()  # a task has come to its end
    now[0] = 201.0
    watched.look([one])
    now[0] = 260.0
    watched.look([one])
    now[0] = 262.0
    with pytest.raises(DneuroError, match="stood still for"):
        watched.look([one])
