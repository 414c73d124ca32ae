"""A step over several layers at once: one question, one computation, a result for each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from dneuro.analysis import COUPLED, PLANS
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.errors import DneuroError, StoreError, UsageError
from dneuro.extract.work import Attempt
from dneuro.jobs.study import Study
from dneuro.spec.steps import PLACED, CoupledNmfStep
from dneuro.store import results
from dneuro.store.layout import LayerPlan
from dneuro.store.opening import Store

PICTURES = "pictures"
"""Name of the pictures among the layers."""


def layers_of(study: Study, step: CoupledNmfStep) -> list[LayerPlan]:
    """Return the layers that a step couples.

    Raises
    ------
    UsageError
        If one of them does not keep its activations, or no pictures are kept and they are wanted.
    """
    plans = [plan for plan in study.plan.layers if step.layer is None or plan.name in step.layers]
    for plan in plans:
        if plan.keep == "stats":
            raise UsageError(
                f"step {step.id}: layer {plan.name} has keep: stats, and the step needs its activations",
                hint=f"layer: without {plan.name}, or extract: {{layers: {{{plan.name}: {{keep: full}}}}}}",
            )
    if step.pictures and not study.job.extract.thumbnails:
        raise UsageError(f"step {step.id} couples the pictures, and none are kept", hint="extract: {thumbnails: true}")
    return plans


def names_of(study: Study, step: CoupledNmfStep) -> list[str]:
    """Return the names of everything that a step couples, pictures first."""
    return [PICTURES] * step.pictures + [plan.name for plan in layers_of(study, step)]


def plan_coupled(study: Study, step: CoupledNmfStep, stand_ins: list[xr.DataArray], executor: Sizes) -> Plan:
    """Return the plan of a step; `stand_ins` are shaped as its layers will be."""
    xs = {str(x.attrs["layer"]): x for x in stand_ins}
    if step.pictures:
        array = next(array for array in study.plan.root if array.name == "picture")
        empty = da.zeros(array.shape, chunks=array.chunks, dtype="f4")
        xs = {PICTURES: xr.DataArray(empty, dims=array.dims), **xs}
    return PLANS[step.kind](xs, client=executor, **_parameters(step))


def identity(study: Study, step: CoupledNmfStep) -> dict[str, Any]:
    """Return what the layers of a step depend on."""
    of_pictures = {PICTURES: study.identity} if step.pictures else {}
    return {**of_pictures, **{plan.name: study.layer_identity(plan.name) for plan in layers_of(study, step)}}


def done(study: Study, step: CoupledNmfStep, wanted: str) -> bool:
    """Return whether the results of all layers are there."""
    return all(results.unit(study.store, step.id, name).marker(wanted) for name in names_of(study, step))


def answer_coupled(
    study: Study, store: Store, selected: Callable[[xr.DataArray], xr.DataArray], step: CoupledNmfStep,
    executor: Executor, attempt: Attempt, wanted: str, attrs: dict[str, Any],
) -> None:  # fmt: skip
    """Compute a step, or go on with it, and write what it gives for each layer; `selected` takes the images asked."""
    xs = {plan.name: store[plan.name] for plan in layers_of(study, step)}
    if step.pictures:
        xs = {PICTURES: _pictures(store), **xs}
    xs = {name: selected(x) for name, x in xs.items()}
    with results.state(study.store, step.id, "coupled", wanted) as kept:
        try:
            found = COUPLED[step.kind](xs, client=executor, checkpoint=kept, **_parameters(step))
        except DneuroError as error:
            error.message = f"step {step.id}: {error.message}"
            raise
        attempt.refuse_if_overtaken(f"step {step.id}")
        for number, name in enumerate(names_of(study, step)):
            result = _of_layer(found, name)
            total = store.images.sizes["image"]
            if result.sizes["image"] < total:
                result = result.reindex(image=np.arange(total))
            order = {"order": attrs["order"] + number}
            results.write(study.store, step.id, name, result, wanted, {**attrs, **order, "step": step.id})


def _of_layer(found: xr.DataTree, name: str) -> xr.Dataset:
    """Return what a layer shares with the others, and what is its own."""
    shared, own = found.to_dataset(), found[name].to_dataset()
    own = own.rename(loss="layer_loss")
    shared_attrs = {key: value for key, value in shared.attrs.items() if key not in own.attrs}
    return shared.merge(own).assign_attrs({**shared_attrs, **own.attrs})


def _pictures(store: Store) -> xr.DataArray:
    """Return the pictures as the network saw them, reduced, in [0, 1]; those of masked images are left out."""
    if "pictures" not in store.tree.children:
        raise StoreError(f"{store.path} holds no pictures", hint="extract: {thumbnails: true}")
    pictures = store.tree["pictures"]["picture"].astype("float32") / np.float32(255)
    root = store.images
    coords: dict[str, Any] = {"image": root["image"].values}
    coords |= {name: ("image", root[name].values) for name in ("label", "correct") if name in root.variables}
    bare = pictures.reset_coords(drop=True).drop_vars("image", errors="ignore")
    return bare.assign_coords(coords | {"status": ("image", root["status"].values)})


def _parameters(step: CoupledNmfStep) -> dict[str, Any]:
    return step.model_dump(exclude={"name", "layer", "pictures", "select"} | PLACED)
