"""The jobs of a pool are replaced as they end, as often as that makes sense."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dneuro import events
from dneuro.cluster import backend_of
from dneuro.cluster.record import Record
from dneuro.cluster.slurm import backend, keeper, queue
from dneuro.cluster.slurm.keeper import Keeper
from dneuro.cluster.slurm.queue import AwayError, BatchJob, NoAnswerError, SlurmError
from dneuro.errors import DneuroError
from tests.cluster.slurm.conftest import profile


class Pretended:
    """A Slurm of the test's own: jobs are what it says they are."""

    def __init__(self) -> None:
        self.jobs: dict[str, BatchJob] = {}
        self.workers: set[str] = set()
        self.cancelled: list[str] = []
        self.state = "PENDING"

    def submit(self, path: Path, name: str) -> str:
        number = str(len(self.jobs) + 1)
        self.jobs[number] = BatchJob(number, name, self.state, "Priority")
        return number

    def look(self, patience: float = 0) -> dict[str, BatchJob]:
        return dict(self.jobs)

    def cancel(self, ids: Any, **settings: Any) -> None:
        self.cancelled += sorted(ids)

    def turn(self, number: str, state: str) -> None:
        self.jobs[number] = BatchJob(number, self.jobs[number].name, state, "")

    def worker(self, number: str) -> str:
        *_, pool, slot, _ = self.jobs[number].name.split("-")
        return f"{pool}-{slot}.{number}"

    def come(self, number: str) -> None:
        self.turn(number, "RUNNING")
        self.workers.add(self.worker(number))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    site = Pretended()
    for name in ("submit", "look", "cancel"):
        monkeypatch.setattr(queue, name, getattr(site, name))
    monkeypatch.setattr(queue, "look_back", lambda ids: {})
    monkeypatch.setattr(keeper, "POLL", 0.02)
    return site


