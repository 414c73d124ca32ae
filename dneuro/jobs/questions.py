"""The questions of a job: what a step asks of a layer, of which images, and what is there for it already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import xarray as xr

from dneuro.analysis.pairing import ROWS_NEURONS, count_features
from dneuro.analysis.selection import select
from dneuro.analysis.taken import Found, Taken
from dneuro.engine.device import on_device
from dneuro.jobs.study import Study
from dneuro.kernels.feeds import Feed
from dneuro.spec.steps import (
    PLACED,
    AnalysisStep,
    CooccurrenceStep,
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

P = ParamSpec("P")
Answer = TypeVar("Answer")


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


def placed(study: Study, question: Question, x: xr.DataArray) -> dict[str, Any]:
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


def taken(question: Question, images: int, answer: Callable[[Feed], Found] | None = None) -> Taken | None:
    """Return what was taken along for a question; of units of `images` images."""
    if not question.feeds:
        return None
    keys = [feed.key for feed in question.feeds]
    return Taken(lambda feed: feed.found_in(keys, images) is not None, answer, only=question.recorded)


def on_its_device(
    function: Callable[Concatenate[Study, Question, P], Answer],
) -> Callable[Concatenate[Study, Question, P], Answer]:
    """Let a function about a question run with the device that its step names, whatever the caller's own is."""

    @wraps(function)
    def on_it(study: Study, question: Question, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        with on_device(question.step.device, tf32=question.step.tf32):
            return function(study, question, *args, **kwargs)

    return on_it
