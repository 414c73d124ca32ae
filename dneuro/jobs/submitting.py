"""Giving a job to a driver of its own: submit, resume, retry."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dneuro.cluster import Backend, DriverRef, backend_of, profile_folders, record
from dneuro.errors import BusyError, DneuroError, UsageError
from dneuro.jobs.asking import Asking, drivers, liveliest, state_of, without_answer
from dneuro.jobs.attempt import ENDED
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import SILENCE, Holder, holder, refuse_if_busy
from dneuro.jobs.members import AnyPlan, plan_any
from dneuro.jobs.needed import check_files
from dneuro.jobs.watching import status
from dneuro.quantities import format_duration
from dneuro.spec import (
    AnyJob,
    JobSpec,
    ProfileSpec,
    SeriesSpec,
    find_profile,
    members_of,
    read_profile,
    read_study,
    store_pattern,
)
from dneuro.store.units import units_folder


def command_of(folder: JobFolder) -> list[str]:
    """Return the command that drives a job."""
    return [sys.executable, "-m", "dneuro", "drive", str(folder.path)]


def read_both(
    job: AnyJob | str | os.PathLike[str], cluster: ProfileSpec | str | os.PathLike[str], overrides: Sequence[str] = ()
) -> tuple[AnyJob, ProfileSpec]:
    """Return a job and a profile, each given as such or as a file."""
    spec = job if isinstance(job, JobSpec | SeriesSpec) else read_study(Path(job), overrides)
    return spec, read_cluster(cluster)


def read_cluster(cluster: ProfileSpec | str | os.PathLike[str]) -> ProfileSpec:
    """Return a profile that is given as such, as a file or by name."""
    if isinstance(cluster, ProfileSpec):
        return cluster
    return read_profile(find_profile(os.fspath(cluster), profile_folders()))


def submit(job: AnyJob, profile: ProfileSpec) -> tuple[JobFolder, AnyPlan]:
    """Check a job, write its folder and start its driver, which outlives this process.

    Parameters
    ----------
    job : JobSpec or SeriesSpec
        What to compute; one driver works on all members of a series, one after the other, on the same workers.
    profile : ProfileSpec
        Where.

    Returns
    -------
    (JobFolder, JobPlan or MembersPlan)
        Where its state is, and what it will cost.

    Raises
    ------
    UsageError
        If anything the job says cannot be, as `plan` says it; nothing was started.
    FingerprintError
        If its store was made from something else.
    BusyError
        If a driver is at work on it already, or waits to be, whichever profile it was started with.
    """
    backend = backend_of(profile)
    folder = JobFolder.of(profile.state, job)
    before = refuse_if_driven(folder, profile)
    for one in members_of(job).values():
        refuse_if_busy(units_folder(one.store) / "attempts")
    check_files(job, backend)
    planned = plan_any(job, backend.sizes)
    if before is not None:
        before.clean_up(folder.path)
    folder.write(job, profile, planned.to_dict(), "submit")
    (folder.path / "retry.json").unlink(missing_ok=True)
    folder.remember("retry", {})  # whoever submits a job wants all of it
    _start(folder, backend)
    return folder, planned


def resume(folder: JobFolder) -> AnyPlan:
    """Start another driver for a job that is not done; what is done stays done.

    Raises
    ------
    BusyError
        If its driver lives.
    UsageError
        If it is done.
    FingerprintError
        If its images, weights or settings are other ones than those its store was made from.
    """
    backend = backend_of(folder.read_profile())
    _refuse_if_driven(folder, backend)
    now = status(folder, backend)
    if now.state == "done":
        raise UsageError(f"job {folder.id} is done", hint="dneuro submit JOB, to have what was added to it computed")
    with _in_folder(folder.submitted_in):
        check_files(folder.read_job(), backend)
        planned = plan_any(folder.read_job(), backend.sizes)
    backend.clean_up(folder.path)  # what a dead driver may have left
    (folder.path / "cancel.json").unlink(missing_ok=True)
    _start(folder, backend)
    return planned


def retry(folder: JobFolder) -> int:
    """Start another driver that also tries the units again that failed again and again; return how many there are.

    Raises
    ------
    UsageError
        If there are none.
    BusyError
        If a driver lives.
    """
    backend = backend_of(folder.read_profile())
    _refuse_if_driven(folder, backend)
    failed = sum(1 for store in folder.stores.values() for _ in (units_folder(store) / "quarantine").glob("*.json"))
    if not failed:
        raise UsageError(f"no unit of job {folder.id} has failed for good", hint=f"dneuro resume {folder.id}")
    folder.remember("retry", {})
    resume(folder)
    return failed


def _start(folder: JobFolder, backend: Backend) -> DriverRef:
    job = folder.read_job()
    before = folder.read_status()
    folder.remember("status", {**_blank(before), "id": folder.id, "store": store_pattern(job), "state": "pending"})
    try:
        ref = backend.start_driver(folder.path, command_of(folder), job.name)
    except DneuroError as error:  # nobody waits to be started
        _take_back(folder, before, error)
        raise
    folder.remember("driver", ref.to_dict())
    return ref


def _take_back(folder: JobFolder, before: dict[str, object], error: DneuroError) -> None:
    """Leave a job as it was whose driver could not be started; one that was not there before is not there again."""
    if not before and holder(folder.attempts) is None and not record.driver_may_be_left(folder.path):
        folder.remove()
        return
    said = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    failed = {"id": folder.id, "store": store_pattern(folder.read_job()), "state": "failed",
              "exit_code": error.exit_code, "ended": time.time(), "error": said}  # fmt: skip
    folder.remember("status", before or failed)


def _blank(before: dict[str, object]) -> dict[str, object]:
    """Return what of an earlier attempt's state is still true."""
    return {key: before[key] for key in ("units", "steps", "report") if key in before}


