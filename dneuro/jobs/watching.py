"""What is true of a job, whatever its driver last wrote: a driver that died cannot say so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dneuro.cluster import Backend, DriverRef, DriverState, backend_of, processes
from dneuro.errors import DneuroError
from dneuro.jobs.attempt import ENDED
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import Holder, holder
from dneuro.quantities import format_duration

RESTING = (*ENDED, "interrupted", "lost")
"""States in which nothing runs."""

UNREADABLE = (DneuroError, OSError, KeyError, TypeError, ValueError)
"""What the folder of a job may raise that another version wrote, or that somebody has changed."""

STARTUP = 60.0
"""Seconds after which a driver of which nobody can tell anything, and which never began, counts as lost."""


@dataclass(frozen=True)
class JobStatus:
    """How a job is.

    Parameters
    ----------
    id : str
        Its id.
    state : str
        ``pending`` (its driver waits to be started), ``starting`` (its workers are), ``running``, ``done``, ``partial``
        (some units failed again and again), ``failed``, ``cancelled``, ``interrupted`` (its driver's machine, or the
        scheduler's, was taken away) or ``lost`` (its driver died);
        in a list of jobs also ``unreadable``.
    advice : str
        What to do; empty if nothing.
    found : dict
        All that is known: attempt, steps, units, rate, workers, memory, error, ….
    """

    id: str
    state: str
    advice: str
    found: dict[str, Any]

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, nor will by itself."""
        return self.state in RESTING

    @property
    def exit_code(self) -> int | None:
        """Exit code of the job; None while it runs, or if it never ended."""
        code = self.found.get("exit_code")
        return int(code) if self.is_over and code is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**self.found, "id": self.id, "state": self.state, "advice": self.advice, "exit_code": self.exit_code}


def drivers(folder: JobFolder, last: Holder | None) -> list[DriverRef]:
    """Return the drivers that a job may have: the one that holds its lease, and the one that was started last.

    They are one and the same, but where the next one has yet to begin, or two were started at the same moment: of those
    one gets the lease and the other leaves, and which was started last says nothing.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    last : Holder or None
        Who holds the lease, or held it last.
    """
    holding = DriverRef.read(last.lease.get("driver")) if last is not None and last.lease else None
    started = folder.read_driver()
    if holding is not None and started is not None and holding.is_same(started):
        return [started]
    return [ref for ref in (holding, started) if ref is not None]


def state_of(ref: DriverRef, backend: Backend) -> DriverState:
    """Return whether a driver waits, runs or is gone, as whoever started it knows."""
    return processes.state(ref) if ref.backend == "local" else backend.driver_state(ref)


def driver_state(folder: JobFolder, backend: Backend, last: Holder | None = None) -> DriverState:
    """Return whether a job has a driver that runs, or one that waits to be started; else whether all are gone.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    backend : Backend
        Where its driver was started.
    last : Holder, optional
        Who holds the lease, where that was looked at already.
    """
    found = {state_of(ref, backend) for ref in drivers(folder, last or holder(folder.attempts))}
    return next((state for state in _LIVELIEST if state in found), "unknown")


_LIVELIEST: tuple[DriverState, ...] = ("running", "pending", "ending", "unknown", "gone")


def status(folder: JobFolder, backend: Backend | None = None) -> JobStatus:
    """Return what is true of a job.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    backend : Backend, optional
        Where its driver was started; the default is that of the profile in the folder.
    """
    written, submitted = folder.read_status(), folder.read("submitted")
    found = {"submitted": submitted.get("time"), "command": submitted.get("command"), "user": submitted.get("user"),
             "folder": str(folder.path), **written}  # fmt: skip
    said = str(written.get("state", "pending"))
    left = folder.read("cancel").get("left")
    note = f"it was told to end, and machines of it may be left: {left}" if left else ""
    if said in ENDED:
        return JobStatus(folder.id, said, _advice(folder, said, left), found | ({"note": note} if note else {}))
    backend = backend or backend_of(folder.read_profile())
    log = processes.log_of(folder.path)
    last = holder(folder.attempts)
    driver = driver_state(folder, backend, last)
    state, why = _truth(said, last, written, driver, submitted, log=_named(log, folder) if log.is_file() else "")
    if state == driver == "pending" and (its := _why_waiting(folder, backend, last)):
        why = f"{why}: {its}"
    if not written and (folder.path / "status.json").is_file():
        why = "status.json is damaged" + (f"; {why}" if why else "")
    if state == "lost":
        found |= {"error": {"type": "Lost", "message": why, "hint": None}, "exit_code": None}
        why = ""
    if why or note:
        found["note"] = "; ".join(part for part in (why, note) if part)
    return JobStatus(folder.id, state, _advice(folder, state, left), found)


