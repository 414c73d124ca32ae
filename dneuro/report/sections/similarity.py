"""How similar every two channels or neurons are."""

from __future__ import annotations

import numpy as np

from dneuro.report import heatmaps
from dneuro.report.blocks import Block, Plate, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.picking import names, thin
from dneuro.report.words import counted, number, quoted

METRICS = ("pearson", "euclidean")


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``similarity`` result: a heat map per measure."""
    plates = [_plate(metric, result, layer, studio) for metric in METRICS if metric in result.data]
    return Block(heading(result), plates=plates, facts=facts(result))


def _plate(metric: str, result: Result, layer: Layer, studio: Studio) -> Plate:
    array = result.data[metric]
    total = array.sizes[array.dims[0]]
    dims = tuple(str(dim) for dim in array.dims)
    array, step = thin(array, dims)
    values = np.array(array.values, dtype=np.float32)  # as fine as a figure can show
    what = "channel" if dims[0] == "channel" else "neuron"
    figure = heatmaps.similarity(values, names(array, dims[:1], step), metric, what)
    caption = f"{_TITLES[metric]} of every two of {counted(total, what)} of {layer.name}, in the layer's order."
    of = result.parameters.get("of", "activation")
    if of == "activation":
        caption += f" Compared: activations, n = {counted(studio.taking_part(result), 'image')}."
    else:
        caption += f" Compared: rows of step {of}."
    if step > 1:
        caption += f" One {what} in {step} is shown."
    if heatmaps.block(len(values)) > 1:
        caption += f" A cell of the map is the mean of {heatmaps.block(len(values))} × {heatmaps.block(len(values))}."
    gone = np.isnan(values).all(axis=1) if values.size else np.zeros(0, dtype=bool)
    own = np.diagonal(values)
    pairs = int(np.isfinite(values).sum() - np.isfinite(own).sum())
    if pairs:
        apart = np.nansum(values, dtype=np.float64) - np.nansum(own, dtype=np.float64)
        caption += f" Mean off the diagonal {number(float(apart / pairs))}."
    if gone.any():
        count = int(gone.sum())
        caption += (
            f" Grey: {counted(count, what)} without a value (NaN), because {'it is' if count == 1 else 'they are'} "
            "constant."
        )
    alt = f"Heat map, {counted(len(values), what)} by {counted(len(values), what)}, {metric}"
    return studio.plate(figure, result, metric, alt, caption + quoted(result.parameters))


_TITLES = {"pearson": "Pearson correlation", "euclidean": "Euclidean distance"}
