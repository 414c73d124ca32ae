"""A job tried on a few of its images: how long all of them will take, how well they pack, how much memory it takes."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.cluster import backend_of
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import JobPlan, plan_job
from dneuro.spec.job import JobSpec
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.steps import ExtractStep
from dneuro.store.units import units_folder

IMAGES = 256
"""Images that a job is tried on, if nobody says otherwise."""

UNITS = 4
"""Units per slot in a trial: the first loads the network and is not counted."""


@dataclass(frozen=True)
class Forecast:
    """What a trial foretells of the whole job.

    Parameters
    ----------
    tried : int
        Images it was tried on.
    rate : float
        Images per second of the extraction, all workers together.
    seconds : dict of str to float
        What each step will take, by name.
    disk_bytes : int
        Bytes on disk, packed.
    worker_bytes : int
        The most that a worker held in the trial.
    """

    tried: int
    rate: float
    seconds: dict[str, float] = field(default_factory=dict)
    disk_bytes: int = 0
    worker_bytes: int = 0

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as a plain dictionary."""
        return asdict(self)


def forecast(plan: JobPlan, profile: ProfileSpec, images: int = IMAGES) -> Forecast:
    """Run a job on a few of its images, on workers as the job will have them, and scale up what was measured.

    Parameters
    ----------
    plan : JobPlan
        The plan of the whole job.
    profile : ProfileSpec
        Where it will run: a profile of this machine.
    images : int
        Images to try it on, drawn at random.

    Notes
    -----
    Extraction and training go with the number of images; an analysis with the bytes that it reads, or else with those
    of its result; activations, partial statistics and each step's results pack as those of the trial did.
    **Cost**: the job over so many images, in a temporary store.
    """
    backend = backend_of(profile)
    sizes = backend.sizes(plan.study.job.extract.pool_name)
    with tempfile.TemporaryDirectory(prefix="dneuro-trial-") as folder:
        small = _smaller(plan.study.job, min(images, plan.extract.images), sizes.slots, Path(folder) / "trial.zarr")
        tried = plan_job(small, backend.sizes)
        seen: list[events.Event] = []
        with backend.open(name="trial") as machines:
            with events.only(seen.append):
                run_job(tried, machines, threads=sizes.cpus)
            held = max(machines.client.run(most_memory).values())
        packed = _packed(Path(small.store), tried, plan)
    rate = _rate(seen, sizes.slots)
    seconds = {"extract": plan.extract.images / rate}
    larger = plan.extract.images / tried.extract.images
    for name, took in _durations(seen).items():
        if name != "extract":
            grown = larger if name == "train" else _growth(name, tried, plan, "read_bytes", "result_bytes")
            seconds[name] = took * grown
    return Forecast(
        tried=tried.extract.images,
        rate=rate,
        seconds={step.id: seconds[step.id] for step in plan.study.job.steps if step.id in seconds},
        disk_bytes=packed,
        worker_bytes=held,
    )


def _smaller(job: JobSpec, images: int, slots: int, store: Path) -> JobSpec:
    """Return the job over so many of its images, in enough units to keep all slots busy."""
    unit = 1 << max(0, (images // (UNITS * slots)).bit_length() - 1)
    steps = [
        step.model_copy(update={"images_per_unit": unit}) if isinstance(step, ExtractStep) else step
        for step in job.steps
    ]
    few = job.images.model_copy(update={"sample": images})
    return job.model_copy(update={"images": few, "store": str(store), "steps": steps})


def _rate(seen: Iterable[events.Event], slots: int) -> float:
    """Return images per second once every slot has done a unit."""
    units = [event for event in seen if (event.kind, event.step) == ("progress", "extract")]
    first, last = units[min(slots, len(units)) - 1], units[-1]
    if last.done > first.done:
        return (last.done - first.done) / max(last.time - first.time, 1e-6)
    return max(float(event.data["rate"]) for event in units)


def _durations(seen: Iterable[events.Event]) -> dict[str, float]:
    """Return the seconds of each step of the job."""
    began: dict[str, float] = {}
    found: dict[str, float] = {}
    for event in seen:
        if event.parent or not event.step:
            continue
        if event.kind == "started":
            began[event.step] = event.time
        elif event.kind == "finished" and event.step in began:
            found[event.step] = event.time - began[event.step]
    return found


def _growth(step: str, tried: JobPlan, whole: JobPlan, *measures: str) -> float:
    """Return how many times more a step is planned to take than in the trial, by the first measure that says so."""
    for measure in measures:
        few, many = (
            sum(getattr(cost, measure) for question, cost in plan.steps if question.step.id == step)
            for plan in (tried, whole)
        )
        if few:
            return float(many / few)
    return 1.0


def _packed(store: Path, tried: JobPlan, whole: JobPlan) -> int:
    """Return the bytes on disk of a whole job: each part of the trial's, as many times as it is planned to grow."""
    few, many = tried.extract, whole.extract
    results = {step.id: bytes_below(store / "results" / step.id) for step in tried.study.job.steps}
    partials = bytes_below(Path(str(units_folder(store))) / "extract")
    activations = bytes_below(store) - sum(results.values())
    other = bytes_below(store.parent) - bytes_below(store) - partials  # the report, markers of results
    return round(
        activations * many.store_bytes / few.store_bytes
        + partials * many.units / few.units * many.partial_bytes / max(1, few.partial_bytes)
        + sum(held * _growth(step, tried, whole, "result_bytes") for step, held in results.items())
        + other
    )


def most_memory() -> int:
    """Return the most bytes that this process has held.

    ``ru_maxrss`` begins at what the process held that this one was forked from, so Linux is asked elsewhere.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files in a folder and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