def status_of_any(folder: JobFolder) -> JobStatus:
    """Return what is true of a job among others: ``unreadable``, and why, where its folder is not whole."""
    try:
        return status(folder)
    except UNREADABLE as error:
        why = error.message if isinstance(error, DneuroError) else f"{type(error).__name__}: {error}"
        said = {"type": type(error).__name__, "message": why, "hint": getattr(error, "hint", None)}
        return JobStatus(folder.id, "unreadable", "", {"folder": str(folder.path), "error": said})


def _truth(
    said: str, last: Holder | None, written: dict[str, Any], driver: DriverState, submitted: dict[str, Any],
    *, log: str = processes.LOG,
) -> tuple[str, str]:  # fmt: skip
    """Return the state and a remark, of what the driver said, its lease, and whoever started it."""
    current = last is not None and last.number >= int(written.get("attempt") or 1) and "attempt" in written
    if current and last is not None and last.alive:
        return said, ""
    if driver == "pending" or (driver in _WAITS and not current):
        return "pending", _WAITS[driver]
    if driver in _WAITS:
        # There by whoever started it, though its lease is over or silent: it begins again, or is about to end.
        ended = last is not None and last.alive is False
        again = " again" if driver == "running" else ""
        return ("pending", f"{_WAITS[driver]}{again}") if ended else (said, "")
    if said == "interrupted":
        return said, ""
    if driver == "unknown":
        if current and last is not None and last.alive is None:
            return said, f"its driver, {last}, gave its last sign of life {format_duration(last.silence)} ago"
        if not current and time.time() - float(submitted.get("time", 0)) < STARTUP:
            return "pending", "nobody can tell whether its driver has been started"
    unbegun = "its driver ended before it began" + (f": see {log}" if log else "")
    who = f"its driver, {last}, has died" if current else unbegun
    return "lost", f"{who}; what was done stays done"


_WAITS = {
    "pending": "its driver waits to be started",
    "running": "its driver begins",
    "ending": "what is left of its driver is being ended",
}
"""Why a job waits, by the state of its driver."""


def _why_waiting(folder: JobFolder, backend: Backend, last: Holder | None) -> str:
    """Return why a job's driver waits to be started, as far as whoever starts it says."""
    queued = (ref for ref in drivers(folder, last) if ref.backend != "local")
    return next(filter(None, map(backend.why_waiting, queued)), "")


def _named(log: Path, folder: JobFolder) -> str:
    """Return how a driver's log is called: by its name alone where it lies in the job's folder."""
    return log.name if isinstance(folder.path, Path) else str(log)


def _advice(folder: JobFolder, state: str, left: str | None) -> str:
    if left:
        return f"dneuro cancel {folder.id}"
    commands = {
        "lost": f"dneuro resume {folder.id}",
        "interrupted": f"dneuro resume {folder.id}",
        "cancelled": f"dneuro resume {folder.id}",
        "failed": f"dneuro logs {folder.id}",
        "partial": f"dneuro retry {folder.id} --failed",
    }
    return commands.get(state, "")


def entries(folder: JobFolder, attempt: int | None = None, after: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the events of an attempt from byte `after` on, and where to go on; the default is the newest attempt."""
    import json

    number = attempt or int(folder.read_status().get("attempt") or 0)
    try:
        content = (folder.attempt(number) / "events.jsonl").read_bytes()[after:]
    except FileNotFoundError:
        return [], after
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], after + len(whole)


def follow(folder: JobFolder, *, period: float = 1.0) -> Iterator[dict[str, Any]]:
    """Yield the events of the newest attempt, and of those that come after it, until nothing runs any more."""
    number, after = 0, 0
    while True:
        over = status(folder).is_over  # before the last look, lest something is written in between
        newest = int(folder.read_status().get("attempt") or 0)
        if newest != number:
            number, after = newest, 0
        found, after = entries(folder, number, after) if number else ([], 0)
        yield from found
        if over:
            return
        time.sleep(period)
