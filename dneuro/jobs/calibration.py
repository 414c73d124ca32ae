"""A job tried on a few of its images: how long all of them will take, how well they pack, how much memory it takes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.cluster import backend_of
from dneuro.errors import DiskFullError, UsageError
from dneuro.files import PARTIAL
from dneuro.jobs.along import states_of
from dneuro.jobs.answers import unanswered
from dneuro.jobs.planning import JobPlan
from dneuro.jobs.reporting import is_up_to_date
from dneuro.jobs.trials import UNITS, Trial, images_needed, most_memory, try_adding, try_answering, try_job, try_patches
from dneuro.kernels import TopK
from dneuro.kernels.feeds import channel_look
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.steps import AnalysisStep, ExtractStep, PatchComponentsStep, ReportStep, TrainStep
from dneuro.store.creating import exists
from dneuro.store.files import Location, disk_error, sizes

IMAGES = 256
"""Images that a job is tried on, if nobody says otherwise."""

PREFIX = "dneuro-trial-"
"""Begins the name of a folder for trials that lies among temporary files."""


@dataclass(frozen=True)
class Forecast:
    """What a trial foretells of the whole job.

    Parameters
    ----------
    tried : int
        Images it was tried on.
    rate : float
        Images per second of the extraction, all workers together, with what it has to write of each.
    images : int
        Images that are still to be extracted.
    done : list of str
        Steps whose results are all there already, by name.
    seconds : dict of str to float
        What each of the other steps will take, by name.
    disk_bytes : int
        Bytes on disk, packed, once the job is done: what is there already of it counts too.
    worker_bytes : int
        The most that a worker held in the trial.
    notes : list of str
        What the seconds do not have in them.
    """

    tried: int
    rate: float
    images: int = 0
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    disk_bytes: int = 0
    worker_bytes: int = 0
    notes: list[str] = field(default_factory=list)

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
        Where it will run.
    images : int
        Images to try it on, drawn at random. Fewer than make `UNITS` units of a batch for every slot foretell nothing,
        and of half of them each step must have what it asks for (a rank): so many are tried in their place, and a note
        says so.

    Raises
    ------
    UsageError
        If the machines of the profile are others than this one, and the job's store is in no folder that all see.
    DiskFullError
        If there is no room for the trial; nothing of it is kept.

    Notes
    -----
    Extraction and training go with the number of images. Part of an analysis goes with the bytes that it reads (or else
    with those of its result), and part takes as long for any number of images: which, is known from half of them.
    Components of top patches go with the channels, and a report takes as long for any number. Activations, partial
    statistics and each step's results pack as those of the trial did. Lists of top images grow until they have their
    length; metadata, markers and statistics per channel are as large for any number of images.

    What is in the store already takes no time: units that are done, layers that they have, results, weights. The trial
    is of the whole job all the same, for a step may need what another one gives.

    A trial writes where the job will, in a folder beside its store that is gone afterwards. Where that cannot be, in an
    object store or where nobody may write, it is tried on a disk of this machine, and the notes say so.

    **Cost**: the job over so many images, and without its report twice over half of them, in temporary stores; of
    top patches some channels. Where units lack some layers alone, the extraction of these once more, for each such set;
    where they were extracted without what a later step needs, these steps once more.
    """
    backend, left = backend_of(profile), _left(plan)
    slots = backend.sizes(plan.study.job.extract.pool_name).slots
    count, fewest = _enough(images, plan, slots), _fewest(plan, slots)[0]
    half = max(-(-count // 2), min(count, max(map(images_needed, plan.study.job.steps))))
    with (
        _folder_for_trials(plan.study.store, profile) as (folder, notes),
        _told_that_it_was_a_trial(folder, count, fewest, near=not notes),
        backend.open(name="trial") as machines,
    ):
        # What is tried first imports what all need, so it says nothing of the time.
        trials = [
            try_job(plan, part, machines, backend.sizes, folder / str(number), report=number == 2)
            for number, part in enumerate((half, half, count))
        ]
        few, whole = trials[1:]
        some = whole
        if unfed := _unfed(plan, whole.plan):
            few, some = (try_answering(one, left, unfed, machines, backend.sizes) for one in trials[1:])
        measured = [name for name in whole.seconds if name in left and name != "extract"]
        seconds = {name: _scaled(name, left[name], few, some, plan) for name in measured}
        packed = _packed(whole, plan)
        for step in plan.study.job.steps:
            if not isinstance(step, PatchComponentsStep):
                continue
            layers = left.get(step.id, set())
            packed += _held(plan, step, layers)
            if layers:
                executor, place = machines.executor(step.pool_name), folder / "patches" / step.id
                seconds[step.id], held = try_patches(plan, step, layers, whole, executor, place)
                packed += held
        waiting, extracting = _images_left(plan), 0.0
        for parts, count in waiting.items():
            all_of_them = set(parts) == set(plan.study.fingerprints)
            extracting += count / (whole.rate if all_of_them else try_adding(whole, parts, machines, backend.sizes))
        most = max(machines.client.run(most_memory).values())
    if waiting:
        seconds["extract"] = extracting
    total, steps = sum(waiting.values()), plan.study.job.steps
    asked = {question.step.id for question, _ in plan.steps}
    return Forecast(
        tried=whole.images,
        rate=total / extracting if waiting else whole.rate,
        images=total,
        done=[s.id for s in steps if s.id not in left and (s.id in asked or not isinstance(s, AnalysisStep))],
        seconds={step.id: seconds[step.id] for step in steps if step.id in seconds},
        disk_bytes=packed,
        worker_bytes=most,
        notes=notes,
    )


def _left(plan: JobPlan) -> dict[str, set[str]]:
    """Return the steps that have something to do, by name, and the layers that each will be asked of."""
    study, questions = plan.study, [question for question, _ in plan.steps]
    left: dict[str, set[str]] = {}
    for question in unanswered(study, questions) if exists(study.store) else questions:
        left.setdefault(question.step.id, set()).add(question.layer)
    for step in study.job.steps:
        if (
            (isinstance(step, TrainStep) and study.weights_sha256 is None)
            or (isinstance(step, ExtractStep) and plan.missing)
            or (isinstance(step, ReportStep) and (left or plan.missing or not is_up_to_date(study, step)))
        ):
            left[step.id] = set()
    return left


def _unfed(plan: JobPlan, tried: JobPlan) -> dict[str, set[str]]:
    """Return the names of what a trial takes along and units that are done have not, by layer: a pass finds it."""
    if plan.study.weights_sha256 is None or not exists(plan.study.store):
        return {}
    units = dict(states_of(plan.study))
    found = {
        layer: {
            feed.key
            for feed in feeds
            if feed not in plan.study.required.get(layer, ())  # else these units are extracted again
            and any(feed.found_in(keys, images) is None for keys, images in units[layer])
        }
        for layer, feeds in tried.study.feeds.items()
    }
    return {layer: keys for layer, keys in found.items() if keys}


def _images_left(plan: JobPlan) -> dict[tuple[str, ...], int]:
    """Return how many images are still to be extracted, by the parts that their units lack."""
    found: dict[tuple[str, ...], int] = {}
    for number, parts in plan.missing.items():
        start, stop = plan.extract.span(number)
        found[parts] = found.get(parts, 0) + stop - start
    return found


def _held(plan: JobPlan, step: AnalysisStep, left: Collection[str]) -> int:
    """Return the bytes on disk of a step's results that are there already: of all its layers but those left."""
    asked = [question.layer for question, _ in plan.steps if question.step is step and question.layer not in left]
    return sum(sum(sizes(plan.study.store / "results" / step.id / layer).values()) for layer in asked)


@contextlib.contextmanager
def _folder_for_trials(store: Location, profile: ProfileSpec) -> Iterator[tuple[Path, list[str]]]:
    """Give a folder for the stores of trials that the machines of a profile see, and what it has not of the store.

    It lies beside the store, so that a trial writes as the job will; elsewhere on this machine where that cannot be,
    and a note says so. It goes with its block. One of a plan that was killed has the name of something half written,
    and goes with the next run of the job.

    Raises
    ------
    UsageError
        If the machines are others than this one, and nobody knows of any folder that they see.
    """
    why, told = f"{store} is in none", ""
    if isinstance(store, Path):
        beside = next(folder for folder in store.absolute().parents if folder.is_dir())
        try:
            made = tempfile.TemporaryDirectory(PARTIAL, f".{store.name}.", beside, ignore_cleanup_errors=True)
        except OSError as error:
            why = f"none can be made in {beside} ({error.strerror})"
            told = f", for {why}"
        else:
            with made as folder:
                yield Path(folder), []
            return
    if profile.backend != "local":
        raise UsageError(
            f"a job is tried on the machines of a profile in a folder beside its store, and {why}",
            hint="dneuro plan JOB --calibrate N, without --cluster, tries it on this machine",
        )
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        unknown = f"what it takes to write to {store}, and to read from there, is not in the seconds"
        yield Path(folder), [f"tried in a folder of this machine{told}: {unknown}"]


@contextlib.contextmanager
def _told_that_it_was_a_trial(folder: Path, images: int, fewest: int, *, near: bool) -> Iterator[None]:
    """Let the error of a full disk say that a trial has filled it: of that nothing is kept."""
    try:
        yield
    except (DiskFullError, OSError) as error:
        full = disk_error(error, folder) if isinstance(error, OSError) else error
        if not isinstance(full, DiskFullError):
            raise
        ways = ["make room there"]
        if fewest < images:
            ways.append(f"fewer images: --calibrate {fewest}")
        if not near:
            ways.append("TMPDIR=… on another disk")
        raise DiskFullError(
            f"the disk under {folder.parent} is full: the job was tried there on {images} images, and nothing of the "
            "trial is kept; the store is as it was",
            hint=", or ".join(ways),
        ) from error


def _enough(images: int, plan: JobPlan, slots: int) -> int:
    """Return how many images to try a job on: as many as were asked for, or as are needed, and no more than it has."""
    needed, why = _fewest(plan, slots)
    if images < needed:
        events.emit("note", "", f"tried on {needed} images in place of {images}: {why}")
    return min(max(images, needed), plan.extract.images)


def _fewest(plan: JobPlan, slots: int) -> tuple[int, str]:
    """Return on how many images at least a job is tried, and why not on fewer."""
    extract, most = plan.extract, max(plan.study.job.steps, key=images_needed)
    units = UNITS * slots * min(extract.batch, extract.unit)
    steps = 2 * images_needed(most)
    why = f"{UNITS} units of a batch for each of {slots} tasks at a time; fewer would foretell nothing"
    if steps > units:
        why = f"half of them are tried too, and step {most.id} asks for {steps // 2} at least"
    return min(max(units, steps), extract.images), why


def _scaled(step: str, layers: Collection[str], half: Trial, whole: Trial, plan: JobPlan) -> float:
    """Return the seconds that a step of the job will take of some layers, a straight line through two trials'."""
    few, some, many = (_measure(step, layers, one) for one in (half.plan, whole.plan, plan))
    took = whole.took(step, layers)
    if few == some:
        return took * (many / some if step == "train" else 1.0)
    slope = max(0.0, took - half.took(step, layers)) / (some - few)
    return took + min(slope, took / some) * (many - some)  # no time is less than none


def _measure(step: str, layers: Collection[str], plan: JobPlan) -> int:
    """Return what the time of a step goes with: images of a training, else bytes read, or those of the result."""
    if step == "train":
        return plan.extract.images
    costs = [cost for question, cost in plan.steps if question.step.id == step and question.layer in layers]
    return sum(cost.read_bytes for cost in costs) or sum(cost.result_bytes for cost in costs)


def _packed(trial: Trial, plan: JobPlan) -> int:
    """Return the bytes on disk of a whole job: each part of the trial's, as many times as it is planned to grow."""
    few, many = trial.plan.extract, plan.extract
    return round(
        trial.activations * many.store_bytes / few.store_bytes
        + trial.partials * many.units / few.units * many.partial_bytes / max(1, few.partial_bytes)
        + trial.markers * many.units / few.units
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
