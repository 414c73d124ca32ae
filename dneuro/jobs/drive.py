"""The driver: opens a job's machines and runs it, and keeps the job's folder up to date."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dneuro import events
from dneuro.cluster import Backend, backend_of
from dneuro.cluster.processes import this_process
from dneuro.errors import CancelledError, UsageError
from dneuro.jobs.attempt import Attempt
from dneuro.jobs.driver import JobResult
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import Asked, Holder
from dneuro.jobs.members import AnyPlan, MembersPlan, MembersResult, plan_any, run_any
from dneuro.spec import AnyJob, members_of, store_pattern
from dneuro.store.files import locate


def drive(place: str) -> JobResult | MembersResult:
    """Run the job of a folder, as the detached process that `submit` starts.

    Parameters
    ----------
    place : str
        Path or URL of the job's folder.

    Raises
    ------
    BusyError
        If another driver is at work on it.
    DneuroError
        If the job fails; its folder says so too.
    """
    folder = JobFolder(locate(place).absolute())
    if not (folder.path / "job.yaml").is_file():
        raise UsageError(f"{place} is no folder of a job", hint="dneuro submit JOB makes one and starts its driver")
    with contextlib.suppress(OSError):  # relative paths are those of whoever submitted, where that folder is seen
        os.chdir(folder.submitted_in)
    if folder.read("cancel"):  # a queue may start a driver again that was to end
        raise CancelledError(f"job {folder.id} was cancelled", hint=f"dneuro resume {folder.id}")
    backend = backend_of(folder.read_profile())
    return attend(folder, folder.read_job(), backend)


def was_cancelled(place: str) -> bool:
    """Return whether somebody asked for the end of the job of a folder; else a driver's machine is taken away."""
    return bool(JobFolder(locate(place).absolute()).read("cancel"))


def attend(
    folder: JobFolder, job: AnyJob, backend: Backend, plan: AnyPlan | None = None
) -> JobResult | MembersResult:
    """Make one attempt at a job: plan, open the machines, run. Others may follow and cancel it by its folder.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    job : JobSpec or SeriesSpec
        The job.
    backend : Backend
        Where it runs.
    plan : JobPlan or MembersPlan, optional
        Of the job, if somebody sits here and has seen it; else it is planned as the first thing, and units that failed
        again and again in earlier attempts stay left out unless `retry` was asked for.

    Raises
    ------
    BusyError
        If another driver is at work on the job.
    """
    members = members_of(job)
    steps = [events.step_of(member, step.id) for member, one in members.items() for step in one.steps]
    detached = plan is None
    driver = backend.this_driver() if detached else this_process("local", attended=True)
    asked = _known_dead(folder)
    with Attempt(folder, steps, store_pattern(job), ask=asked, detached=detached, driver=driver) as attempt:
        if not detached:
            folder.remember("driver", driver.to_dict())
        planned = plan or plan_any(job, backend.sizes)
        plans = planned.members if isinstance(planned, MembersPlan) else {"": planned}
        attempt.progress.expect({
            events.step_of(member, "extract"): (one.units, one.done) for member, one in plans.items()
        })  # fmt: skip
        own = attempt.place if isinstance(attempt.place, Path) else None
        with backend.open(folder=own, name=job.name) as machines:
            attempt.machines_are_up(machines.client)
            try:
                threads = backend.sizes(next(iter(members.values())).extract.pool_name).cpus
                result = run_any(planned, machines, threads=threads, retry=not detached or attempt.takes_retry())
            finally:
                attempt.machines_go_down()
        attempt.reached(report=None if result.report is None else str(result.report))
    return result


def _known_dead(folder: JobFolder) -> Asked:
    """Return who knows which attempt is dead: `resume` asked whoever started it, and noted the answer."""

    def ask(found: Holder) -> bool | None:
        return False if folder.read("dead").get("attempt") == found.number else None

    return ask
