"""What a job will cost: units, passes, bytes on disk, peak memory; known before anything starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dneuro import events
from dneuro.engine.executors import Sizes
from dneuro.engine.plan import Plan
from dneuro.extract.plan import ExtractPlan, to_dict
from dneuro.extract.work import IMAGES, lacks
from dneuro.images.sources import ImageSource
from dneuro.jobs.along import settle
from dneuro.jobs.answers import unanswered
from dneuro.jobs.growth import began_with, check_store, missing_nodes
from dneuro.jobs.plans import plan_question
from dneuro.jobs.pools import SizesOf, beside_network, sizes_of
from dneuro.jobs.questions import Question
from dneuro.jobs.study import Study, study
from dneuro.jobs.training import trained_before
from dneuro.quantities import format_bytes
from dneuro.spec.job import JobSpec
from dneuro.spec.steps import WorkersStep
from dneuro.store.files import Location, free_bytes
from dneuro.store.units import Unit, units_folder


@dataclass(frozen=True)
class JobPlan:
    """The plan of a job.

    Parameters
    ----------
    study : Study
        The job, checked.
    steps : list of (Question, Plan)
        Each question and what it costs.
    missing : dict of int to tuple of str
        Units of the extraction that are not done, and the parts that each lacks: layers, and `IMAGES`.
    limits : dict of str to int
        Bytes that one worker may use, of each pool that does something.
    left_bytes : int
        Of `disk_bytes`, those that are still to be written.
    crowded : str
        What there is to say of a disk that may become full; empty if nothing.
    """

    study: Study
    steps: list[tuple[Question, Plan]]
    missing: dict[int, tuple[str, ...]]
    limits: dict[str, int]
    left_bytes: int
    crowded: str = ""

    @property
    def notes(self) -> list[str]:
        """What there is to say of the job, and of the disk as it is now."""
        return [*self.study.notes, *filter(None, [self.crowded])]

    @property
    def done(self) -> int:
        """Units of the extraction that are done already."""
        return self.units - len(self.missing)

    @property
    def units(self) -> int:
        """Units of the extraction."""
        return self.extract.units

    @property
    def extract(self) -> ExtractPlan:
        """Sizes of the extraction."""
        return self.study.plan

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk, uncompressed: activations, pictures, partial statistics, results."""
        partials = self.extract.units * self.extract.partial_bytes
        return self.extract.store_bytes + partials + sum(plan.result_bytes for _, plan in self.steps)

    @property
    def memory(self) -> int:
        """Bytes that one worker of the extraction may use."""
        return self.limits[self.study.job.extract.pool_name]

    @property
    def worker_bytes(self) -> int:
        """Peak memory of one worker process, whatever its pool."""
        return max(self.peaks.values())

    @property
    def peaks(self) -> dict[str, int]:
        """Peak memory of one worker process of each pool."""
        found = dict.fromkeys(self.limits, 0) | {self.study.job.extract.pool_name: self.extract.worker_bytes}
        for question, plan in self.steps:
            pool = question.step.pool_name
            found[pool] = max(found[pool], plan.worker_bytes)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a plain dictionary."""
        return {
            "job": self.study.job.name,
            "store": self.study.job.store,
            "extract": {**to_dict(self.extract), "units_done": self.done},
            "steps": [{"step": q.step.id, "layer": q.layer, **plan.to_dict()} for q, plan in self.steps],
            "notes": self.notes,
            "disk_bytes": self.disk_bytes,
            "worker_bytes": self.worker_bytes,
            "worker_limit": self.memory,
            "pools": {pool: {"worker_bytes": self.peaks[pool], "limit": limit} for pool, limit in self.limits.items()},
        }


def plan_job(job: JobSpec, where: Sizes | SizesOf, source: ImageSource | None = None) -> JobPlan:
    """Check a job in full and return its plan; starts nothing, writes nothing.

    Parameters
    ----------
    job : JobSpec
        What to compute.
    where : Sizes, or callable of str
        What the workers have, or those of each pool: each step is planned on its own.
    source : ImageSource, optional
        The job's images, where they were listed before.

    Raises
    ------
    UsageError
        If anything the job says cannot be; MemoryLimitError if it does not fit.
    FingerprintError
        If its store was made from something else.
    """
    sizes = sizes_of(where)
    extracting = sizes(job.extract.pool_name)
    checked = trained_before(study(job, extracting, source))
    known = check_store(checked)
    analysing = beside_network(sizes, job)
    checked, questions = settle(checked, analysing, store=known)
    checked.plan.check(extracting.memory)
    if told := checked.plan.too_large(began_with(checked.store) if known else None):
        events.emit("note", "", told)
        checked = replace(checked, notes=[*checked.notes, told])
    steps = [(question, plan_question(checked, question, analysing(question.step.pool_name))) for question in questions]
    there = known and checked.weights_sha256 is not None
    missing = _missing(checked) if there else dict.fromkeys(range(checked.plan.units), tuple(checked.fingerprints))
    pools = {step.pool_name: sizes(step.pool_name).memory for step in job.steps if isinstance(step, WorkersStep)}
    asked = [question for question, _ in steps]
    unknown = list(unanswered(checked, asked)) if there else asked
    left = _left_bytes(checked.plan, missing) + sum(plan.result_bytes for q, plan in steps if q in unknown)
    if told := too_little_room(checked.store, left):
        events.emit("note", "", told)
    return JobPlan(checked, steps, missing, pools, left, told)


def _left_bytes(plan: ExtractPlan, missing: Mapping[int, Collection[str]]) -> int:
    """Return the bytes, uncompressed, of the parts that units lack."""
    arrays = {layer.name: layer.arrays(plan.images, plan.unit) for layer in plan.layers} | {IMAGES: list(plan.root)}
    per_image = {part: sum(array.nbytes for array in those) / plan.images for part, those in arrays.items()}
    per_layer = plan.partial_bytes / max(1, len(plan.layers))
    left = 0.0
    for number, parts in missing.items():
        start, stop = plan.span(number)
        left += (stop - start) * sum(per_image[part] for part in parts)
        left += per_layer * sum(part != IMAGES for part in parts)
    return round(left)


def too_little_room(store: Location, left: int) -> str:
    """Return what there is to say of a disk that may become full; empty if nothing, or if nobody knows.

    Activations are compressed, so that they may fit all the same.

    Parameters
    ----------
    store : Path or RemotePath
        What lies there, or will.
    left : int
        Bytes that are still to be written, uncompressed.
    """
    try:
        free = free_bytes(store)
    except OSError:  # whoever comes to write there says so
        return ""
    if free is None or left <= free:
        return ""
    return (
        f"{store} takes up to {format_bytes(left)} more before compression, its disk has {format_bytes(free)} free; "
        "dneuro plan --calibrate says how much it really is. A full disk ends the run, and what is done stays done"
    )


def _missing(study: Study) -> dict[int, tuple[str, ...]]:
    """Return which units are not done with all that is required of them, and the parts that each lacks."""
    folder = units_folder(study.store) / "extract"
    kept = {plan.name: plan.keep for plan in study.plan.layers}
    gone = {part for part in missing_nodes(study) if kept.get(part) != "stats"}  # of which partial statistics answer
    missing: dict[int, tuple[str, ...]] = {}
    for number in range(study.plan.units):
        start, stop = study.plan.span(number)
        parts = tuple(
            part
            for part, mark in study.fingerprints.items()
            if part in gone
            or lacks(Unit(folder / part, f"{number:05d}").marker(mark), study.required.get(part, ()), stop - start)
        )
        if parts:
            missing[number] = parts
    return missing
