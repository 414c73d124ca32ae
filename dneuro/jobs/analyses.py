"""The steps that ask the store a question: their arrays, their plans, their results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from dneuro import events
from dneuro.analysis import ANALYSES, PLANS
from dneuro.analysis.cooccurrence import count_classes
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.errors import DneuroError, StoreError, UsageError
from dneuro.jobs.study import Study
from dneuro.spec.steps import AnalysisStep, CooccurrenceStep, MomentsStep, SimilarityStep, SvdStep, TopImagesStep
from dneuro.store import results
from dneuro.store.layout import LayerPlan
from dneuro.store.opening import Store, open_store
from dneuro.store.units import fingerprint

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
        The extraction takes the answer along; nothing is read again.
    """

    step: AnalysisStep
    layer: str
    recorded: bool

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of the function in `dneuro.analysis`."""
        return self.step.model_dump(exclude={"name", "layer", "of"})


def questions(study: Study) -> Iterator[Question]:
    """Yield what the job asks, in its order.

    Raises
    ------
    UsageError
        If a layer does not keep what a step needs.
    """
    for step in study.job.steps:
        if not isinstance(step, AnalysisStep):
            continue
        named = [step.layer] if isinstance(step.layer, str) else step.layer
        for plan in study.plan.layers:
            if named is not None and plan.name not in named:
                continue
            question = Question(step, plan.name, _is_recorded(step))
            lacking = _lacking(question, plan)
            if lacking and named is not None:
                raise UsageError(
                    f"step {step.id}: layer {plan.name} has keep: {plan.keep}, {lacking}",
                    hint=f"extract: {{layers: {{{plan.name}: {{keep: full}}}}}}",
                )
            if lacking:
                events.emit("note", step.id, f"leaves out layer {plan.name}, of which keep: {plan.keep} is stored")
            else:
                yield question


def _is_recorded(step: AnalysisStep) -> bool:
    if isinstance(step, MomentsStep | TopImagesStep | CooccurrenceStep):
        return step.per == "channel" and step.pool == "max"
    return isinstance(step, SimilarityStep) and step.of != "activation"


def _lacking(question: Question, plan: LayerPlan) -> str:
    """Return what a layer does not keep for this question; empty if nothing."""
    step = question.step
    if question.recorded or plan.keep == "full":
        return ""
    if plan.keep == "stats":
        return "and the step needs its activations"
    pool = getattr(step, "pool", plan.keep)
    if isinstance(step, SvdStep) or getattr(step, "per", "channel") != "channel":
        return "and the step needs every neuron" if len(plan.shape) > 1 else ""
    return f"and the step needs the {pool} over positions" if pool != plan.keep and len(plan.shape) > 1 else ""


def stand_in(study: Study, plan: LayerPlan) -> xr.DataArray:
    """Return an array shaped, chunked and labelled as the layer will be, without data."""
    array = next(iter(replace(plan, keep="full" if plan.keep == "stats" else plan.keep).arrays(
        study.plan.images, study.plan.unit)))  # fmt: skip
    empty = da.zeros(array.shape, chunks=array.chunks, dtype=array.dtype)
    return xr.DataArray(
        empty,
        dims=array.dims,
        coords={"label": ("image", np.asarray(study.source.manifest.labels))},
        attrs={"layer": plan.name, "shape": list(plan.shape), "class_names": study.class_names},
    )


def plan_question(study: Study, question: Question, executor: Sizes) -> Plan:
    """Return the plan of one question before the store exists, and refuse what does not fit.

    Raises
    ------
    MemoryLimitError
        With the numbers and what to change.
    """
    layer = next(plan for plan in study.plan.layers if plan.name == question.layer)
    name = f"{question.step.id} of {question.layer}"
    if isinstance(question.step, SimilarityStep) and question.step.of != "activation":
        size = 8 * layer.shape[0] ** 2
        return Plan(name, 0, 0, 1, 0, 4 * size, size * len(question.step.metric), "in the driver")
    try:
        plan = PLANS[question.step.kind](stand_in(study, layer), client=executor, **question.parameters)
    except UsageError as error:
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from None
    if question.recorded:
        return Plan(name, 0, 0, 0, 0, plan.driver_bytes, plan.result_bytes, "with extract")
    plan = replace(plan, operation=name)
    plan.check(
        executor.memory,
        hint="a lower rank, method: krylov, per: channel, or a profile with more memory per worker (--cluster)",
    )
    return plan


def answer(study: Study, question: Question, executor: Executor) -> bool:
    """Compute one result and write it into the store, unless it is there already; return whether it was computed."""
    step, layer = question.step, question.layer
    inputs = {
        "format": RESULT_FORMAT,
        "analysis": step.kind,
        "parameters": step.model_dump(mode="json", exclude={"name", "layer"}),
        "layer": study.layer_identity(layer),
    }
    of = getattr(step, "of", "activation")
    if of != "activation":
        inputs["of"] = results.unit(study.store, of, layer).read()
    wanted = fingerprint(inputs)
    if results.unit(study.store, step.id, layer).marker(wanted) is not None:
        return False
    store = open_store(study.store)
    try:
        result = _compute(study, store, question, executor)
    except DneuroError as error:
        error.message = f"step {step.id}, layer {layer}: {error.message}"
        raise
    order = 1000 * [s.id for s in study.job.steps].index(step.id) + list(study.layers).index(layer)
    attrs = {"step": step.id, "order": order}
    results.write(study.store, step.id, layer, _all_images(result, store), wanted, attrs)
    return True


def _compute(study: Study, store: Store, question: Question, executor: Executor) -> xr.Dataset:
    step, layer = question.step, question.layer
    if isinstance(step, SimilarityStep) and step.of != "activation":
        counts = store.results[step.of][layer]["count"].load().assign_attrs(layer=layer)
        return ANALYSES["similarity"](counts, metric=step.metric, client=executor)
    if question.recorded:
        recorded = _recorded(store, question)
        if recorded is not None:
            return recorded
        plan = next(plan for plan in study.plan.layers if plan.name == layer)
        lacking = _lacking(replace(question, recorded=False), plan)
        if lacking:  # of means, say, no maximum can be had any more
            raise StoreError(
                f"the extraction was not asked for these statistics, the layer has keep: {plan.keep}, {lacking}",
                hint="give the job another store:, to extract again with this step in it",
            )
    return ANALYSES[step.kind](store[layer], client=executor, **question.parameters)


def _recorded(store: Store, question: Question) -> xr.Dataset | None:
    """Return the answer that the extraction has taken along, if it is there and long enough."""
    step, layer = question.step, question.layer
    known = store.statistics(layer).load()
    attrs = {"analysis": step.kind, "layer": layer, "parameters": question.parameters}
    if isinstance(step, MomentsStep):
        names = [name for name in known.data_vars if not str(name).startswith(("top_", "bottom_"))]
        return known[names].assign_attrs(attrs) if "mean" in names else None
    assert isinstance(step, TopImagesStep | CooccurrenceStep)
    images = store.images
    if "top_image" not in known or known.sizes["rank"] < min(step.k, int((images["status"] == 0).sum())):
        return None
    ends = known[[name for name in known.data_vars if str(name).startswith(("top_", "bottom_"))]]
    ends = ends.isel(rank=slice(step.k))
    if isinstance(step, TopImagesStep):
        return ends.assign_attrs({**attrs, "images": int((images["status"] == 0).sum())})
    labels = images["label"].values
    classes = [str(name) for name in images["class"].values] if "class" in images else []
    return count_classes(ends, labels, classes, k=step.k).assign_attrs(attrs)


def _all_images(result: xr.Dataset, store: Store) -> xr.Dataset:
    """Give a result with fewer images all of the store's, NaN where there is none: a hierarchy has one image axis."""
    total = store.images.sizes["image"]
    if "image" in result.dims and result.sizes["image"] < total:
        return result.reindex(image=np.arange(total))
    return result

