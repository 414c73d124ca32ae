"""What a job will cost: units, passes, bytes on disk, peak memory; known before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dneuro.engine.executors import Sizes
from dneuro.engine.plan import Plan
from dneuro.extract.plan import ExtractPlan, to_dict
from dneuro.jobs.analyses import Question, plan_question, questions
from dneuro.jobs.growth import check_store
from dneuro.jobs.study import Study, study
from dneuro.spec.job import JobSpec
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
    done : int
        Units of the extraction that are done already.
    memory : int
        Bytes that one worker may use.
    """

    study: Study
    steps: list[tuple[Question, Plan]]
    done: int
    memory: int

    @property
    def extract(self) -> ExtractPlan:
        """Sizes of the extraction."""
        return self.study.plan

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk, uncompressed: activations, pictures, results."""
        return self.extract.store_bytes + sum(plan.result_bytes for _, plan in self.steps)

    @property
    def worker_bytes(self) -> int:
        """Peak memory of one worker process."""
        return max([self.extract.worker_bytes, *(plan.worker_bytes for _, plan in self.steps)])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a plain dictionary."""
        return {
            "job": self.study.job.name,
            "store": self.study.job.store,
            "extract": {**to_dict(self.extract), "units_done": self.done},
            "steps": [{"step": q.step.id, "layer": q.layer, **plan.to_dict()} for q, plan in self.steps],
            "disk_bytes": self.disk_bytes,
            "worker_bytes": self.worker_bytes,
            "worker_limit": self.memory,
        }


def plan_job(job: JobSpec, executor: Sizes) -> JobPlan:
    """Check a job in full and return its plan; starts nothing, writes nothing.

    Raises
    ------
    UsageError
        If anything the job says cannot be; MemoryLimitError if it does not fit.
    FingerprintError
        If its store was made from something else.
    """
    checked = study(job, executor)
    checked.plan.check(executor.memory)
    steps = [(question, plan_question(checked, question, executor)) for question in questions(checked)]
    known = check_store(checked)
    done = _done(checked) if known and checked.weights_sha256 is not None else 0
    return JobPlan(checked, steps, done, executor.memory)


def _done(study: Study) -> int:
    folder = units_folder(study.store) / "extract"
    return sum(
        all(Unit(folder / part, f"{number:05d}").marker(mark) for part, mark in study.fingerprints.items())
        for number in range(study.plan.units)
    )
