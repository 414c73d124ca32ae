"""A job tried on a few of its images: what of it is measured."""

from __future__ import annotations

import contextlib
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from dneuro import events
from dneuro.analysis import ANALYSES
from dneuro.analysis.images import SELECTED
from dneuro.analysis.selection import select
from dneuro.cluster.backends import Machines
from dneuro.cluster.sizes import WorkerSizes
from dneuro.engine.executors import Executor
from dneuro.extract.patches import top_patches
from dneuro.extract.plan import ExtractPlan
from dneuro.jobs.driver import run_job
from dneuro.jobs.patching import parameters_of
from dneuro.jobs.planning import JobPlan, plan_job
from dneuro.jobs.questions import Question
from dneuro.jobs.stand_ins import stand_in
from dneuro.spec.job import AnyStep, JobSpec
from dneuro.spec.steps import (
    AnalysisStep,
    ClustersStep,
    CooccurrenceStep,
    CoupledNmfStep,
    ExtractStep,
    KmeansStep,
    NmfStep,
    PatchComponentsStep,
    RegressionStep,
    ReportStep,
    SelectSpec,
    Step,
    SvdStep,
)
from dneuro.store.files import remove
from dneuro.store.opening import Store, open_store
from dneuro.store.units import Unit, units_folder

UNITS = 4
"""Units per slot in a trial: the first loads the network and is not counted."""

ENDS = ("top", "bottom")
"""What the names of arrays of top images begin with."""


@dataclass(frozen=True)
class Trial:
    """What came of a job over a few images.

    Parameters
    ----------
    plan : JobPlan
        Of the small job.
    rate : float
        Images per second of the extraction, all workers together.
    seconds : dict of str to dict of str to float
        What each step took, by name and by the layers that it is asked of; what is of no layer under an empty name.
    packed : dict of str to int
        Bytes on disk of each step's results, by name.
    activations, partials : int
        Bytes on disk of arrays with an entry per image, and of partial statistics.
    markers : int
        Bytes on disk of what lies beside the units of the extraction: as many for each, whatever images it has.
    lists : dict of str to int
        Bytes on disk of each layer's top images, by name.
    other : int
        Bytes on disk of all else, which is no more of more images: statistics per channel, metadata, markers of
        results, the report.
    """

    plan: JobPlan
    rate: float
    seconds: dict[str, dict[str, float]]
    packed: dict[str, int]
    activations: int
    partials: int
    markers: int
    lists: dict[str, int]
    other: int

    @property
    def images(self) -> int:
        """Images it was tried on."""
        return self.plan.extract.images

    def took(self, step: str, layers: Collection[str]) -> float:
        """Return the seconds of a step that is asked of these layers alone."""
        return sum(took for layer, took in self.seconds[step].items() if layer in layers or not layer)


def try_job(
    plan: JobPlan,
    images: int,
    machines: Machines,
    sizes: Callable[[str], WorkerSizes],
    folder: Path,
    *,
    report: bool = True,
) -> Trial:
    """Run a job over so many of its images in a folder of its own; without top patches, see `try_patches`.

    A report takes as long for few images as for many: `report` says whether this is the trial that draws it.
    """
    job, store = plan.study.job, folder / "trial.zarr"
    extracting = sizes(job.extract.pool_name)
    small = plan_job(_smaller(plan, images, extracting.slots, store, report), sizes)
    seen: list[events.Event] = []
    with events.only(seen.append):
        run_job(small, machines, threads=extracting.cpus)
    results = {step.id: bytes_below(store / "results" / step.id) for step in small.study.job.steps}
    beside = Path(str(units_folder(store))) / "extract"
    partials = sum(map(_bytes_of_arrays, beside.rglob("*.npz")))
    markers = bytes_below(beside) - partials
    activations = sum(bytes_below(store / path / "c") for path in _per_image(small.extract))
    lists = {
        layer.name: sum(bytes_below(path / "c") for end in ENDS for path in (store / layer.group).glob(f"{end}_*"))
        for layer in small.extract.layers
    }
    return Trial(
        plan=small,
        rate=_rate(seen, extracting.slots),
        seconds=_durations(seen),
        packed=results,
        activations=activations,
        partials=partials,
        markers=markers,
        lists=lists,
        other=bytes_below(folder) - sum(results.values()) - partials - markers - activations - sum(lists.values()),
    )


