"""Submitted jobs from Python: start one, look at it, wait for it, open what it made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dneuro.cluster import profile_folders
from dneuro.errors import CancelledError, DneuroError, PartialError
from dneuro.jobs import ending, submitting, watching
from dneuro.jobs.asking import ASKED, Asking
from dneuro.jobs.folder import JobFolder, find, folders
from dneuro.jobs.watching import JobStatus
from dneuro.quantities import format_duration
from dneuro.spec import AnyJob, ProfileSpec, find_profile, read_profile
from dneuro.store.opening import Store, open_store

_ERRORS = {"partial": PartialError, "cancelled": CancelledError}


class Job:
    """A submitted job. It runs whether or not anybody holds this.

    Parameters
    ----------
    folder : JobFolder
        Where its state is.
    """

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder

    @property
    def id(self) -> str:
        """Id of the job, as the command line takes it."""
        return self._folder.id

    def status(self) -> JobStatus:
        """Return how the job is: its state, and in ``found`` steps, units, rate, workers, memory, error."""
        return watching.status(self._folder)

    def logs(self, *, follow: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the events of the newest attempt; with `follow`, until the job ends."""
        yield from watching.follow(self._folder) if follow else watching.entries(self._folder)[0]

    def wait(
        self,
        timeout: float | None = None,
        progress: Callable[[JobStatus], object] | None = None,
        *,
        period: float = 1.0,
    ) -> JobStatus:
        """Wait until nothing runs any more.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which to give up; the job goes on.
        progress : callable, optional
            Called with the status every `period` seconds.
        period : float
            Seconds between two looks.

        Raises
        ------
        TimeoutError
            If the job is not over within `timeout`.
        """
        began, asking = time.monotonic(), Asking(ASKED)
        while not (now := watching.status(self._folder, asking=asking)).is_over:
            if progress is not None:
                progress(now)
            if timeout is not None and time.monotonic() - began > timeout:
                raise TimeoutError(f"job {self.id} is {now.state} after {format_duration(timeout)}")
            time.sleep(period)
        return now

    def cancel(self, *, grace: float = ending.GRACE) -> JobStatus:
        """End the job and all its machines; what is done stays done."""
        return ending.cancel(self._folder, grace=grace).status

    def resume(self) -> None:
        """Start another driver, if the last one is gone."""
        submitting.resume(self._folder)

    def result(self, timeout: float | None = None) -> Store | dict[str, Store]:
        """Wait until the job is over and open its store; of a job about several networks those of all, by name.

        Raises
        ------
        PartialError, CancelledError, DneuroError
            If it did not end well; what is done can be opened all the same: ``dn.open(path)``.
        TimeoutError
            If it is not over within `timeout` seconds.
        """
        now = self.wait(timeout)
        if now.state != "done":
            said = now.found.get("error") or {"message": f"job {self.id} is {now.state}"}
            raise _ERRORS.get(now.state, DneuroError)(said["message"], hint=now.advice or said.get("hint"))
        stores = {member: open_store(store) for member, store in self._folder.stores.items()}
        return stores.get("", stores)

    def __repr__(self) -> str:
        return f"<dneuro job {self.id}: {self.status().state}>"


def submit(
    job: AnyJob | str | os.PathLike[str],
    cluster: ProfileSpec | str | os.PathLike[str] = "local",
    *,
    overrides: Sequence[str] = (),
) -> Job:
    """Check a job and start it on a driver of its own, which outlives this process.

    Parameters
    ----------
    job : JobSpec, SeriesSpec or path
        What to compute.
    cluster : ProfileSpec or path
        A profile, or its path or name: where to compute.
    overrides : sequence of str
        Settings that take the place of the job file's, such as ``"steps.svd.rank=16"``.

    Returns
    -------
    Job
        To look at it, to wait for it, to end it.

    Raises
    ------
    UsageError
        If anything the job says cannot be; nothing was started.
    BusyError
        If a driver is at work on it already.
    """
    folder, _ = submitting.submit(*submitting.read_both(job, cluster, overrides))
    return Job(folder)


def jobs(name: str | None = None, cluster: ProfileSpec | str | os.PathLike[str] = "local") -> list[Job]:
    """Return the jobs of a profile, the newest first; or the one of this id, beginning of an id, or name.

    Raises
    ------
    UsageError
        If there is no job `name`, or several fit.
    """
    known = (
        cluster
        if isinstance(cluster, ProfileSpec)
        else read_profile(find_profile(os.fspath(cluster), profile_folders()))
    )
    if name is not None:
        return [Job(find(name, known.state))]
    found = sorted(folders(known.state), key=lambda folder: -float(folder.read("submitted").get("time", 0)))
    return [Job(folder) for folder in found]
