"""The steps that ask the store a question: what they find there is computed once and written into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dneuro.analysis import ANALYSES
from dneuro.analysis.taken import TAKEN, Found
from dneuro.engine.executors import Executor
from dneuro.errors import DneuroError, StoreError
from dneuro.extract.run import merge_feeds
from dneuro.extract.work import ExtractWork
from dneuro.jobs.across import answer_across
from dneuro.jobs.across import done as across_done
from dneuro.jobs.coupled import answer_coupled, done, identity
from dneuro.jobs.patching import answer_patches
from dneuro.jobs.questions import Question, on_its_device, placed, taken
from dneuro.jobs.stand_ins import unread
from dneuro.jobs.study import Study
from dneuro.jobs.wiring import read_weights
from dneuro.kernels.feeds import Feed
from dneuro.spec.device import CPU
from dneuro.spec.steps import (
    PLACED,
    PLACING,
    AcrossStep,
    AnalysisStep,
    ConnectionsStep,
    CoupledNmfStep,
    NmfStep,
    PatchComponentsStep,
)
from dneuro.store import results
from dneuro.store.opening import Store
from dneuro.store.units import fingerprint

RESULT_FORMAT = 1
"""Number of the results' layout; part of their fingerprints."""


@on_its_device
def answer(
    study: Study, question: Question, executor: Executor, work: ExtractWork, opened: Callable[[], Store]
) -> bool:
    """Compute one result and write it into the store, unless it is there already; return whether it was computed.

    `opened` gives the store as it was before the step: to open it takes longer the more results it holds.
    """
    step, layer = question.step, question.layer
    wanted = _wanted(study, question)
    if _is_there(study, question, wanted):
        return False
    position = 1000 * [s.id for s in study.job.steps].index(step.id)
    if isinstance(step, AcrossStep):
        layers = [one.layer for one in question.over]
        answer_across(study, opened(), step, layers, executor, work.attempt, wanted, position)
    elif isinstance(step, CoupledNmfStep):
        answer_coupled(study, opened(), question.selected, step, executor, work.attempt, wanted,
                       {"order": position, **_computed_on(step)})  # fmt: skip
    else:
        attrs = {"step": step.id, "order": position + list(study.layers).index(layer), **_computed_on(step)}
        _answer_layer(study, question, executor, work, opened, wanted, attrs)
    return True


def unanswered(study: Study, questions: Iterable[Question]) -> Iterator[Question]:
    """Yield those of a job's questions, in its order, whose results are not in its store, or will have to be others."""
    new: set[tuple[str, str]] = set()
    for question in questions:
        of = getattr(question.step, "of", "")
        about = {(of, one.layer) for one in question.over or (question,)}
        if not new.isdisjoint(about) or not _is_there(study, question, _wanted(study, question)):
            new.add((question.step.id, question.layer))
            yield question


def _is_there(study: Study, question: Question, wanted: str) -> bool:
    """Return whether all that a question gives is in the store."""
    step = question.step
    if isinstance(step, AcrossStep):
        return across_done(study, step, [one.layer for one in question.over], wanted)
    if isinstance(step, CoupledNmfStep):
        return done(study, step, wanted)
    return results.unit(study.store, step.id, question.layer).marker(wanted) is not None


def _wanted(study: Study, question: Question) -> str:
    """Return the fingerprint of all that the result of a question depends on."""
    step = question.step
    inputs: dict[str, Any] = {"format": RESULT_FORMAT, "analysis": step.kind, "parameters": _said(step)}
    if isinstance(step, AcrossStep):
        layers = [one.layer for one in question.over]
        return fingerprint({**inputs, "of": {one: results.unit(study.store, step.of, one).read() for one in layers}})
    if isinstance(step, CoupledNmfStep):
        inputs["layer"] = identity(study, step)
    else:
        inputs["layer"] = study.layer_identity(question.layer)
    if question.source is not None:
        inputs["source"] = study.layer_identity(question.source.name)
    of = getattr(step, "of", "activation")
    if of not in ("activation", "channel"):
        inputs["of"] = results.unit(study.store, of, question.layer).read()
    return fingerprint(inputs)


def _answer_layer(
    study: Study, question: Question, executor: Executor, work: ExtractWork, opened: Callable[[], Store], wanted: str,
    attrs: dict[str, Any],
) -> None:  # fmt: skip
    """Compute a result of one layer, or go on with it, and write it."""
    step, layer = question.step, question.layer
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
        if isinstance(study.store, Path) and written is not None and written.exists():  # by the tasks: it may be large
            results.adopt(study.store, step.id, layer, written, wanted, attrs)
        else:
            results.write(study.store, step.id, layer, _all_images(result, store), wanted, attrs)


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
    x = x.assign_attrs({TAKEN: taken(question, study.plan.unit, found)})
    chosen = question.selected(x)
    beside = {**placed(study, question, chosen), **goes_on}
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