def try_adding(trial: Trial, parts: Collection[str], machines: Machines, sizes: Callable[[str], WorkerSizes]) -> float:
    """Return the images per second of an extraction that has only some parts to write: of units that have all others.

    Parameters
    ----------
    trial : Trial
        Its store is there; what it has of these parts is extracted again.
    parts : collection of str
        Layers, and `dneuro.extract.work.IMAGES`.
    machines, sizes
        As in `try_job`.
    """
    study = trial.plan.study
    for part in parts:
        remove(units_folder(study.store) / "extract" / part)
    plan = replace(trial.plan, study=replace(study, job=_without_report(study.job)))
    extracting = sizes(study.job.extract.pool_name)
    seen: list[events.Event] = []
    with events.only(seen.append):
        run_job(plan, machines, threads=extracting.cpus)
    return _rate(seen, extracting.slots)


def try_answering(
    trial: Trial,
    steps: Collection[str],
    unfed: Mapping[str, Collection[str]],
    machines: Machines,
    sizes: Callable[[str], WorkerSizes],
) -> Trial:
    """Return a trial with the plan and the seconds that steps have whose units were extracted without them.

    Parameters
    ----------
    trial : Trial
        Its store is there, and loses what steps would find.
    steps : collection of str
        Steps to be asked again, by name.
    unfed : mapping of str to collection of str
        Names of partial states, by layer, that the units do not have.
    machines, sizes
        As in `try_job`.
    """
    study = trial.plan.study
    folder = units_folder(study.store)
    for layer, keys in unfed.items():
        for number in range(study.plan.units):
            unit = Unit(folder / "extract" / layer, f"{number:05d}")
            marker = unit.read() or {}
            unit.publish({**marker, "kernels": [key for key in marker.get("kernels", ()) if key not in keys]})
    for step in steps:
        remove(folder / "results" / step)
    seen: list[events.Event] = []
    with events.only(seen.append):
        again = plan_job(_without_report(study.job), sizes)
        run_job(again, machines, threads=sizes(study.job.extract.pool_name).cpus)
    return replace(trial, plan=again, seconds={**trial.seconds, **_durations(seen)})


def _without_report(job: JobSpec) -> JobSpec:
    return job.model_copy(update={"steps": [step for step in job.steps if not isinstance(step, ReportStep)]})


def _per_image(plan: ExtractPlan) -> Iterator[str]:
    """Yield the paths of the arrays of an extraction that have an entry per image."""
    for group in ("", *(layer.group for layer in plan.layers)):
        yield from (f"{group}/{name}".lstrip("/") for name in ("image", "filename", "label"))
    yield from (array.path for array in plan.arrays())


def try_patches(
    plan: JobPlan, step: PatchComponentsStep, layers: Collection[str], trial: Trial, executor: Executor, folder: Path
) -> tuple[float, int]:
    """Return the seconds and the bytes on disk of a step about top patches that is asked of these layers.

    It goes with the channels, not with the images, and may be most of a job: it is tried on some channels of each
    layer, one task per slot.

    Parameters
    ----------
    plan : JobPlan
        Of the whole job.
    step : PatchComponentsStep
        One of its steps.
    layers : collection of str
        Some of those that it is asked of.
    trial : Trial
        The images are among those of its store.
    executor : Executor
        Where.
    folder : Path
        An empty one, for pictures.
    """
    store = open_store(trial.plan.study.store)
    asked = [(question, cost) for question, cost in plan.steps if question.step is step and question.layer in layers]
    seconds, packed = 0.0, 0.0
    with events.only(lambda event: None):
        _components(store, asked[0][0], step, executor, folder / "first")  # which imports what all of them need
        for number, (question, cost) in enumerate(asked):
            took, tasks, held = _components(store, question, step, executor, folder / str(number))
            seconds += took * max(1.0, cost.tasks / tasks)
            packed += held * max(1.0, cost.tasks / tasks)
    return seconds, round(packed)


def _components(
    store: Store, question: Question, step: PatchComponentsStep, executor: Executor, out: Path
) -> tuple[float, int, int]:
    """Return the seconds, tasks and bytes on disk of components of a few channels of a layer."""
    began = time.perf_counter()
    patches = top_patches(store, question.layer, k=min(step.k, store.statistics(question.layer).sizes["rank"]))
    chunks = patches.chunksizes["channel"][: executor.slots]
    ANALYSES[step.kind](
        patches.isel(channel=slice(0, sum(chunks))), client=executor, out=str(out), **parameters_of(step)
    )
    return time.perf_counter() - began, len(chunks), bytes_below(out)


