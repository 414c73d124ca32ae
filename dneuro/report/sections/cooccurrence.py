"""Which classes a neuron's top images belong to: the neuron × class map of counts."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report import heatmaps
from dneuro.report.blocks import Block, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.picking import feature_dims, names, thin
from dneuro.report.words import counted, number, quoted


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``cooccurrence`` result."""
    array = result.data["count"]
    dims = feature_dims(array, "class")
    array, step = thin(array.transpose(*dims, "class"), dims[:1])
    counts = np.asarray(array.values, dtype=np.float32).reshape(-1, array.sizes["class"])
    classes = [str(name) for name in array["class"].values] if "class" in array.coords else [
        studio.images.class_name(label) for label in range(counts.shape[1])
    ]  # fmt: skip
    counts, classes, without = _with_images(counts, classes, array)
    called = names(array, dims, step) if len(counts) <= heatmaps.MOST_NAMED else None
    order = by_dominating_class(counts)
    what = "channel" if dims == ("channel",) else "neuron"
    quantile = result.parameters.get("quantile")
    kind = "top images" if quantile is None else "images"
    counted_images = kind if quantile is None else f"images above the {number(quantile)} quantile"
    figure = heatmaps.cooccurrence(
        counts[order], called and [called[row] for row in order], classes, what, counted=kind
    )
    empty = int((counts.sum(axis=1) == 0).sum())
    full = counts[counts.sum(axis=1) > 0]
    caption = (
        f"How many of the {counted_images} of {counted(counts.shape[0], what)} of {layer.name} belong to each of "
        f"{counted(len(classes), 'class', 'classes')}; rows are ordered by the class with the highest count, then by "
        f"that count. n = {counted(studio.taking_part(result), 'image')}."
    )
    if without:
        caption += f" Left out: {counted(without, 'class', 'classes')} without images."
    if heatmaps.block(max(counts.shape)) > 1:
        cell = " × ".join(str(heatmaps.block(length)) for length in counts.shape)
        caption += f" A cell of the map is the mean of {cell} (rows × classes)."
    if step > 1:
        caption += f" One channel in {step} is shown."
    if full.size:
        caption += (
            f" A neuron has {number(float(full.sum(axis=1).mean()))} counted images on average; its dominating class "
            f"takes {number(float(full.max(axis=1).mean()))} of them."
        )
    if empty:
        caption += f" {counted(empty, what)} with no counted image {'stands' if empty == 1 else 'stand'} last."
    alt = f"Heat map of counts, {counted(counts.shape[0], what)} by {counted(len(classes), 'class', 'classes')}"
    plate = studio.plate(figure, result, "classes", alt, caption + quoted(result.parameters))
    return Block(heading(result), plates=[plate], facts=facts(result))


def _with_images(
    counts: NDArray[np.float32], classes: list[str], array: xr.DataArray
) -> tuple[NDArray[np.float32], list[str], int]:
    """Return the counts of the classes that have images, their names, and how many have none."""
    if "class_size" not in array.coords:
        return counts, classes, 0
    present = np.flatnonzero(array["class_size"].values)
    return counts[:, present], [classes[label] for label in present], len(classes) - len(present)


def by_dominating_class(counts: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the rows by dominating class, the most devoted first; rows without counts last."""
    if not counts.size:
        return np.arange(counts.shape[0])
    best, most = counts.argmax(axis=1), counts.max(axis=1)
    return np.lexsort((-most, best, most == 0))
