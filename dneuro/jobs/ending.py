"""Ending a job, and clearing away what ended jobs leave."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dneuro import events, files
from dneuro.cluster import Backend, backend_of, processes
from dneuro.errors import CancelledError, DneuroError
from dneuro.jobs.asking import drivers, state_of
from dneuro.jobs.attempt import ENDED
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import holder
from dneuro.jobs.watching import RESTING, UNREADABLE, JobStatus, status, status_of_any
from dneuro.quantities import format_duration
from dneuro.store.files import Location, remove
from dneuro.store.remote import RemotePath
from dneuro.store.units import units_folder

GRACE = 20.0
"""Seconds that a driver is given to end in order."""


@dataclass(frozen=True)
class Cancelled:
    """What `cancel` did.

    Parameters
    ----------
    status : JobStatus
        How the job is now.
    ended : list of str
        Machines that were left over, and are ended now.
    """

    status: JobStatus
    ended: list[str]


def cancel(folder: JobFolder, *, grace: float = GRACE) -> Cancelled:
    """End a job: politely, then for certain, then all of its machines that are left; its driver may be dead.

    What is done stays done, and `resume` goes on from there. A job that has ended stays as it is.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    grace : float
        Seconds that its driver is given to end in order.

    Raises
    ------
    DneuroError
        If the driver cannot be reached from here; it will notice by itself that it is to end. Or if nobody answers for
        the machines that may be left, as Slurm's controller when it is away; `status` says so until they are ended.
    """
    backend = backend_of(folder.read_profile())
    before = status(folder, backend)
    if before.state not in ENDED:
        folder.remember("cancel", {"time": time.time()})
        try:
            _stop(folder, grace)
        finally:
            ended = _clean_up(folder, backend)
        if status(folder, backend).state not in ENDED:  # it could not say so itself
            kept = folder.read_status()
            stopped = {"type": "CancelledError", "message": "stopped by the user; what is done stays done"}
            now = {"state": "cancelled", "exit_code": CancelledError.exit_code, "ended": time.time()}
            folder.remember("status", {**kept, **now, "error": {**stopped, "hint": f"dneuro resume {folder.id}"}})
    else:
        ended = _clean_up(folder, backend)
    return Cancelled(status(folder, backend), ended)


def _clean_up(folder: JobFolder, backend: Backend) -> list[str]:
    """End the machines that are left, and return them; note in the job's folder where they could not be ended."""
    said = folder.read("cancel")
    try:
        ended = backend.clean_up(folder.path)
    except DneuroError as error:
        folder.remember("cancel", {"time": time.time(), **said, "left": error.message})
        raise DneuroError(
            f"job {folder.id} is told in its folder to end, but what is left of it could not be ended: {error.message}",
            hint=f"dneuro cancel {folder.id} once more, later" + (f"; {error.hint}" if error.hint else ""),
        ) from error
    if "left" in said:
        folder.remember("cancel", {key: value for key, value in said.items() if key != "left"})
    return ended


def _stop(folder: JobFolder, grace: float) -> None:
    """End the driver, if it lives; both, if there are two."""
    backend = backend_of(folder.read_profile())
    unreached = False
    for ref in drivers(folder, holder(folder.attempts)):
        state = state_of(ref, backend)
        if state == "unknown" or (state == "running" and ref.details.get("attended")):
            unreached = True  # a process that somebody sits at is interrupted, not ended
        elif ref.backend == "local":
            processes.stop(ref, grace)
        else:
            backend.stop_driver(ref, grace=grace)
    if unreached:
        _wait_for_notice(folder, grace)


def _wait_for_notice(folder: JobFolder, grace: float) -> None:
    """Wait until a driver that cannot be reached from here has read that it is to end."""
    over = time.monotonic() + grace
    while (last := holder(folder.attempts)) is not None and last.alive is not False:
        if time.monotonic() > over:
            raise DneuroError(
                f"{last} drives job {folder.id}, and cannot be reached from here; it was told in the job's folder to "
                f"end, and gave its last sign of life {format_duration(last.silence)} ago",
                hint=f"the same command on {last.lease['host'] if last.lease else 'its machine'}",
            )
        time.sleep(0.5)


@dataclass(frozen=True)
class Waste:
    """What `gc` found.

    Parameters
    ----------
    what : str
        ``job`` for the folder of a job that is over, ``partial`` for a file that a killed writer left half written.
    path : Path or RemotePath
        Where it lies.
    why : str
        Why nobody needs it.
    """

    what: str
    path: Location
    why: str

    def to_dict(self) -> dict[str, str]:
        """Return what JSON can hold."""
        return {"what": self.what, "path": str(self.path), "why": self.why}


def waste(folders: list[JobFolder], *, older: float = 0.0) -> list[Waste]:
    """Return what jobs that are over leave behind: their folders, and half-written files beside their stores.

    Stores, their markers and their results are never among it.

    Parameters
    ----------
    folders : list of JobFolder
        Jobs to look at.
    older : float
        Only those that ended so many seconds ago or more.
    """
    found = []
    for folder in folders:
        now = status_of_any(folder)
        ended = now.found.get("ended")
        if now.state == "unreadable":
            events.emit("warning", folder.id, f"is left alone: {now.found['error']['message']}")
        if now.state not in RESTING:
            continue
        try:
            for store in folder.stores.values():
                found += _partials(units_folder(store))
        except UNREADABLE as error:  # what there is to its stores nobody knows; other jobs are looked at all the same
            events.emit("warning", folder.id, f"is left alone: {error}")
            continue
        left = folder.read("cancel").get("left")  # then only what is in the folder says what its machines are
        if now.state in ("done", "cancelled") and not left and ended is not None and time.time() - ended >= older:
            found.append(Waste("job", folder.path, f"{now.state} {format_duration(time.time() - ended)} ago"))
    return found


def _partials(units: Location) -> list[Waste]:
    busy = holder(units / "attempts")
    if isinstance(units, RemotePath) or not units.is_dir() or (busy is not None and busy.alive is not False):
        return []
    return [Waste("partial", path, "left half written") for path in sorted(units.rglob(f"*{files.PARTIAL}"))]


def clear(found: list[Waste]) -> None:
    """Remove what `waste` found; of a job in an object store also what its driver has printed here."""
    for one in found:
        remove(one.path)
        if one.what == "job":
            remove(processes.log_of(one.path))