def _smaller(plan: JobPlan, images: int, slots: int, store: Path, report: bool = True) -> JobSpec:
    """Return the job over so many of its images, in enough units to keep all slots busy; without top patches."""
    job = plan.study.job
    left_out = PatchComponentsStep if report else (PatchComponentsStep, ReportStep)
    unit = 1 << max(0, (images // (UNITS * slots)).bit_length() - 1)
    steps: list[AnyStep] = []
    lists = max((step.k for step in job.steps if isinstance(step, PatchComponentsStep)), default=0)
    for step in job.steps:
        if isinstance(step, ExtractStep):
            taken = {"top_k": max(step.top_k, lists), "statistics": ["moments", "top_images"]} if lists else {}
            step = step.model_copy(update={"images_per_unit": unit, **taken})
        if isinstance(step, SvdStep) and step.threshold is not None and step.threshold_images is None:
            step = step.model_copy(update={"threshold_images": _taking_part(plan, step)})  # few images reach less
        if isinstance(step, AnalysisStep) and step.select is not None:
            step = step.model_copy(update={"select": _fewer(plan, step, step.select, images)})
        if not isinstance(step, left_out):
            steps.append(step)
    few = job.images.model_copy(update={"sample": images})
    return job.model_copy(update={"images": few, "store": str(store), "steps": steps})


def images_needed(step: Step) -> int:
    """Return of how many images, at least, a step can be asked what it asks."""
    if isinstance(step, SvdStep | NmfStep | CoupledNmfStep | PatchComponentsStep):
        return step.rank if isinstance(step.rank, int) else 1
    if isinstance(step, KmeansStep) or (isinstance(step, ClustersStep) and step.per == "image"):
        return step.count or 1
    if isinstance(step, RegressionStep):
        return max(1, step.folds)
    if isinstance(step, CooccurrenceStep) and step.quantile is not None:
        return math.ceil(1 / (1 - Fraction(repr(step.quantile))))  # so that one image lies above it
    return 1


def _fewer(plan: JobPlan, step: AnalysisStep, chosen: SelectSpec, images: int) -> SelectSpec | None:
    """Return what a step of a trial selects of so many images: the same share of any, and what it needs; None for all.

    Of those that are named, and of a class, none may be in the trial.
    """
    sample = max(images_needed(step), round(images / plan.extract.images * _taking_part(plan, step)))
    return SelectSpec(sample=sample, seed=chosen.seed) if sample < images else None


def _taking_part(plan: JobPlan, step: AnalysisStep) -> int:
    """Return how many of a job's images take part in a step, as if the network classified all of them as wanted."""
    if step.select is None:
        return plan.extract.images
    whole = stand_in(plan.study, plan.extract.layers[0])
    return int(select(whole, **step.select.model_dump(exclude={"correct"}))[SELECTED].sum())


def _rate(seen: Iterable[events.Event], slots: int) -> float:
    """Return images per second once every slot has done a unit."""
    units = [event for event in seen if (event.kind, event.step) == ("progress", "extract")]
    first, last = units[min(slots, len(units)) - 1], units[-1]
    if last.done > first.done:
        return (last.done - first.done) / max(last.time - first.time, 1e-6)
    return max(float(event.data["rate"]) for event in units)


def _durations(seen: Iterable[events.Event]) -> dict[str, dict[str, float]]:
    """Return the seconds of each step of the job, and of each layer that it was asked of."""
    began: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    for event in seen:
        if event.parent or not event.step:
            continue
        if event.kind == "started":
            began[event.step] = event.time
        elif event.step in began and (event.kind == "finished" or event.what == "layers"):
            layer = event.message if event.kind == "progress" else ""
            found.setdefault(event.step, {})[layer] = event.time - began[event.step]
            began[event.step] = event.time
    return found


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


def _bytes_of_arrays(path: Path) -> int:
    """Return the bytes of the numbers in an ``.npz`` file."""
    with np.load(path) as file:
        return sum(file[name].nbytes for name in file.files)


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files in a folder and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
