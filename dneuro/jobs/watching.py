"""What is true of a job, whatever its driver last wrote: a driver that died cannot say so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dneuro.cluster import Backend, DriverState, backend_of, processes
from dneuro.errors import DneuroError
from dneuro.jobs.asking import ASKED, Asking, drivers, liveliest, without_answer
from dneuro.jobs.attempt import ENDED
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import HEARTBEAT, Holder, holder
from dneuro.quantities import format_duration

RESTING = (*ENDED, "interrupted", "lost")
"""States in which nothing runs."""

UNREADABLE = (DneuroError, OSError, KeyError, TypeError, ValueError)
"""What the folder of a job may raise that another version wrote, or that somebody has changed."""

STARTUP = 60.0
"""Seconds after which a process of which nobody can tell anything, and which never began, counts as lost."""

HEARD = 3 * HEARTBEAT
"""Seconds since a driver's last sign of life within which it is not asked about by whoever looks again and again."""


@dataclass(frozen=True)
class JobStatus:
    """How a job is.

    Parameters
    ----------
    id : str
        Its id.
    state : str
        ``pending`` (its driver waits to be started, or nobody answers for it), ``starting`` (its workers are),
        ``running``, ``done``, ``partial`` (some units failed again and again), ``failed``, ``cancelled``,
        ``interrupted`` (its driver's machine, or the scheduler's, was taken away) or ``lost`` (its driver died);
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


def status(folder: JobFolder, backend: Backend | None = None, asking: Asking | None = None) -> JobStatus:
    """Return what is true of a job.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    backend : Backend, optional
        Where its driver was started; the default is that of the profile in the folder.
    asking : Asking, optional
        Of whoever looks again and again: a queue is asked now and then, and never about a driver that was heard of.
    """
    asking = asking or Asking()
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
    heard = _is_heard(last, written, asking)
    refs = [] if heard else drivers(folder, last)
    states = asking.states(refs, backend)
    driver: DriverState = "running" if heard else liveliest(states)
    unanswered = not left and without_answer(refs, states, last) is not None  # what was told to end is not waited for
    name = _named(log, folder) if log.is_file() else ""
    state, why = _truth(said, last, written, driver, submitted, unanswered=unanswered, log=name)
    if state == driver == "pending" and (its := asking.why_waiting(refs, backend)):
        why = f"{why}: {its}"
    if state == "interrupted" and driver == "gone" and (line := _last_line(log)):
        why = f"its driver is gone; {name} ends with: {line}"
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
    *, unanswered: bool = False, log: str = processes.LOG,
) -> tuple[str, str]:  # fmt: skip
    """Return the state and a remark, of what the driver said, its lease, and whoever started it.

    With `unanswered` the driver is unknown, and its queue alone could tell: it may be at starting it again.
    """
    current = _is_current(last, written)
    stopped = said == "interrupted"  # though its process, or its lease, may be there for a moment more
    if current and last is not None and last.alive and not stopped:
        return said, ""
    if driver == "pending" or (driver in _WAITS and not current):
        return "pending", _WAITS[driver]
    if driver in _WAITS:
        # There by whoever started it, though its lease is over or silent: it begins again, or is about to end.
        ended = stopped or (last is not None and last.alive is False)
        again = " again" if driver == "running" else ""
        return ("pending", f"{_WAITS[driver]}{again}") if ended else (said, "")
    if unanswered and (stopped or not current or last is None or last.alive is False):
        since = f", {last}, silent for {format_duration(last.silence)}" if current and last is not None else ""
        return "pending", f"nobody answers for its driver{since}"
    if stopped:
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


def _is_current(last: Holder | None, written: dict[str, Any]) -> bool:
    """Return whether the last lease is that of the attempt that has written the state, or of one after it."""
    return last is not None and last.number >= int(written.get("attempt") or 1) and "attempt" in written


def _is_heard(last: Holder | None, written: dict[str, Any], asking: Asking) -> bool:
    """Return whether a driver's lease says enough of it: it lives, or did a short while ago."""
    if last is None or not _is_current(last, written) or written.get("state") == "interrupted":
        return False
    return last.alive is True or (last.alive is None and asking.every > 0 and last.silence < HEARD)


def _last_line(log: Path) -> str:
    """Return the last line of what a driver has printed, however long that is; nothing where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


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
    asking = Asking(ASKED)
    while True:
        over = status(folder, asking=asking).is_over  # before the last look, lest something is written in between
        newest = int(folder.read_status().get("attempt") or 0)
        if newest != number:
            number, after = newest, 0
        found, after = entries(folder, number, after) if number else ([], 0)
        yield from found
        if over:
            return
        time.sleep(period)
