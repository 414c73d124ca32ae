"""Workers that are all lost, more than once: each time there is the same patience."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from dneuro.engine import DaskExecutor, executors
from dneuro.errors import DneuroError, SchedulerLostError


class Client:
    """A client whose workers come and go as the test says."""

    class scheduler:  # noqa: N801 - as of dask's client
        address = "tcp://here"

    def __init__(self) -> None:
        self.here = True

    def submit(self, *args: Any) -> None:
        raise AssertionError("no task is sent")

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {"tcp://a": {"nthreads": 1, "memory_limit": 2**30}} if self.here else {}}


class Task:
    def __init__(self, status: str = "pending") -> None:
        self.status = status


@pytest.mark.parametrize("between", [True, False], ids=["tasks done in between", "nothing done in between"])
def test_workers__lost_a_second_time_are_waited_for_as_long_as_the_first_time(
    monkeypatch: pytest.MonkeyPatch, between: bool
) -> None:
    monkeypatch.setattr(executors, "LOOK", 0.01)
    client = Client()
    executor = DaskExecutor(client, patience=0.5)
    client.here = False
    first = Task()

    def done_by_a_worker_that_came() -> None:
        time.sleep(0.2)
        client.here, first.status = True, "finished"
        executor._changed.set()

    helper = threading.Thread(target=done_by_a_worker_that_came)
    helper.start()
    while executor._deserted is None and helper.is_alive():
        executor._refuse_deserted()
    lost = executor._deserted
    assert lost is not None
    helper.join()
    if between:
        executor.wait([first])
    time.sleep(0.6)  # of good work, with no wait that is long enough to look at the workers
    client.here, executor._seen = False, -1.0
    if between:
        executor._refuse_deserted()  # the patience begins anew
        assert executor._deserted is not None
        assert executor._deserted > lost
    with pytest.raises(DneuroError, match="every worker is lost"):
        executor.wait([Task()])


def test_result__that_was_lost_with_its_worker_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """dask computes it again, and says so; only what the scheduler has forgotten is cancelled."""
    monkeypatch.setattr(executors, "LOOK", 0.01)
    executor = DaskExecutor(Client(), patience=5)
    task = Task("lost")
    threading.Timer(0.2, lambda: setattr(task, "status", "finished")).start()
    assert executor.wait([task]) == {task}
    assert task.status == "finished"
    with pytest.raises(SchedulerLostError):
        executor.wait([Task("cancelled")])
