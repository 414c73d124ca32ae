"""Whether components are redundant, and span classes, beside single neurons: a line for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dneuro.report.beside.table import Line, Table
from dneuro.report.blocks import Studio
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.svd import common, component_overlap, component_spans, neuron_spans
from dneuro.report.words import NOTHING, number, percent

_MOST = 100
"""Images whose classes are counted, as in the paper (Zhang)."""


def table(step: str, found: Sequence[tuple[Layer, Result]], studio: Studio) -> Table | None:
    """Return the table of the top images of one svd step's components, over the layers; None if nothing is known."""
    lengths = [top.data.sizes["rank"] for layer, _ in found if (top := layer.first("top_images", "top_image"))]
    k = min([_MOST, *lengths])
    images = max(studio.taking_part(result) for _, result in found)
    heads = (
        "Classes of a component", "of a neuron of large variance", "of a channel", "Shared by two components",
        "by two such neurons", "by two random sets",
    )  # fmt: skip
    cells = [tuple(_cells(layer, result, k, studio)) for layer, result in found]
    if all(cell == NOTHING for row in cells for cell in row):
        return None
    by_chance = percent(min(1.0, k / max(1, images)))
    lines = [Line(layer.name, layer.file, (*row, by_chance)) for (layer, _), row in zip(found, cells, strict=True)]
    caption = (
        f"Per layer: the mean number of classes among the top {k} images of a component, of a neuron of large variance "
        "(step single_neurons), and of a channel (by its maximum); and the share of these images that two components, "
        "two such neurons, or two random sets of images have in common on average."
    )
    return Table(f"Top images of step {step}", [], heads, lines, caption)


def _cells(layer: Layer, result: Result, k: int, studio: Studio) -> Iterator[str]:
    ours = component_spans(result, k, studio)
    yield NOTHING if ours is None else number(float(ours.mean()))
    labels = studio.images.labels
    single = layer.first("single_neurons", "top_image")
    varied = None if single is None else _of_large_variance(single)
    for top in (varied, layer.first("top_images", "top_image")):
        theirs = neuron_spans(top, k, labels) if top is not None and labels is not None else np.empty(0)
        yield number(float(theirs.mean())) if theirs.size else NOTHING
    yield percent(component_overlap(result, k, studio))
    images = None if varied is None else varied.data["top_image"].isel(rank=slice(k)).values
    yield NOTHING if images is None or len(images) < 2 else percent(common(images))


def _of_large_variance(single: Result) -> Result:
    """Return the result without the neurons that were drawn at random."""
    random = np.asarray(single.data["random"].values, dtype=bool)
    return replace(single, data=single.data[["top_image"]].isel(chosen=~random))
