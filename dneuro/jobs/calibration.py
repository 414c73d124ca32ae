"""A job tried on a few of its images: how long all of them will take, how well they pack, how much memory it takes."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.cluster import backend_of
from dneuro.extract.plan import ExtractPlan
from dneuro.jobs.planning import JobPlan
from dneuro.jobs.trials import UNITS, Trial, most_memory, try_job, try_patches
from dneuro.kernels import TopK
from dneuro.kernels.feeds import channel_look
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.steps import PatchComponentsStep

IMAGES = 256
"""Images that a job is tried on, if nobody says otherwise."""


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
        Images to try it on, drawn at random. Fewer than make `UNITS` units of a batch for every slot foretell nothing:
        so many are tried in their place, and a note says so.

    Notes
    -----
    Extraction and training go with the number of images. Part of an analysis goes with the bytes that it reads (or else
    with those of its result), and part takes as long for any number of images: which, is known from half of them.
    Components of top patches go with the channels, and a report takes as long for any number. Activations, partial
    statistics and each step's results pack as those of the trial did. Lists of top images grow until they have their
    length; metadata and statistics per channel are as large for any number of images.

    **Cost**: the job over so many images, and without its report twice over half of them, in temporary stores; of
    top patches some channels.
    """
    backend = backend_of(profile)
    count = _enough(images, plan.extract, backend.sizes(plan.study.job.extract.pool_name).slots)
    with tempfile.TemporaryDirectory(prefix="dneuro-trial-") as folder, backend.open(name="trial") as machines:
        # What is tried first imports what all need, so it says nothing of the time.
        trials = [
            try_job(plan, part, machines, backend.sizes, Path(folder) / str(number), report=part == count)
            for number, part in enumerate((-(-count // 2), -(-count // 2), count))
        ]
        half, whole = trials[1:]
        seconds = {"extract": plan.extract.images / whole.rate}
        seconds |= {name: _scaled(name, half, whole, plan) for name in whole.seconds if name != "extract"}
        packed = _packed(whole, plan)
        for step in plan.study.job.steps:
            if isinstance(step, PatchComponentsStep):
                executor = machines.executor(step.pool_name)
                took, held = try_patches(plan, step, whole, executor, Path(folder) / "patches" / step.id)
                seconds[step.id], packed = took, packed + held
        most = max(machines.client.run(most_memory).values())
    return Forecast(
        tried=whole.images,
        rate=whole.rate,
        seconds={step.id: seconds[step.id] for step in plan.study.job.steps if step.id in seconds},
        disk_bytes=packed,
        worker_bytes=most,
    )


def _enough(images: int, plan: ExtractPlan, slots: int) -> int:
    """Return how many images to try a job on: as many as were asked for, or as are needed, and no more than it has."""
    needed = min(UNITS * slots * min(plan.batch, plan.unit), plan.images)
    if images < needed:
        events.emit(
            "note", "", f"tried on {needed} images in place of {images}: {UNITS} units of a batch for each of {slots} "
            "tasks at a time; fewer would foretell nothing",
        )  # fmt: skip
    return min(max(images, needed), plan.images)


def _scaled(step: str, half: Trial, whole: Trial, plan: JobPlan) -> float:
    """Return the seconds that a step of the job will take, a straight line through those of two trials."""
    few, some, many = (_measure(step, one) for one in (half.plan, whole.plan, plan))
    took = whole.seconds[step]
    if few == some:
        return took * (many / some if step == "train" else 1.0)
    slope = max(0.0, took - half.seconds[step]) / (some - few)
    return took + min(slope, took / some) * (many - some)  # no time is less than none


def _measure(step: str, plan: JobPlan) -> int:
    """Return what the time of a step goes with: images of a training, else bytes read, or those of the result."""
    if step == "train":
        return plan.extract.images
    costs = [cost for question, cost in plan.steps if question.step.id == step]
    return sum(cost.read_bytes for cost in costs) or sum(cost.result_bytes for cost in costs)


def _packed(trial: Trial, plan: JobPlan) -> int:
    """Return the bytes on disk of a whole job: each part of the trial's, as many times as it is planned to grow."""
    few, many = trial.plan.extract, plan.extract
    return round(
        trial.activations * many.store_bytes / few.store_bytes
        + trial.partials * many.units / few.units * many.partial_bytes / max(1, few.partial_bytes)
        + sum(held * _lengths(layer, plan) / max(1, _lengths(layer, trial.plan)) for layer, held in trial.lists.items())
        + sum(held * _growth(step, trial.plan, plan) for step, held in trial.packed.items())
        + trial.other
    )


def _lengths(layer: str, plan: JobPlan) -> int:
    """Return how long the lists of a channel's top images are that are recorded of a layer, all together."""
    shape = next(one.shape for one in plan.extract.layers if one.name == layer)
    feeds = (feed for feed in plan.study.feeds.get(layer, ()) if feed.look == channel_look(shape))
    return sum(min(feed.kernel.k, plan.extract.images) for feed in feeds if isinstance(feed.kernel, TopK))


def _growth(step: str, tried: JobPlan, whole: JobPlan) -> float:
    """Return how many times larger the results of a step are planned to be than in the trial."""
    few, many = (
        sum(cost.result_bytes for question, cost in plan.steps if question.step.id == step) for plan in (tried, whole)
    )
    return many / few if few else 1.0
