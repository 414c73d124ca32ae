"""How similar every two channels or neurons are."""

from __future__ import annotations

import numpy as np

from dneuro.report import figures, heatmaps
from dneuro.report.blocks import Block, Plate, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.picking import names, thin
from dneuro.report.words import counted, number, quoted

METRICS = ("pearson", "euclidean", "cosine", "covariance")
NEEDS = (*METRICS, *(f"{metric}_value" for metric in METRICS))


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``similarity`` result: a heat map per measure, or how the values kept are spread."""
    plates = [_plate(metric, result, layer, studio) for metric in METRICS if metric in result.data]
    plates += [_kept(metric, result, layer, studio) for metric in METRICS if f"{metric}_value" in result.data]
    return Block(heading(result), plates=plates, facts=facts(result))


def _kept(metric: str, result: Result, layer: Layer, studio: Studio) -> Plate:
    """Return how the values of the nearest of each feature, or of the pairs that pass a threshold, are spread."""
    array = result.data[f"{metric}_value"]
    title = TITLES[metric]
    if array.dims == ("pair",):
        limit = number(float(result.parameters.get("threshold", 0)))
        most = "at most" if metric == "euclidean" else "at least"
        size = title if metric == "euclidean" else f"|{title}|"
        values, counts = np.asarray(array.values, dtype=np.float64), "pairs"
        caption = f"{counted(array.size, 'pair')} of {layer.name} whose {size} is {most} {limit}."
    else:
        what = str(array.dims[0]) if array.dims[0] in ("channel", "image") and len(array.dims) == 2 else "neuron"
        values, counts = np.asarray(array.values[..., 0], dtype=np.float64).ravel(), f"{what}s"
        caption = (
            f"{title} of each of {counted(values.size, what)} of {layer.name} and the other that is most like it "
            f"(the store holds the nearest {array.sizes['neighbour']})."
        )
        finite = values[np.isfinite(values)]
        if finite.size:
            caption += f" Median {number(float(np.median(finite)))}."
        if finite.size < values.size:
            caption += f" Left out (no value): {counted(values.size - finite.size, what)}."
    figure = figures.histogram(values, title, counts)
    if figures.is_wide(values[np.isfinite(values)]):
        caption += " Logarithmic axis; zeros cannot be shown on it."
    alt = f"Histogram of the {title} of {counted(values.size, counts[:-1])}"
    return studio.plate(figure, result, metric, alt, caption + quoted(result.parameters))


def _plate(metric: str, result: Result, layer: Layer, studio: Studio) -> Plate:
    array = result.data[metric]
    total = array.sizes[array.dims[0]]
    dims = tuple(str(dim) for dim in array.dims)
    array, step = thin(array, dims)
    values = np.array(array.values, dtype=np.float32)  # as fine as a figure can show
    what = dims[0] if dims[0] in ("channel", "image") else "neuron"
    figure = heatmaps.similarity(values, names(array, dims[:1], step), metric, what)
    caption = f"{TITLES[metric]} of every two of {counted(total, what)} of {layer.name}, in the layer's order."
    of = result.parameters.get("of", "activation")
    if what == "image":
        caption += " Compared: activations of all neurons."
    elif of == "activation":
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


TITLES = {
    "pearson": "Pearson correlation",
    "euclidean": "Euclidean distance",
    "cosine": "Cosine",
    "covariance": "Covariance",
}
