"""Variances of channels and neurons, or moments of each image."""

from __future__ import annotations

import numpy as np

from dneuro.report import figures
from dneuro.report.blocks import Block, Plate, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.words import counted, number, quoted


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``moments`` result."""
    per_image = result.data["variance"].dims == ("image",)
    plates = _per_image(result, layer, studio) if per_image else _per_feature(result, layer, studio)
    return Block(heading(result), plates=plates, facts=facts(result))


def _per_feature(result: Result, layer: Layer, studio: Studio) -> list[Plate]:
    array = result.data["variance"]
    what = "channel" if array.dims == ("channel",) else "neuron"
    variance = np.asarray(array.values, dtype=np.float64).ravel()
    finite = variance[np.isfinite(variance)]
    constant, missing = int((finite == 0).sum()), variance.size - finite.size
    sample = f"of {counted(variance.size, what)} of {layer.name} over {_sample_size(result)}"
    axes = " Logarithmic axis; zeros cannot be shown on it." if figures.is_wide(finite) else ""
    spread, ranks = f"How the variance {sample} is spread.", f"Variance {sample}, ranked."
    if constant:
        spread += f" Constant (variance 0): {counted(constant, what)}."
    if missing:
        spread += f" Left out (NaN): {counted(missing, what)}."
    if finite.size:
        ranks += f" Largest {number(float(finite.max()))}, median {number(float(np.median(finite)))}."
    return [
        studio.plate(
            figures.histogram(variance, "variance of the activation", f"{what}s"), result, "variances",
            f"Histogram of the variance of {counted(variance.size, what)}",
            spread + axes + quoted(result.parameters),
        ),
        studio.plate(
            figures.ranked(variance, f"{what}s, ranked by variance", "variance"), result, "ranks",
            f"Curve of the variance of {counted(variance.size, what)} by rank",
            ranks + axes + quoted(result.parameters),
        ),
    ]  # fmt: skip


def _per_image(result: Result, layer: Layer, studio: Studio) -> list[Plate]:
    values = {"standard deviation": np.sqrt(np.asarray(result.data["variance"].values, dtype=np.float64))}
    if "mean" in result.data:
        values = {"mean": np.asarray(result.data["mean"].values, dtype=np.float64), **values}
    plates = []
    for name, array in values.items():
        count = counted(int(np.isfinite(array).sum()), "image")
        caption = f"The {name} of each image over its neurons of {layer.name}, n = {count}."
        figure = figures.histogram(array, f"{name} over the neurons of an image", "images")
        alt = f"Histogram of the {name} of {count}"
        plates.append(studio.plate(figure, result, name, alt, caption + quoted(result.parameters)))
    return plates


def _sample_size(result: Result) -> str:
    if "count" not in result.data:
        return "the images"
    counts = np.asarray(result.data["count"].values)
    if not counts.size:
        return "no values"
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low:,} values each" if low == high else f"n = {low:,} to {high:,} values each"