@pytest.fixture
def kept(site: Pretended, tmp_path: Path) -> Iterator[Keeper]:
    workers = {"extract": 2, "memory": 1}
    kept = Keeper(workers, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    kept.start()
    yield kept
    kept.close()
    assert not set(site.jobs) - set(site.cancelled) - {n for n, job in site.jobs.items() if job.ended}


def until(true: Callable[[], Any]) -> None:
    over = time.monotonic() + 10
    while not true():
        assert time.monotonic() < over
        time.sleep(0.01)


def test_keeper__replaces_a_job_that_ended(site: Pretended, kept: Keeper, tmp_path: Path) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    time.sleep(0.1)
    assert len(site.jobs) == 3
    site.turn("2", "PREEMPTED")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name.startswith("a-1-extract-1-"), "in the place of the lost one"
    assert site.jobs["4"].name != site.jobs["2"].name
    recorded = (tmp_path / "machines.jsonl").read_text()
    assert all(f'"id": "{number}"' in recorded for number in "1234")
    assert "ended: PREEMPTED" in recorded


def test_keeper__replaces_a_job_whose_number_is_anothers_and_leaves_that_one_alone(
    site: Pretended, kept: Keeper
) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    site.jobs["2"] = BatchJob("2", "mine", "RUNNING", "")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name.startswith("a-1-extract-1-")
    kept.close()
    assert sorted(site.cancelled) == ["1", "3", "4"]
    site.turn("2", "COMPLETED")


def test_keeper__replaces_a_job_that_slurm_is_ending_however_long_that_takes(site: Pretended, kept: Keeper) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    site.turn("2", "COMPLETING")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name.startswith("a-1-extract-1-")
    time.sleep(0.1)
    assert len(site.jobs) == 4


def test_keeper__replaces_a_running_job_whose_worker_went_away(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LOST", 0.1)
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    time.sleep(0.1)
    site.workers.discard(site.worker("1"))
    until(lambda: "1" in site.cancelled)
    until(lambda: len(site.jobs) == 4)


def test_keeper__gives_up_where_jobs_end_one_after_the_other(site: Pretended, tmp_path: Path) -> None:
    site.state = "FAILED"
    kept = Keeper({"extract": 2}, lambda pool, name, worker: "true", lambda: set(), tmp_path, "a-1")
    kept.start()
    try:
        with pytest.raises(DneuroError, match=r"pool extract has no worker: \d of its jobs ended") as caught:
            kept.wait({"extract": 60})
        assert "job 1 FAILED (Priority)" in str(caught.value)
        tried = len(site.jobs)
        time.sleep(0.3)
        assert len(site.jobs) <= tried + 1, "ever more slowly"
    finally:
        kept.close()


def test_keeper__ends_a_job_that_was_taken_without_an_answer(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before it was looked for."""

    def late(path: Path, name: str) -> str:
        site.submit(path, name)
        raise NoAnswerError("sbatch did not answer within 20 s")

    site.jobs["1"] = BatchJob("1", "b-2-extract-0-0", "RUNNING", "")
    monkeypatch.setattr(queue, "submit", late)
    monkeypatch.setattr(keeper, "POLL", 60)
    kept = Keeper({"extract": 1}, lambda pool, name, worker: "true", lambda: set(), tmp_path, "a-1")
    kept.start()
    kept.close()
    assert site.cancelled == ["2"], "that one, and nobody else's"


@pytest.mark.parametrize("taken", [True, False])
def test_keeper__goes_on_where_slurm_does_not_answer_at_the_start(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    asked: list[str] = []

    def silent(path: Path, name: str) -> str:
        if threading.current_thread() is threading.main_thread():  # the keeper's own may look for them already
            asked.append(name)
        if taken:
            site.submit(path, name)
        raise NoAnswerError("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")

    monkeypatch.setattr(queue, "submit", silent)
    kept = Keeper({"extract": 7}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    monkeypatch.setattr(keeper, "POLL", 0.2)
    kept.start()
    try:
        assert len(asked) == keeper.SILENT, "a controller that is away for long is not asked for each of them"
        monkeypatch.setattr(queue, "submit", site.submit)
        until(lambda: all(slot.job for slot in kept.pools["extract"].slots))
        time.sleep(0.5)
        assert len(site.jobs) == 7, "each place has one job"
        for number in site.jobs:
            site.come(number)
        kept.wait({"extract": 5})
    finally:
        kept.close()
    assert sorted(site.cancelled) == sorted(site.jobs)


def test_keeper__submits_once_a_controller_is_back_that_is_away_at_the_start(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(path: Path, name: str) -> str:
        if threading.current_thread() is threading.main_thread():
            asked.append(name)
        raise AwayError("sbatch: error: Unable to contact slurm controller (connect failure)")

    monkeypatch.setattr(queue, "submit", away)
    kept = Keeper({"extract": 7}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    monkeypatch.setattr(keeper, "POLL", 0.2)
    kept.start()
    try:
        assert len(asked) == 1, "each try takes its time"
        monkeypatch.setattr(queue, "submit", site.submit)
        until(lambda: len(site.jobs) == 7)
        for number in site.jobs:
            site.come(number)
        kept.wait({"extract": 5})
    finally:
        kept.close()
    assert sorted(site.cancelled) == sorted(site.jobs)


@pytest.fixture
def five(site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Five places without a job, and nobody who looks after them but the test."""
    monkeypatch.setattr(keeper, "POLL", 5.0)
    return Keeper({"extract": 5}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")


@pytest.mark.parametrize(("lived", "replaced"), [(keeper.SOON - 1, [1, 2, 2, 3]), (keeper.SOON, [5, 5, 5, 5])])
def test_keeper__replaces_one_at_a_time_what_comes_up_and_dies(
    site: Pretended, five: Keeper, lived: float, replaced: list[int]
) -> None:
    """What has lived for a while was taken away, which may happen to many at once and says nothing about the next."""
    five._look(site.look(), site.workers, 100.0)
    assert len(site.jobs) == 5, "places that the start has left: all at once"
    for number in list(site.jobs):
        site.come(number)
    five._look(site.look(), site.workers, 101.0)
    site.workers.clear()
    for number in list(site.jobs):
        site.turn(number, "FAILED")
    found = []
    for later in (0.0, keeper.POLL, 1.5 * keeper.POLL, 2 * keeper.POLL):
        five._look(site.look(), site.workers, 101.0 + lived + later)
        found.append(len(site.jobs) - 5)
    assert found == replaced


def test_keeper__asks_seldom_where_slurm_refuses_what_replaces_many(
    site: Pretended, five: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    five._look(site.look(), site.workers, 100.0)
    for number in list(site.jobs):
        site.come(number)
    five._look(site.look(), site.workers, 101.0)
    asked: list[str] = []

    def refused(path: Path, name: str) -> str:
        asked.append(name)
        raise SlurmError("sbatch: error: partition is down")

    monkeypatch.setattr(queue, "submit", refused)
    for number in list(site.jobs):
        site.turn(number, "NODE_FAIL")
    five._look(site.look(), set(), 1000.0)
    assert len(asked) == 1
    five._look(site.look(), set(), 1000.0 + 2 * keeper.POLL)
    assert len(asked) == 2


def test_keeper__that_is_closed_submits_no_more(
    site: Pretended, five: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(path: Path, name: str) -> str:
        five._over.set()
        return site.submit(path, name)

    monkeypatch.setattr(queue, "submit", last)
    five._look(site.look(), site.workers, 100.0)
    assert len(site.jobs) == 1
    five.close()
    assert site.cancelled == ["1"]


def test_keeper__whose_jobs_are_refused_at_the_start_does_not_begin(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, name: str) -> str:
        raise SlurmError("sbatch: error: invalid partition specified: x")

    monkeypatch.setattr(queue, "submit", refused)
    kept = Keeper({"extract": 1}, lambda pool, name, worker: "true", lambda: set(), tmp_path, "a-1")
    with pytest.raises(SlurmError, match="invalid partition"):
        kept.start()
    kept.close()


@pytest.mark.parametrize("answer", ["Socket timed out", "Unable to contact slurm controller (connect failure)"])
@pytest.mark.parametrize("silent", [3, 4])
def test_open__asks_slurm_again_that_does_not_answer_for_what_an_earlier_attempt_has_left(
    commands: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int, answer: str
) -> None:
    monkeypatch.setattr(backend, "PAUSE", 0.01)
    count = f'echo x >>{tmp_path}/asked; [ "$(wc -l <{tmp_path}/asked)" -gt {silent} ]'
    commands("squeue", f"{count} || {{ echo 'error: {answer}' >&2; exit 1; }}; echo '17|RUNNING|None|b'")
    commands("scancel", f'echo "$@" >>{tmp_path}/told')
    commands("sbatch", "echo 'sbatch: error: not today' >&2; exit 1")
    Record(tmp_path / "job").write(kind="slurm", role="worker", name="b", id="17")
    of = profile(state=str(tmp_path), security={"bind": "lo"}, slurm=None)
    said = answer if silent == backend.TRIES else "not today"
    with (
        pytest.raises(SlurmError, match=re.escape(said)),
        backend_of(of).open(folder=tmp_path / "job" / "attempts" / "002"),
    ):
        raise AssertionError("there are no workers")
    assert (tmp_path / "told").exists() == (silent < backend.TRIES)


def test_keeper__takes_in_a_job_that_was_taken_without_an_answer(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-run, too: else its worker would be one too many until the end."""
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})

    def late(path: Path, name: str) -> str:
        site.submit(path, name)
        monkeypatch.setattr(queue, "submit", site.submit)
        raise SlurmError("sbatch did not answer within 20 s")

    monkeypatch.setattr(queue, "submit", late)
    site.turn("2", "PREEMPTED")
    until(lambda: kept.pools["extract"].slots[1].job == "4")
    time.sleep(0.1)
    assert len(site.jobs) == 4, "it fills the place"
    site.come("4")
    site.turn("4", "PREEMPTED")
    until(lambda: kept.pools["extract"].slots[1].job == "5")


def test_keeper__ends_a_job_that_was_taken_too_late(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "POLL", 0.01)
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    late: list[str] = []

    def without_answer(path: Path, name: str) -> str:
        late.append(name)
        monkeypatch.setattr(queue, "submit", site.submit)
        raise SlurmError("sbatch did not answer within 20 s")

    monkeypatch.setattr(queue, "submit", without_answer)
    site.turn("2", "PREEMPTED")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name not in late
    site.jobs["5"] = BatchJob("5", late[0], "PENDING", "Priority")
    until(lambda: "5" in site.cancelled)
    assert kept.pools["extract"].slots[1].job == "4"


def test_keeper__whose_jobs_are_refused_looks_after_the_others_all_the_same(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "POLL", 0.01)
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})

    def partly(path: Path, name: str) -> str:
        if "-extract-" in name:
            raise SlurmError("sbatch: error: partition is down")
        return site.submit(path, name)

    monkeypatch.setattr(queue, "submit", partly)
    for number in ("1", "3"):
        site.turn(number, "PREEMPTED")
    until(lambda: len(site.jobs) == 4)
    assert "-memory-" in site.jobs["4"].name
    monkeypatch.setattr(queue, "submit", site.submit)
    until(lambda: len(site.jobs) == 5)
    assert "-extract-" in site.jobs["5"].name


def test_keeper__names_the_pool_that_waits(site: Pretended, kept: Keeper) -> None:
    site.come("1")
    with pytest.raises(DneuroError, match=r"pool memory has no worker: none came within 0\.2 s; job 3 PENDING"):
        kept.wait({"extract": 0.2, "memory": 0.2})


def test_keeper__bears_a_controller_that_is_away(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})

    def away(patience: float = 0) -> dict[str, BatchJob]:
        raise SlurmError("no answer")

    monkeypatch.setattr(queue, "look", away)
    time.sleep(0.1)
    monkeypatch.setattr(queue, "look", lambda patience=0: {n: job for n, job in site.jobs.items() if n != "3"})
    until(lambda: len(site.jobs) == 4)
    assert site.cancelled == ["3"], "forgotten by the queue: to be sure"


def test_keeper__goes_on_whatever_a_look_at_the_queue_has_come_to(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with events.listening(lambda event: said.append(event.message)):
        kept = Keeper({"extract": 1}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    kept.start()
    try:
        site.come("1")
        kept.wait({"extract": 5})

        def torn(patience: float = 0) -> dict[str, BatchJob]:
            raise ValueError("not enough values to unpack")

        monkeypatch.setattr(queue, "look", torn)
        until(lambda: said)
        assert "could not be looked after this time: ValueError: not enough values to unpack" in said[0]
        monkeypatch.setattr(queue, "look", site.look)
        site.turn("1", "PREEMPTED")
        until(lambda: len(site.jobs) == 2)
    finally:
        kept.close()
