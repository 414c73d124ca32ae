"""Keeps as many worker jobs of each pool in the queue as the profile says: what is lost is submitted again."""

from __future__ import annotations

import contextvars
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dneuro import events
from dneuro.cluster.record import Record
from dneuro.cluster.slurm import queue
from dneuro.cluster.slurm.queue import BatchJob, SlurmError
from dneuro.errors import DneuroError
from dneuro.quantities import format_duration

POLL = 5.0
"""Seconds between two looks at the queue."""

LOST = 45.0
"""Seconds that the worker of a running job may be away before the job is replaced; its nanny takes five."""

LOADING = 300.0
"""Seconds that a job may run before its worker is there."""

FRUITLESS = 3
"""Jobs of a pool in a row that may end without their worker ever having been there, until one is."""

SILENT = 3
"""Submissions without an answer at the start, each of which takes its time, after which no more are tried at once."""

SOON = 60.0
"""Seconds: a worker that is lost in the first ones of its job may be lost again as soon, and all others with it."""

LATEST = 60.0
"""The most seconds between two tries, where one after the other fails."""


@dataclass
class Slot:
    """The place of one worker, and the job that fills it.

    Parameters
    ----------
    pool : str
        Worker group.
    number : int
        Counts the workers of the pool.
    new : bool
        Whether it has never had a job: the start may leave places without one.
    """

    pool: str
    number: int
    new: bool = True
    job: str | None = None
    name: str = ""
    running: float | None = None
    seen: float | None = None
    log: str = ""

    @property
    def worker(self) -> str:
        """The name under which the scheduler knows its worker; unlike the job's, it is never used again."""
        return f"{self.pool}-{self.number}.{self.job}"


@dataclass
class Pool:
    """What is known of the workers of one pool.

    Parameters
    ----------
    slots : list of Slot
        Their places.
    """

    slots: list[Slot]
    fruitless: int = 0
    refused: int = 0
    next_try: float = 0.0
    ended: list[BatchJob] = field(default_factory=list)
    last_log: str = ""


