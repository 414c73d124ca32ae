"""Whether components are redundant, and span classes, beside single neurons: a line for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dneuro.report.beside.table import Line, Table
from dneuro.report.blocks import Studio
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.svd import common, component_overlap, component_spans, neuron_spans
from dneuro.report.words import NOTHING, counted, number, percent

_MOST = 100
"""Images whose classes are counted, as in the paper (Zhang)."""


def table(step: str, found: Sequence[tuple[Layer, Result]], studio: Studio) -> Table | None:
    """Return the table of the top images of one svd step's components, over the layers; None if nothing is known."""
    lengths = [top.data.sizes["rank"] for layer, _ in found if (top := layer.first("top_images", "top_image"))]
    k = min([_MOST, *lengths])
    images = max(studio.taking_part(result) for _, result in found)
    heads = (
        "Classes of a first component, highest and lowest", "of any component", "of a neuron of large variance",
        "of a random neuron", "of a channel", "Shared by two components", "by two such neurons", "by two random sets",
    )  # fmt: skip
    cells = [tuple(_cells(layer, result, k, studio)) for layer, result in found]
    if all(cell == NOTHING for row in cells for cell in row):
        return None
    by_chance = percent(min(1.0, k / max(1, images)))
    lines = [Line(layer.name, layer.file, (*row, by_chance)) for (layer, _), row in zip(found, cells, strict=True)]
    caption = (
        f"Per layer: the mean number of classes among the {k} images at either end of a component, over as many first "
        f"ones as there are neurons beside them; among the top {k} of any component, of a neuron of large variance, of "
        "one drawn at random (step single_neurons), and of a channel (by its maximum); and the share of these images "
        "that two components, two neurons of large variance, or two random sets of images have in common on average. "
        f"n = {counted(images, 'image')}."
    )
    return Table(f"Top images of step {step}", [], heads, lines, caption)


def _cells(layer: Layer, result: Result, k: int, studio: Studio) -> Iterator[str]:
    labels = studio.images.labels
    single = layer.first("single_neurons", "top_image")
    varied, drawn = (None, None) if single is None else (_some(single, random=False), _some(single, random=True))
    first = None if varied is None else varied.data.sizes["chosen"]
    both = [component_spans(result, k, studio, lowest=lowest) for lowest in (False, True)]
    ours = both[0]
    ends = [number(float(spans[:first].mean())) for spans in both if spans is not None]
    yield ", ".join(ends) if ends and first else NOTHING
    yield NOTHING if ours is None else number(float(ours.mean()))
    for top in (varied, drawn, layer.first("top_images", "top_image")):
        theirs = neuron_spans(top, k, labels) if top is not None and labels is not None else np.empty(0)
        yield number(float(theirs.mean())) if theirs.size else NOTHING
    yield percent(component_overlap(result, k, studio))
    images = None if varied is None else varied.data["top_image"].isel(rank=slice(k)).values
    yield NOTHING if images is None or len(images) < 2 else percent(common(images))


def _some(single: Result, *, random: bool) -> Result:
    """Return the result with the neurons that were drawn at random alone, or with those of large variance."""
    drawn = np.asarray(single.data["random"].values, dtype=bool)
    return replace(single, data=single.data[["top_image"]].isel(chosen=drawn == random))
