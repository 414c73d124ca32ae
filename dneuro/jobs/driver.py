"""Running a job here and now: check, plan, train, extract, ask, report. Running it again resumes it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from dneuro import events
from dneuro.errors import CancelledError, PartialError
from dneuro.extract.run import Outcome, extract
from dneuro.extract.work import ExtractWork
from dneuro.jobs.along import settle
from dneuro.jobs.answers import answer
from dneuro.jobs.growth import began_with, check_store, open_or_create
from dneuro.jobs.lease import Lease
from dneuro.jobs.planning import JobPlan, plan_job
from dneuro.jobs.pools import ExecutorOf, beside_network, executors_of
from dneuro.jobs.recording import record
from dneuro.jobs.reporting import write_step
from dneuro.jobs.study import Study
from dneuro.jobs.training import train
from dneuro.spec.job import JobSpec
from dneuro.spec.steps import ReportStep
from dneuro.store.files import Location, disk_error, write_atomically
from dneuro.store.opening import open_store
from dneuro.store.units import Unit, units_folder


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

    Parameters
    ----------
    store : Path or RemotePath
        The store.
    outcome : Outcome
        Of the extraction.
    computed, kept : int
        Results computed now, and those that were there.
    report : Path or RemotePath, or None
        ``index.html`` of the report.
    seconds : float
        Time it took.
    """

    store: Location
    outcome: Outcome
    computed: int
    kept: int
    report: Location | None
    seconds: float


def run_job(job: JobSpec | JobPlan, client: Any = None, *, threads: int = 1, retry: bool = True) -> JobResult:
    """Run a job on a dask client, or on threads of this process.

    Parameters
    ----------
    job : JobSpec or JobPlan
        What to compute; with its plan, if that was made before the workers were started.
    client : distributed.Client, Machines or Executor, optional
        Where; the default is the active dask client, else threads. Machines run each step on its pool.
    threads : int
        Threads that torch may use per unit.
    retry : bool
        Also try the units again that failed in earlier runs again and again; else they stay left out.

    Raises
    ------
    DneuroError
        Of the kind that says what went wrong; what was done stays done, and running the job again resumes it.
    PartialError
        If some units failed again and again; everything that does not need them is done.
    """
    began = time.perf_counter()
    executors = executors_of(client)
    plan = job if isinstance(job, JobPlan) else plan_job(job, executors)
    job = plan.study.job
    try:
        lease = Lease.acquire(units_folder(job.store) / "attempts")
        try:
            return _run(plan, executors, lease, threads, began, retry)
        finally:
            lease.release()
    except KeyboardInterrupt:
        raise CancelledError(
            "stopped by the user; what is done stays done", hint="the same command again goes on from here"
        ) from None
    except OSError as error:
        of_disk = disk_error(error, plan.study.store)
        if of_disk is None:
            raise
        raise of_disk from error


def _run(plan: JobPlan, executors: ExecutorOf, lease: Lease, threads: int, began: float, retry: bool) -> JobResult:
    study = plan.study
    extracting = study.job.extract.pool_name
    analysing = beside_network(executors, study.job)
    questions = [question for question, _ in plan.steps]
    if study.job.train is not None:
        study = train(study, executors(study.job.train.pool_name), lease.attempt)
        if study.weights_sha256 != plan.study.weights_sha256:  # else the plan knew them
            study, questions = settle(study, analysing, store=check_store(study))
    open_or_create(study)
    work = _work(study, lease, threads, executors(extracting).memory)
    outcome = extract(work, executors(extracting), retry=retry)
    computed = kept = 0
    written: Location | None = None
    if outcome.quarantined:
        first, why = next(iter(outcome.quarantined.items()))
        raise PartialError(
            f"{len(outcome.quarantined)} of {outcome.units} units failed and are left out, the first is unit {first} "
            f"(images {study.plan.span(first)[0]} to {study.plan.span(first)[1] - 1}): {why}",
            hint="mend the cause and run the same command again: only these units are redone",
        )
    record(study, work, executors(extracting))
    for step in study.job.steps:
        mine = [question for question in questions if question.step is step]
        opened = cache(lambda: open_store(study.store))
        if mine:
            events.emit("started", step.id, total=len(mine), what="layers")
        for number, question in enumerate(mine, 1):
            with events.inside(step.id):
                new = answer(study, question, analysing(question.step.pool_name), work, opened)
            computed, kept = computed + new, kept + (not new)
            note = question.layer if new else f"{question.layer} (computed before)"
            events.emit("progress", step.id, note, done=number, total=len(mine), what="layers")
        if mine:
            events.emit("finished", step.id, done=len(mine), total=len(mine), what="layers")
        if isinstance(step, ReportStep):
            written = write_step(study, step, lease.attempt)
    return JobResult(study.store, outcome, computed, kept, written, time.perf_counter() - began)


def _work(study: Study, lease: Lease, threads: int, memory: int) -> ExtractWork:
    manifest = units_folder(study.store) / "manifest.npz"
    picture_bytes, promised_bytes = _picture_bytes(study, memory)
    write_atomically(manifest, lambda file: file.write(study.source.manifest.to_bytes()))
    return ExtractWork(
        store=study.store.absolute(),
        manifest=manifest.absolute(),
        images=study.job.images,
        network=study.job.network,
        preprocessing=study.preprocessing,
        weights=study.weights,
        loaded=(study.network_identity, str(study.weights_sha256)),
        plan=study.plan,
        fingerprints=study.fingerprints,
        feeds=study.feeds,
        required=study.required,
        predictions=study.predictions,
        attempt=lease.attempt,
        threads=threads,
        picture_bytes=picture_bytes,
        promised_bytes=promised_bytes,
        mask_nonfinite=study.job.extract.on_nonfinite == "mask",
    )


def _picture_bytes(study: Study, memory: int) -> tuple[int, int]:
    """Return what a worker of `memory` bytes has for pictures, and what it had when the store was begun.

    A picture is too large for all units and layers of a store, or for none: never is more taken than then, and where
    there is less now, a picture for which it is too little ends the run.
    """
    now, before = study.plan.picture_bytes(memory), began_with(study.store)
    if before is None:
        Unit(units_folder(study.store) / "extract", "pictures").publish({"picture_bytes": now})
        return now, now
    return min(now, before), before
