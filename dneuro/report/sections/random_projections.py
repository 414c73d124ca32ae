"""Variances of random directions beside those of neurons, and the images at the ends of the directions kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.report import comparisons, figures
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.svd import neuron_spans, standardised
from dneuro.report.words import NOTHING, counted, number, quoted

_MOST_TOP = 100


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``random_projections`` result."""
    variance = np.asarray(result.data["variance"].values, dtype=np.float64)
    kept = np.asarray(result.data["kept"].values, dtype=bool)
    plates = [_variances(variance, kept, result, layer, studio)]
    order = np.argsort(-variance, kind="stable")
    span = _span(order, kept, result, layer, studio)
    shown = [direction for direction in order if kept[direction]][: studio.neurons]
    drawn = list(range(min(variance.size, max(1, studio.neurons // 2))))
    rows = [_row(int(direction), variance, result, studio) for direction in shown]
    rows += [_row(direction, variance, result, studio, "as drawn") for direction in drawn]
    caption = (
        f"The images with the highest and with the lowest score on {counted(len(shown), 'direction')} of the "
        f"{int(kept.sum()):,} kept, largest variance first, then on the first {len(drawn)} as they were drawn, kept or "
        f"not, the baseline; n = {counted(int(result.data.attrs['images']), 'image')}.{quoted(result.parameters)}"
    )
    plates += [span] if span is not None else []
    return Block(heading(result), plates=plates, rows=rows, paired=True, caption=caption, facts=facts(result))


def _variances(
    variance: NDArray[np.float64], kept: NDArray[np.bool_], result: Result, layer: Layer, studio: Studio
) -> Plate:
    samples = {"random directions": variance}
    caption = f"Variance of the scores on {counted(variance.size, 'random direction')} of {layer.name}"
    unit = result.parameters.get("entries", "gaussian") == "gaussian"
    if not unit:
        caption += (
            f" (mean {number(float(variance.mean()))}), whose entries are uniform on [0, 1): their length is not 1, so "
            "that single neurons are not beside them"
        )
    elif "neuron_variance" in result.data:
        neurons = np.asarray(result.data["neuron_variance"].values, dtype=np.float64).ravel()
        samples["single neurons"] = neurons
        caption += (
            f" (mean {number(float(variance.mean()))}) beside that of {counted(neurons.size, 'single neuron')} (mean "
            f"{number(float(neurons.mean()))}), each as a share of its sample"
        )
    cutoff = float(result.data.attrs.get("cutoff", np.nan))
    caption += f". Kept: {counted(int(kept.sum()), 'direction')} with a variance of at least {number(cutoff)}."
    caption += standardised(result.data.attrs.get("standardize", ""))
    if figures.is_wide(np.concatenate(list(samples.values()))):
        caption += " Logarithmic axis; zeros cannot be shown on it."
    figure = comparisons.shares(samples, "variance over the images", cutoff, "cut-off")
    alt = f"Histograms of the variance of {variance.size:,} random directions and of single neurons"
    return studio.plate(figure, result, "variances", alt, caption + quoted(result.parameters))


def _row(
    direction: int, variance: NDArray[np.float64], result: Result, studio: Studio, note: str = "kept"
) -> Row:
    tiles = []
    for end in ("top", "bottom"):
        images = result.data[f"{end}_image"].values[direction][: studio.shown]
        values = result.data[f"{end}_value"].values[direction][: studio.shown]
        tiles.append([studio.tile(int(i), float(v)) for i, v in zip(images, values, strict=True)])
    said = [f"variance {number(float(variance[direction]))}", note]
    spanned = {studio.images.label(int(image)) for image in result.data["top_image"].values[direction]} - {-1}
    if spanned:
        k = result.data.sizes["rank"]
        said.append(f"its top {k} span {counted(len(spanned), 'class', 'classes')}")
    return Row(f"Direction {direction}", ", ".join(said), tiles[0], tiles[1])


def _span(
    order: NDArray[np.int64], kept: NDArray[np.bool_], result: Result, layer: Layer, studio: Studio
) -> Plate | None:
    """Compare how many classes the top images of directions and of single neurons span (Zhang)."""
    labels = studio.images.labels
    if labels is None or not (labels >= 0).any():
        return None
    top = layer.first("top_images", "top_image")
    ranks = top.data.sizes["rank"] if top is not None else _MOST_TOP
    k = min(_MOST_TOP, ranks, result.data.sizes["rank"])
    if k < 2:
        return None
    images = np.asarray(result.data["top_image"].values)[order, :k]
    ours = np.array([len(set(labels[row].tolist()) - {-1}) for row in images], dtype=np.float64)
    theirs = neuron_spans(top, k, labels) if top is not None else None
    classes = len(np.unique(labels[labels >= 0]))
    of_kept = number(float(ours[kept[order]].mean())) if kept.any() else NOTHING
    caption = (
        f"How many of {counted(classes, 'class', 'classes')} the k = {k} images with the highest score span, by "
        f"direction, largest variance first (mean {number(float(ours.mean()))}; of those kept: {of_kept})"
    )
    if theirs is not None and theirs.size:
        caption += (
            f"; shaded: the same for the top {k} images of {counted(theirs.size, 'single neuron')} of the layer "
            f"(mean {number(float(theirs.mean()))})"
        )
    alt = f"Classes spanned by the top {k} images of each of {counted(ours.size, 'direction')}"
    return studio.plate(figures.spans(ours, theirs, classes, k, "direction"), result, "span", alt, caption + ".")
