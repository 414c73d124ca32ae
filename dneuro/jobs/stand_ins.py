"""Arrays and datasets that stand for what a job will make: shaped, chunked and labelled like it, without data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.facets import NEEDS
from dneuro.analysis.pairing import ROWS_NEURONS, count_features
from dneuro.analysis.taken import TAKEN, Taken
from dneuro.errors import StoreError
from dneuro.jobs.study import Study
from dneuro.spec.steps import AnalysisStep, CooccurrenceStep, SelectivityStep, SimilarityStep
from dneuro.store.layout import LayerPlan
from dneuro.store.opening import Store


def stand_in(study: Study, plan: LayerPlan, taken: Taken | None = None) -> xr.DataArray:
    """Return an array shaped, chunked and labelled as the layer will be, without data.

    Shaped as the network gives it where the layer is not kept, or nothing but what was `taken` along of it counts.
    """
    kept = "full" if plan.keep == "stats" or (taken is not None and taken.only) else plan.keep
    array = replace(plan, keep=kept).arrays(study.plan.images, study.plan.unit)[0]
    empty = da.zeros(array.shape, chunks=array.chunks, dtype=array.dtype)
    attrs = {"layer": plan.name, "keep": kept, "shape": list(plan.shape), "class_names": study.class_names}
    manifest = study.source.manifest
    coords = {"label": ("image", np.asarray(manifest.labels)), "filename": ("image", manifest.names)}
    if any(array.name == "correct" for array in study.plan.root):
        coords["correct"] = ("image", np.ones(study.plan.images, bool))
    return xr.DataArray(empty, dims=array.dims, coords=coords, attrs=attrs | ({TAKEN: taken} if taken else {}))


def stand_in_rows(layer: xr.DataArray, counted: CooccurrenceStep, classes: int) -> xr.DataArray:
    """Return an array shaped as the counts of a layer will be, without data."""
    dims = layer.dims[1:] if counted.per == "neuron" else layer.dims[1:2]
    shape = (*(layer.sizes[dim] for dim in dims), max(1, classes))
    return xr.DataArray(da.zeros(shape, dtype="int64"), dims=(*dims, "class"), attrs={"layer": layer.attrs["layer"]})


def stand_in_result(step: AnalysisStep, x: xr.DataArray) -> xr.Dataset:
    """Return a dataset shaped as the result of a step will be, as far as a step over layers asks; without data.

    Parameters
    ----------
    step : SelectivityStep or SimilarityStep
        Whose result.
    x : DataArray
        What it is asked of: shaped as activations, or as counts (features…, class).
    """
    if isinstance(step, SimilarityStep):
        features = count_features(x, step.per, step.pool)
        lengths = {"channel": features, "other_channel": features}
        return _empty(lengths, step.metric)
    assert isinstance(step, SelectivityStep)
    dims = [str(dim) for dim in x.dims if dim not in ("image", "class")]
    whole = "class" in x.dims or step.per == "neuron"
    return _empty({dim: x.sizes[dim] for dim in (dims if whole else dims[:1])}, NEEDS)


def _empty(lengths: Mapping[str, int], names: Iterable[str]) -> xr.Dataset:
    empty = da.zeros(tuple(lengths.values()), dtype="f8", chunks=ROWS_NEURONS)
    return xr.Dataset({name: (tuple(lengths), empty) for name in names})


def unread(store: Store, study: Study, plan: LayerPlan) -> xr.DataArray:
    """Return a layer as the network gave it, labelled, whose activations cannot be read."""
    shape = (study.plan.images, *plan.shape)
    chunks = da.core.normalize_chunks((study.plan.unit, *plan.shape), shape)
    empty = np.empty((0,) * len(shape), plan.stored)
    data = da.map_blocks(_refuse, plan.name, chunks=chunks, dtype=plan.stored, meta=empty)
    root = store.images
    names = ("image", "filename", "label", "prediction", "correct", *(("status",) if root["status"].any() else ()))
    attrs: dict[str, Any] = {"layer": plan.name, "shape": list(plan.shape)}
    if "class" in root:
        attrs["class_names"] = [str(name) for name in root["class"].values]
    coords = {name: ("image", root[name].values) for name in names if name in root.variables}
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: len(shape)], coords=coords, attrs=attrs)


def _refuse(layer: str) -> NDArray[Any]:
    raise StoreError(f"the activations of layer {layer} were not kept", hint="extract again with keep: full")
