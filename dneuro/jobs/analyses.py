"""The steps that ask the store a question: their arrays, their plans, their results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import xarray as xr

from dneuro.analysis import ANALYSES, PLANS
from dneuro.analysis.images import taking_part
from dneuro.analysis.pairing import ROWS_NEURONS, count_features
from dneuro.analysis.selection import select
from dneuro.analysis.taken import TAKEN, Found, Taken
from dneuro.engine.device import on_device
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.errors import DneuroError, StoreError, UsageError
from dneuro.extract.run import merge_feeds
from dneuro.extract.work import ExtractWork
from dneuro.jobs.across import answer_across, plan_across
from dneuro.jobs.across import done as across_done
from dneuro.jobs.coupled import answer_coupled, done, identity, layers_of, plan_coupled
from dneuro.jobs.patching import answer_patches, plan_patches
from dneuro.jobs.stand_ins import stand_in, stand_in_result, stand_in_rows, unread
from dneuro.jobs.study import Study
from dneuro.jobs.wiring import read_weights, stand_in_weights
from dneuro.kernels.feeds import Feed
from dneuro.spec.device import CPU
from dneuro.spec.steps import (
    PLACED,
    PLACING,
    AcrossStep,
    AnalysisStep,
    ConnectionsStep,
    CooccurrenceStep,
    CoupledNmfStep,
    NmfStep,
    PatchComponentsStep,
    RandomProjectionsStep,
    RowsStep,
    SimilarityStep,
    SimilarPlacesStep,
    SingleNeuronsStep,
    SvdStep,
)
from dneuro.store import results
from dneuro.store.layout import LayerPlan
from dneuro.store.opening import Store
from dneuro.store.units import fingerprint

P = ParamSpec("P")
Answer = TypeVar("Answer")

RESULT_FORMAT = 1
"""Number of the results' layout; part of their fingerprints."""


