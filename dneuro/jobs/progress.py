"""How far a job is, made of its events: the steps with their rates, the units, the workers' memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dneuro import events
from dneuro.engine.standstill import stands_still
from dneuro.engine.workers import workers_of

StepState = Literal["waiting", "running", "done", "failed"]


@dataclass
class StepProgress:
    """One step of a job.

    Parameters
    ----------
    step : str
        Its name.
    state : str
        ``waiting``, ``running``, ``done`` or ``failed``.
    done, total : float
        Work done and in all, in units of `what`.
    what : str
        Such as ``images``, ``layers``, ``epochs``.
    rate : float
        Per second: of late, and over all of this attempt once the step is done.
    left : float or None
        Seconds that the rest will take at this rate.
    seconds : float
        Time it has taken in this attempt.
    """

    step: str
    state: StepState = "waiting"
    done: float = 0
    total: float = 0
    what: str = ""
    rate: float = 0.0
    left: float | None = None
    seconds: float = 0.0
    _began: tuple[float, float] = field(default=(0.0, 0.0), repr=False)
    _pace: events.Pace = field(default_factory=events.Pace, repr=False)

    def take(self, event: events.Event) -> None:
        """Follow an event of this step."""
        if event.kind == "started" or self.state == "waiting":
            self._began = (event.time, event.done)
        self.done, self.total, self.what = event.done, event.total, event.what
        self.state = "done" if event.kind == "finished" else "running"
        began, before = self._began
        self.seconds = event.time - began
        self._pace.take(event)
        self.rate = self._pace.rate
        self.left = (self.total - self.done) / self.rate if self.rate else None
        if self.state == "done":
            self.rate = (self.done - before) / self.seconds if self.seconds > 0 else 0.0
            self.left = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {one.name: getattr(self, one.name) for one in fields(self) if not one.name.startswith("_")}


class Progress:
    """All steps of a job and all its workers, as far as the events of this attempt tell.

    Parameters
    ----------
    steps : iterable of str
        Names of the steps, in order.
    """

    def __init__(self, steps: Iterable[str]) -> None:
        self.steps = {name: StepProgress(name) for name in steps}
        self._units: dict[str, dict[str, int]] = {}
        self._lock = threading.RLock()  # events come from where the work is done, questions from the status thread
        self.warnings = 0
        self.workers: dict[str, int] = {}
        self.memory: dict[str, dict[str, int]] = {}
        self.peak = 0  # also of workers that are gone, and no longer in the table
        self.paused: list[str] = []

    def take(self, event: events.Event) -> None:
        """Follow an event."""
        with self._lock:
            if event.kind == "warning":
                self.warnings += 1
            if "units" in event.data:
                self._units[event.step] = dict(event.data["units"])
            if not event.parent and event.total and event.kind in ("started", "progress", "finished"):
                self.steps.setdefault(event.step, StepProgress(event.step)).take(event)

    def expect(self, units: Mapping[str, tuple[int, int]]) -> None:
        """Note how many units there will be, and how many of them are done, by step; until its events say more."""
        with self._lock:
            for step, (total, done) in units.items():
                self._units.setdefault(step, {"total": total, "done": done, "failed": 0, "masked": 0})

    @property
    def units(self) -> dict[str, int]:
        """Units done, failed, …: of all members of a series."""
        found: Counter[str] = Counter()
        with self._lock:
            for units in self._units.values():
                found.update(units)
        return dict(found)

    def fail(self) -> None:
        """Note that the attempt has ended in the midst of its steps."""
        for step in list(self.steps.values()):
            if step.state == "running":
                step.state, step.left = "failed", None

    def look(self, client: Any) -> None:
        """See which workers there are and what they hold."""
        workers = workers_of(client).values()
        with self._lock:
            self._count(workers)

    def _count(self, workers: Iterable[Mapping[str, Any]]) -> None:
        self.workers, self.paused, before = {}, [], self.memory
        self.memory = {}
        for worker in workers:
            if stands_still(worker):
                self.paused.append(str(worker["name"]))
            name, now = str(worker["name"]), int(worker["metrics"].get("memory", 0))
            group = _pool_of(worker)
            self.workers[group] = self.workers.get(group, 0) + 1
            peak = max(now, int(worker["metrics"].get("peak_memory", 0)), before.get(name, {}).get("peak", 0))
            self.memory[name] = {"now": now, "peak": peak, "limit": int(worker["memory_limit"] or 0)}
            self.peak = max(self.peak, peak)
        if not self.memory:  # they have all ended, as at the end of a job: those that were there last are still told
            self.memory = {name: {**one, "now": 0} for name, one in before.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        with self._lock:
            return self._as_dict()

    def _as_dict(self) -> dict[str, Any]:
        running = [step for step in self.steps.values() if step.state == "running"]
        return {
            "steps": [step.to_dict() for step in self.steps.values()],
            "units": self.units,
            "rate": running[-1].rate if running else None,
            "left": running[-1].left if running else None,
            "workers": dict(self.workers),
            "memory": dict(self.memory),
            "paused": list(self.paused),
            "peak_memory": self.peak,
            "warnings": self.warnings,
            "updated": time.time(),
        }


def _pool_of(worker: Mapping[str, Any]) -> str:
    """Return the pool that a worker is shown as part of.

    It is the one resource that ours offer: the operator of dask-kubernetes names workers in its own way. Where a worker
    of somebody else's offers none, or several, it is what its name begins with.
    """
    offered = list(worker.get("resources") or {})
    return str(offered[0]) if len(offered) == 1 else str(worker["name"]).rpartition("-")[0] or "workers"