def refuse_if_driven(folder: JobFolder, profile: ProfileSpec) -> Backend | None:
    """Refuse to give a job to a profile while a driver lives or waits, whichever profile that one was started with.

    Parameters
    ----------
    folder : JobFolder
        The job's; it need not be there yet.
    profile : ProfileSpec
        What it is to be given to; nothing is written.

    Returns
    -------
    Backend or None
        Of the profile that the job was given to before, if machines may be left there: they are known by the job's
        folder alone, and to be ended before that names another profile.

    Raises
    ------
    BusyError
        If there is such a driver; where the profile is of another backend also if nobody can tell.
    """
    before = _kept_profile(folder) or profile
    backend = backend_of(before)
    let_go = _refuse_if_driven(folder, backend, leaving=before.backend != profile.backend)
    return None if let_go or before == profile else backend


def _kept_profile(folder: JobFolder) -> ProfileSpec | None:
    """Return the profile that a job was given to; None if it was given to none, or that is another version's."""
    try:
        return folder.read_profile()
    except (UsageError, NotADirectoryError):
        return None


def _refuse_if_driven(folder: JobFolder, backend: Backend, *, leaving: bool = False) -> bool:
    """Refuse a job whose driver lives, or waits to; note which attempt is dead, for the next driver to know.

    When `leaving` its backend, a driver that this does not answer for counts as one that waits: nobody asks any more.

    Returns whether all that was started for the job has ended in order.
    """

    def ask(found: Holder) -> bool | None:
        its = drivers(folder, found)
        return {"gone": False, "running": True}.get(state_of(its[0], backend)) if its else None

    last = holder(folder.attempts, ask)
    said, left = folder.read_status().get("state"), folder.read("cancel").get("left")
    if said in ENDED and last is not None and last.lease is not None and last.lease["ended"] is not None:
        return not left  # its process may still be about to leave
    ended = said == "cancelled" and not left  # by `cancel`, which has ended all there was
    refs = [ref for ref in drivers(folder, last) if not _is_idle(ref, last)]
    states = Asking().states(refs, backend)
    asked = liveliest(states)
    if asked in ("pending", "running") or (last is not None and last.alive):
        who = str(last) if last is not None and last.alive else "its driver"
        raise BusyError(
            f"{who} is at work on job {folder.id}" + (" or waits to be started" if asked == "pending" else ""),
            hint=f"dneuro logs {folder.id} -f follows it, dneuro cancel {folder.id} ends it",
        )
    if asked == "unknown" and last is not None and last.alive is None:  # what it started would be ended with it
        rest = format_duration(max(0.0, SILENCE - last.silence))
        raise BusyError(
            f"{last} is at work on job {folder.id}, as far as one can tell from here; if it stays silent it counts as "
            f"dead in {rest}",
            hint=f"dneuro logs {folder.id} -f follows it; the same command in {rest}, where it is dead",
        )
    if leaving and not ended and (silent := without_answer(refs, states, last)) is not None:
        raise BusyError(
            f"nobody can tell whether a driver waits to be started for job {folder.id}: {silent.backend} does not "
            f"answer for {silent.id}",
            hint=f"dneuro cancel {folder.id}, when it does; where it is gone for certain, remove {folder.path}",
        )
    if last is not None and last.alive is False:
        folder.remember("dead", {"attempt": last.number})
    return ended


def _is_idle(ref: DriverRef, last: Holder | None) -> bool:
    """Return whether a process at which somebody sits drives nothing now: it may live on for long, as a notebook."""
    return bool(ref.details.get("attended")) and last is not None and last.alive is False


class _in_folder:  # noqa: N801 - reads as contextlib's do
    """Be in another folder for a while, if it is seen from here."""

    def __init__(self, folder: str) -> None:
        self._folder, self._before = folder, Path.cwd()

    def __enter__(self) -> None:
        if Path(self._folder).is_dir():
            os.chdir(self._folder)

    def __exit__(self, *error: object) -> None:
        os.chdir(self._before)