@dataclass(frozen=True)
class Question:
    """One step asked of one layer.

    Parameters
    ----------
    step : AnalysisStep
        What is asked.
    layer : str
        Of which layer.
    recorded : bool
        The answer is there without a pass over the layer: the extraction takes it along, or another result holds it.
    feeds : tuple of Feed
        What the extraction takes along of it; where that is not all, a later pass is spared.
    why : str
        Why the store is read though the answer could have been taken along.
    rows : CooccurrenceStep or None
        The step whose counts are asked, in place of the activations.
    source : LayerPlan or None
        The earlier layer, of a step about two.
    over : tuple of Question
        Whose results are asked, of a step about what another one found out about several layers.
    """

    step: AnalysisStep
    layer: str
    recorded: bool
    feeds: tuple[Feed, ...] = ()
    why: str = ""
    rows: CooccurrenceStep | None = None
    source: LayerPlan | None = None
    over: tuple[Question, ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of the function in `dneuro.analysis`."""
        of_activations = {"per", "pool"} if self.rows is not None else set()
        return self.step.model_dump(exclude={"name", "layer", "of", "select", "source"} | PLACED | of_activations)

    def selected(self, x: xr.DataArray) -> xr.DataArray:
        """Return `x` with the images that take part chosen, if the step says which."""
        return x if self.step.select is None else select(x, **self.step.select.model_dump())


def rows_of(study: Study, step: AnalysisStep) -> CooccurrenceStep | None:
    """Return the step whose counts a step is asked of; None if it is asked of activations."""
    if not isinstance(step, RowsStep) or step.of == "activation":
        return None
    return next(s for s in study.job.steps if isinstance(s, CooccurrenceStep) and s.id == step.of)


def lacking(question: Question, plan: LayerPlan) -> str:
    """Return what a layer does not keep for this question; empty if nothing."""
    step = question.step
    if question.recorded or plan.keep == "full":
        return ""
    if plan.keep == "stats":
        return "and the step needs its activations"
    pool = "max" if isinstance(step, PatchComponentsStep) else getattr(step, "pool", plan.keep)
    whole = SvdStep | NmfStep | RandomProjectionsStep | SingleNeuronsStep | SimilarPlacesStep
    if isinstance(step, whole) or getattr(step, "per", "channel") != "channel":
        return "and the step needs every neuron" if len(plan.shape) > 1 else ""
    return f"and the step needs the {pool} over positions" if pool != plan.keep and len(plan.shape) > 1 else ""


def _placed(study: Study, question: Question, x: xr.DataArray) -> dict[str, Any]:
    """Return where a result is written by the tasks that make it, if it is one that had better not be in memory."""
    step = question.step
    written = results.workplace(study.store, step.id, question.layer)
    if isinstance(step, PatchComponentsStep):
        return {} if written is None else {"out": written}
    if not isinstance(step, SimilarityStep) or question.recorded:
        return {}
    if step.neighbours is not None or step.threshold is not None or step.per == "image":
        return {}  # of images some may be masked, and a store has one image axis: rows of theirs are put in afterwards
    if count_features(x, step.per, step.pool) <= ROWS_NEURONS:
        return {}
    return {} if written is None else {"out": written}


def _on_its_device(
    function: Callable[Concatenate[Study, Question, P], Answer],
) -> Callable[Concatenate[Study, Question, P], Answer]:
    """Let a function about a question run with the device that its step names, whatever the caller's own is."""

    @wraps(function)
    def on_it(study: Study, question: Question, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        with on_device(question.step.device, tf32=question.step.tf32):
            return function(study, question, *args, **kwargs)

    return on_it


@_on_its_device
def plan_question(study: Study, question: Question, executor: Sizes) -> Plan:
    """Return the plan of one question before the store exists, and refuse what does not fit.

    Raises
    ------
    MemoryLimitError
        With the numbers and what to change.
    """
    name = f"{question.step.id} of {question.layer}"
    if isinstance(question.step, CoupledNmfStep):
        stand_ins = [stand_in(study, plan) for plan in layers_of(study, question.step)]
        plan = replace(plan_coupled(study, question.step, stand_ins, executor), operation=name)
        plan.check(
            executor, hint="a lower rank, fewer layers, or a profile with more memory per worker",
            driver_hint="a lower rank, fewer layers, or driver: {memory: …} in the profile",
        )  # fmt: skip
        return plan
    if isinstance(question.step, AcrossStep):
        found = {one.layer: stand_in_result(one.step, _asked_of(study, one)) for one in question.over}
        plan = replace(plan_across(question.step, found, executor), operation=name)
        plan.check(
            executor, hint="a profile with more memory per worker (--cluster)",
            driver_hint="per: channel, or more memory for the process that drives the job (driver: {memory: …})",
        )  # fmt: skip
        return plan
    x = _asked_of(study, question)
    beside = _placed(study, question, x)
    if isinstance(question.step, ConnectionsStep) and question.source is not None:
        x = stand_in_weights(study, question.source, question.layer)
    elif question.source is not None:
        beside["source"] = question.selected(stand_in(study, question.source))
    if isinstance(question.step, PatchComponentsStep):
        top, chosen = plan_step(question, x, executor), taking_part(_at_best(question, x))
        count = x.sizes["image"] if chosen is None else int(chosen.sum())
        with _named(question):
            plan = plan_patches(study, question.step, question.layer, top, count, executor, **beside)
    else:
        plan = plan_step(question, x, executor, **beside)
    plan = replace(plan, operation=name, method="; ".join(filter(None, (plan.method, question.why))))
    if question.rows is not None:  # a table in the memory of the driver is no reading
        plan = replace(plan, passes=0, read_bytes=0, method="in the driver")
    plan.check(
        executor,
        hint="a lower rank, method: krylov, per: channel, fewer folds, or a profile with more memory per worker "
        "(--cluster)",
        driver_hint="a lower rank, a smaller k, per: channel, neighbours: 20 of a similarity, fewer folds; or a "
        "machine with more memory for the process that drives the job (--cluster; in Slurm driver: {memory: …})",
    )
    return plan


def _asked_of(study: Study, question: Question) -> xr.DataArray:
    """Return an array shaped as what a question is asked of will be, without data."""
    layer = next(plan for plan in study.plan.layers if plan.name == question.layer)
    x = stand_in(study, layer, _taken(question, study.plan.unit))
    return x if question.rows is None else stand_in_rows(x, question.rows, len(study.class_names))


def plan_step(question: Question, x: xr.DataArray, executor: Sizes, **placed: Any) -> Plan:
    """Return the plan of a question asked of an array; an error names step and layer.

    Of one about top patches it is the plan of what is asked of the layer: their images.
    """
    kind, asked = question.step.kind, question.parameters
    if isinstance(question.step, PatchComponentsStep):
        kind, asked = "top_images", {"k": question.step.k}
    with _named(question), on_device(question.step.device, tf32=question.step.tf32):
        return PLANS[kind](_at_best(question, x), client=executor, **asked, **placed)


@contextlib.contextmanager
def _named(question: Question) -> Iterator[None]:
    """Let an error that something cannot be asked say of what step and layer."""
    try:
        yield
    except UsageError as error:
        name = f"{question.step.id} of {question.layer}"
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from None


def _at_best(question: Question, x: xr.DataArray) -> xr.DataArray:
    """Return an array without data with the images that take part, as if every image were classified as wanted."""
    wanted = question.step.select
    if wanted is not None and "correct" in x.coords:
        x = x.assign_coords(correct=("image", np.full(x.sizes["image"], wanted.correct is not False)))
    return question.selected(x)


def _taken(question: Question, images: int, answer: Callable[[Feed], Found] | None = None) -> Taken | None:
    """Return what was taken along for a question; of units of `images` images."""
    if not question.feeds:
        return None
    keys = [feed.key for feed in question.feeds]
    return Taken(lambda feed: feed.found_in(keys, images) is not None, answer, only=question.recorded)


@_on_its_device
def answer(
    study: Study, question: Question, executor: Executor, work: ExtractWork, opened: Callable[[], Store]
) -> bool:
    """Compute one result and write it into the store, unless it is there already; return whether it was computed.

    `opened` gives the store as it was before the step: to open it takes longer the more results it holds.
    """
    step, layer = question.step, question.layer
    position = 1000 * [s.id for s in study.job.steps].index(step.id)
    if isinstance(step, AcrossStep):
        return _answer_across(study, question, step, executor, work, opened, position)
    inputs = {
        "format": RESULT_FORMAT,
        "analysis": step.kind,
        "parameters": _said(step),
        "layer": identity(study, step) if isinstance(step, CoupledNmfStep) else study.layer_identity(layer),
    }
    if question.source is not None:
        inputs["source"] = study.layer_identity(question.source.name)
    of = getattr(step, "of", "activation")
    if of not in ("activation", "channel"):
        inputs["of"] = results.unit(study.store, of, layer).read()
    wanted = fingerprint(inputs)
    if isinstance(step, CoupledNmfStep):
        if done(study, step, wanted):
            return False
        answer_coupled(study, opened(), question.selected, step, executor, work.attempt, wanted,
                       {"order": position, **_computed_on(step)})  # fmt: skip
        return True
    if results.unit(study.store, step.id, layer).marker(wanted) is not None:
        return False
    what = f"step {step.id}, layer {layer},"
    work.attempt.refuse_if_overtaken(what)  # before a workplace is cleared: it may be the later run's
    store = opened()
    written = results.workplace(study.store, step.id, layer)
    if written is not None:
        results.clear(written)
    with results.state(study.store, step.id, layer, wanted) as kept:
        resumable = isinstance(step, NmfStep) or (isinstance(step, PatchComponentsStep) and written is not None)
        goes_on = {"checkpoint": kept} if resumable else {}
        try:
            result = _compute(study, store, question, executor, work, **goes_on)
        except DneuroError as error:
            error.message = f"step {step.id}, layer {layer}: {error.message}"
            raise
        work.attempt.refuse_if_overtaken(what)
        attrs = {"step": step.id, "order": position + list(study.layers).index(layer), **_computed_on(step)}
        if isinstance(study.store, Path) and written is not None and written.exists():  # by the tasks: it may be large
            results.adopt(study.store, step.id, layer, written, wanted, attrs)
            return True
        results.write(study.store, step.id, layer, _all_images(result, store), wanted, attrs)
    return True


def _answer_across(
    study: Study, question: Question, step: AcrossStep, executor: Executor, work: ExtractWork,
    opened: Callable[[], Store], position: int,
) -> bool:  # fmt: skip
    """Compute the results of a step over several layers, unless they are there; return whether they were computed."""
    layers = [one.layer for one in question.over]
    of = {layer: results.unit(study.store, step.of, layer).read() for layer in layers}
    said = {"format": RESULT_FORMAT, "analysis": step.kind, "parameters": _said(step), "of": of}
    wanted = fingerprint(said)
    if across_done(study, step, layers, wanted):
        return False
    answer_across(study, opened(), step, layers, executor, work.attempt, wanted, position)
    return True


def _said(step: AnalysisStep) -> dict[str, Any]:
    """Return what of a step its result depends on.

    A step that selects nothing has the fingerprint that it had before one could select; and so for what may be said now
    of the images selected.
    """
    said = step.model_dump(mode="json", exclude={"name", "layer"} | PLACED | PLACING)
    if step.tf32:  # on a device without it a result is the same but for the last digit, with it, it is not
        said["tf32"] = True
    if step.select is None:
        del said["select"]
    elif step.select.images is None:
        del said["select"]["images"]
    return said


def _computed_on(step: AnalysisStep) -> dict[str, str]:
    """Return what a result says of the device that it was computed on, if it was one."""
    return {} if step.device == CPU else {"device": step.device + ", tf32" * step.tf32}


def _compute(
    study: Study, store: Store, question: Question, executor: Executor, work: ExtractWork, **goes_on: Any
) -> xr.Dataset:
    step, layer = question.step, question.layer
    if question.rows is not None:
        counts = store.results[question.rows.id][layer]["count"].load().assign_attrs(layer=layer)
        result = ANALYSES[step.kind](counts, client=executor, **question.parameters)
        result.attrs["parameters"] = {"of": question.rows.id, **result.attrs["parameters"]}
        return result

    if isinstance(step, ConnectionsStep) and question.source is not None:
        return _connections(study, store, question, step)

    def found(feed: Feed) -> Found:
        merged = merge_feeds(work, [(layer, feed)], executor)
        if not merged:
            raise StoreError(f"some unit has no partial statistics of {feed.key}", hint="the same command again")
        return merged[layer, feed.key]

    plan = next(plan for plan in study.plan.layers if plan.name == layer)
    x = unread(store, study, plan) if question.recorded else store[layer]
    x = x.assign_attrs({TAKEN: _taken(question, study.plan.unit, found)})
    chosen = question.selected(x)
    beside = {**_placed(study, question, chosen), **goes_on}
    if isinstance(step, PatchComponentsStep):
        return answer_patches(study, store, step, chosen, executor, work, **beside)
    settings = {**question.parameters, **beside}
    if question.source is not None:
        settings["source"] = question.selected(store[question.source.name])
    return ANALYSES[step.kind](chosen, client=executor, **settings)


def _connections(study: Study, store: Store, question: Question, step: ConnectionsStep) -> xr.Dataset:
    """Read the weights between two layers, and follow back channels or the directions of another step."""
    assert question.source is not None
    weights = read_weights(study, question.source.name, question.layer)
    directions = None if step.of == "channel" else store.results[step.of][question.layer]["vector"].load()
    result = ANALYSES[step.kind](weights, directions=directions, **question.parameters)
    result.attrs["parameters"] = {"of": step.of, **result.attrs["parameters"]}
    return result


def _all_images(result: xr.Dataset, store: Store) -> xr.Dataset:
    """Give a result with fewer images all of the store's, NaN where there is none: a hierarchy has one image axis."""
    total = store.images.sizes["image"]
    if "image" not in result.dims or result.sizes["image"] == total:
        return result
    every = {dim: np.arange(total) for dim in ("image", "other_image") if dim in result.dims}
    none = {name: -1 for name in result if name in ("cluster", "order") or str(name).endswith("_neighbour")}
    whole = result.reindex(every, fill_value=none or np.nan)
    if "order" in whole:  # of a tree's images: those that are in none stand last
        order = whole["order"].values
        order[order < 0] = np.arange(result.sizes["image"], total)
    return whole

