"""Which classes a neuron's top images belong to: the neuron × class map of counts."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report import heatmaps
from dneuro.report.blocks import Block, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.picking import feature_dims, names, thin
from dneuro.report.words import counted, number, percent, quoted

_MOST_CLASSES = 72
"""Columns of a map; of more classes a column would be narrower than a pixel."""


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
    shown = _shown(counts)
    called = names(array, dims, step) if len(counts) <= heatmaps.MOST_NAMED else None
    order = by_dominating_class(counts)
    what = "channel" if dims == ("channel",) else "neuron"
    quantile = result.parameters.get("quantile")
    kind = "top images" if quantile is None else "images"
    counted_images = kind if quantile is None else f"images above the {number(quantile)} quantile"
    figure = heatmaps.cooccurrence(
        counts[order][:, shown], called and [called[row] for row in order], [classes[place] for place in shown], what,
        counted=kind,
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
    if len(shown) < len(classes):
        share = percent(float(counts[:, shown].sum()) / max(1.0, float(counts.sum())))
        caption += (
            f" Shown are {len(shown)} classes, those that dominate most {what}s (of equal ones those counted most): "
            f"{share} of all counts."
        )
    if heatmaps.block(len(counts)) > 1:
        cell = f"{heatmaps.block(len(counts))} × 1"
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


def _shown(counts: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the columns of the map: of very many classes those that dominate most rows, then those counted most."""
    total = counts.sum(axis=0)
    if counts.shape[1] <= _MOST_CLASSES:
        return np.arange(counts.shape[1])
    full = counts[counts.sum(axis=1) > 0]
    dominated = np.bincount(full.argmax(axis=1), minlength=counts.shape[1])
    return np.sort(np.lexsort((-total, -dominated))[:_MOST_CLASSES])


def by_dominating_class(counts: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the rows by dominating class, the most devoted first; rows without counts last."""
    if not counts.size:
        return np.arange(counts.shape[0])
    best, most = counts.argmax(axis=1), counts.max(axis=1)
    return np.lexsort((-most, best, most == 0))