class Keeper:
    """Submits, watches, replaces and ends the worker jobs of one run.

    Parameters
    ----------
    workers : dict of str to int
        Workers per pool.
    script : callable
        Gives the batch script for a pool, the name of a job, and its worker's without the job's number.
    present : callable
        Gives the names of the workers that the scheduler has.
    folder : Path
        For scripts and `Record`.
    name : str
        The beginning of the names of all jobs; nobody else's may begin so.
    """

    def __init__(
        self,
        workers: dict[str, int],
        script: Callable[[str, str, str], str],
        present: Callable[[], set[str]],
        folder: Path,
        name: str,
    ) -> None:
        self.pools = {pool: Pool([Slot(pool, number) for number in range(count)]) for pool, count in workers.items()}
        self._script, self._present, self._folder, self._name = script, present, folder, name
        self._record = Record(folder)
        self._count = itertools.count()
        self._doubtful: set[str] = set()
        self._over = threading.Event()
        self._lock = threading.Lock()
        # In this context: whoever listens to events here hears what the thread says.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="dneuro-slurm", daemon=True
        )

    def start(self) -> None:
        """Submit all jobs and watch them from now on.

        Where Slurm does not answer in time, the job may have been taken: it is looked for with all others, and
        submitted again if it is not there. After `SILENT` of them the rest is left to that, too, and at once where its
        controller is away.

        Raises
        ------
        SlurmError
            If Slurm does not take them.
        """
        silent = 0
        for slot in self._slots():
            try:
                self._submit(slot)
            except queue.NoAnswerError as error:
                silent += 1
                events.emit("note", message=f"a worker job for pool {slot.pool} may have been taken: {error.message}")
                if silent == SILENT:
                    break
            except queue.AwayError as error:
                events.emit("note", message=f"the worker jobs are submitted once Slurm is back: {error.message}")
                break
        self._thread.start()

    def wait(self, pools: dict[str, float]) -> None:
        """Wait until each pool has a worker; `pools` says for how many seconds.

        Raises
        ------
        DneuroError
            If one has none in time, or its jobs end one after the other: says what Slurm says of them.
        """
        began = time.monotonic()
        missing = dict(pools)
        while missing:
            there = self._present()
            for pool, timeout in list(missing.items()):
                its = self.pools[pool]
                if any(slot.worker in there for slot in its.slots):
                    del missing[pool]
                elif its.fruitless >= FRUITLESS:
                    raise self._nobody(pool, f"{its.fruitless} of its jobs ended before their worker was there")
                elif time.monotonic() - began > timeout:
                    raise self._nobody(pool, f"none came within {format_duration(timeout)}")
            time.sleep(0.1)

    def close(self) -> None:
        """Cancel all jobs."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=queue.PATIENCE)
        with self._lock:
            jobs = [slot.job for slot in self._slots() if slot.job]
            try:
                queue.cancel([*jobs, *self._unanswered()])
            except SlurmError as error:
                events.emit("warning", message=f"jobs {', '.join(jobs)} could not be cancelled: {error.message}")

    def _unanswered(self) -> list[str]:
        """Return the jobs that Slurm has taken, although it did not say so in time; by their names, all there is."""
        if not self._doubtful:
            return []
        try:
            there = queue.look().values()
        except SlurmError as error:
            names = ", ".join(sorted(self._doubtful))
            events.emit("warning", message=f"of the jobs {names} nobody knows if they were taken: {error.message}")
            return []
        return [job.id for job in there if job.name in self._doubtful and not job.ended]

    def _slots(self) -> list[Slot]:
        return [slot for pool in self.pools.values() for slot in pool.slots]

    def _submit(self, slot: Slot) -> None:
        slot.name = f"{self._name}-{slot.pool}-{slot.number}-{next(self._count)}"
        script = self._folder / "scripts" / f"{slot.name}.sh"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(self._script(slot.pool, slot.name, f"{slot.pool}-{slot.number}"))
        # The name first: should this process end before it has the number, the job can still be found.
        self._record.write(kind="slurm", role="worker", name=slot.name)
        self._doubtful.add(slot.name)
        slot.log = str(self._folder / "logs" / f"{slot.name}.log")
        slot.job, slot.running, slot.seen = queue.submit(script, slot.name), None, None
        slot.new = False
        self._doubtful.discard(slot.name)
        self._record.write(kind="slurm", role="worker", name=slot.name, id=slot.job)
        self.pools[slot.pool].last_log = slot.log

    def _run(self) -> None:
        while not self._over.wait(POLL):
            try:
                with self._lock:
                    self._look(queue.look(), self._present(), time.monotonic())
            except SlurmError as error:  # a controller that is away says nothing about the jobs
                events.emit("note", message=f"the queue cannot be seen: {error.message}")
            except (OSError, TimeoutError):
                continue  # the scheduler is closing
            except Exception as error:  # whatever it is: without this thread nothing lost would be replaced any more
                what = f"{type(error).__name__}: {error}"
                events.emit("note", message=f"the worker jobs could not be looked after this time: {what}")

    def _look(self, jobs: dict[str, BatchJob], workers: set[str], now: float) -> None:
        """Compare what there is with what there should be, and replace what is lost."""
        self._take_in(jobs)
        for name, pool in self.pools.items():
            for slot in pool.slots:
                if slot.job is None:
                    self._try_again(pool, slot, now)
                    continue
                job = queue.find(jobs, slot.job, slot.name)
                if slot.worker in workers:
                    slot.seen, pool.fruitless = now, 0
                if why := self._lost(slot, job, now):
                    if (job is None and slot.job not in jobs) or (job is not None and not job.ended):
                        queue.cancel([slot.job])  # to be sure; unless its number is another's by now
                    self._give_up(pool, slot, job, f"the worker job {slot.job} of pool {name} {why}", now)

    def _take_in(self, jobs: dict[str, BatchJob]) -> None:
        """Give its place to a job that Slurm has taken without saying so in time; end it where there is another one."""
        places = {slot.name: slot for slot in self._slots() if slot.job is None}
        for job in jobs.values():
            if job.name not in self._doubtful:
                continue
            if slot := places.get(job.name):
                slot.job, slot.running, slot.seen, slot.new = job.id, None, None, False
            elif not job.ended:
                queue.cancel([job.id])
            self._doubtful.discard(job.name)
            self._record.write(kind="slurm", role="worker", name=job.name, id=job.id)

    def _lost(self, slot: Slot, job: BatchJob | None, now: float) -> str:
        """Return what has become of a job that no worker will come from any more; nothing if it is well."""
        if job is None or job.ended:
            return f"ended: {job.state if job else 'the queue does not know it any more'}"
        if job.ending:
            return "is ending"
        if job.state == "RUNNING":
            slot.running = slot.running or now
            if slot.seen and now - slot.seen > LOST:
                return f"runs without its worker for {LOST:g} s"
            if not slot.seen and now - slot.running > LOADING:
                return f"runs for {LOADING:g} s and its worker has not come"
        return ""

    def _give_up(self, pool: Pool, slot: Slot, job: BatchJob | None, why: str, now: float) -> None:
        assert slot.job is not None
        self._record.write(kind="slurm", role="worker", name=slot.name, id=slot.job, lost=why)
        if slot.seen is None:
            pool.fruitless += 1
        pool.ended = [*pool.ended, job or BatchJob(slot.job, slot.name, "GONE", "")][-FRUITLESS:]
        pool.last_log = slot.log
        slot.job = None
        events.emit("note", message=f"{why}; another one is submitted", data={"log": slot.log})
        if pool.fruitless:
            pool.next_try = max(pool.next_try, now + min(LATEST, 2.0**pool.fruitless))
        elif slot.running is not None and now - slot.running >= SOON and not pool.refused:
            pool.next_try = now  # a node that fails, or is wanted by others, may take many with it, once
        self._try_again(pool, slot, now)

    def _try_again(self, pool: Pool, slot: Slot, now: float) -> None:
        """Submit a job for a place that has none, unless Slurm has just refused one; then later and later."""
        if self._over.is_set() or now < pool.next_try:
            return
        if pool.fruitless or not slot.new:  # one at a time; after a start without answers, all at once
            pool.next_try = now + POLL
        try:
            self._submit(slot)
            pool.refused = 0
        except SlurmError as error:  # other places are looked after all the same
            pool.refused += 1
            pool.next_try = now + min(LATEST, POLL * 2.0**pool.refused)
            events.emit("note", message=f"Slurm has not taken a worker job for pool {slot.pool}: {error.message}")

    def _nobody(self, pool: str, why: str) -> DneuroError:
        """Return the error for a pool without workers, with Slurm's own words."""
        its = self.pools[pool]
        ids = [slot.job for slot in its.slots if slot.job]
        try:
            there = queue.look(patience=4.0)
            said = [str(there[number]) for number in ids if number in there]
        except SlurmError as error:
            said = [error.message]
        said += [str(job) for job in its.ended if job.id not in ids]
        log = Path(its.last_log)
        lines = _last_lines(log)
        told = "".join(f"\n  {line}" for line in lines)
        return DneuroError(
            f"pool {pool} has no worker: {why}; {'; '.join(said) or 'no job was taken'}; log {log}{told}",
            hint=f"partition, walltime, memory and gpus of pools.{pool} and slurm.setup in the profile; a longer "
            "start_timeout where the queue is long",
        )


def _last_lines(log: Path, count: int = 5) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []
