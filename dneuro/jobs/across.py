"""A step over what another step found out about several layers: a result for each of them, and one over all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from dneuro.analysis import ACROSS, PLANS
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.errors import DneuroError, UsageError
from dneuro.extract.work import Attempt
from dneuro.jobs.study import Study
from dneuro.spec.steps import PLACED, AcrossStep
from dneuro.store import results
from dneuro.store.opening import Store

LAYERS = "layers"
"""Name of the result over all layers, among those of single ones."""


def plan_across(step: AcrossStep, stand_ins: Mapping[str, xr.Dataset], executor: Sizes) -> Plan:
    """Return the plan of a step; `stand_ins` are shaped as the results of its layers will be."""
    return PLANS[step.kind](dict(stand_ins), client=executor, **_parameters(step))


def check_names(step: AcrossStep, layers: list[str]) -> None:
    """Refuse layers among whose results the one over all layers would be lost.

    Raises
    ------
    UsageError
        If a layer has its name.
    """
    if LAYERS in layers:
        raise UsageError(
            f"step {step.id}: a layer is called {LAYERS!r}, as its result over all layers is",
            hint="layer: a list without it",
        )


def answer_across(
    study: Study, store: Store, step: AcrossStep, layers: list[str], executor: Executor, attempt: Attempt,
    wanted: str, order: int,
) -> None:  # fmt: skip
    """Compute a step and write what it gives: for each layer, if it does, and over all of them."""
    own = {layer: store.results[step.of][layer] for layer in layers}
    try:
        found = ACROSS[step.kind](own, client=executor, **_parameters(step))
    except DneuroError as error:
        error.message = f"step {step.id}: {error.message}"
        raise
    attempt.refuse_if_overtaken(f"step {step.id}")
    parts: dict[str, xr.Dataset] = {}
    if isinstance(found, xr.DataTree):
        parts = {layer: found.children[layer].to_dataset(inherit=False) for layer in layers}
        found = found.to_dataset()
    for place, (name, result) in enumerate({**parts, LAYERS: found}.items()):
        result.attrs["parameters"] = {"of": step.of, **result.attrs["parameters"]}
        results.write(study.store, step.id, name, result, wanted, {"step": step.id, "order": order + place})


def done(study: Study, step: AcrossStep, layers: list[str], wanted: str) -> bool:
    """Return whether all that a step gives is there."""
    names = [*(layers if step.each_layer else ()), LAYERS]
    return all(results.unit(study.store, step.id, name).marker(wanted) is not None for name in names)


def _parameters(step: AcrossStep) -> dict[str, Any]:
    return step.model_dump(exclude={"name", "layer", "of", "select"} | PLACED)
