"""Clusters of images: the images nearest to each centre, and the classes they belong to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.report import heatmaps
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.cooccurrence import by_dominating_class
from dneuro.report.words import counted, number, percent, quoted


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``kmeans`` result."""
    size = np.asarray(result.data["size"].values)
    plates = [by_class(result, layer, studio)] if "class_count" in result.data else []
    rows = [_row(group, result, studio) for group in range(min(studio.neurons, int((size > 0).sum())))]
    attrs = result.data.attrs
    caption = (
        f"The images nearest to the centre of {counted(len(rows), 'cluster')} of {size.size:,}, largest first; "
        f"n = {counted(int(size.sum()), 'image')}."
    )
    if "inertia" in attrs:
        caption += f" Inertia (sum of the squared distances) {number(float(attrs['inertia']))}"
        caption += f" after {counted(int(attrs.get('iterations', 0)), 'iteration')}"
        caption += "." if attrs.get("converged", True) else ", not converged."
    return Block(heading(result), plates=plates, rows=rows, caption=caption + quoted(result.parameters),
                 facts=facts(result))  # fmt: skip


def by_class(result: Result, layer: Layer, studio: Studio) -> Plate:
    """Return the heat map of how many images of each class lie in each cluster."""
    counts = np.asarray(result.data["class_count"].values, dtype=np.float32)
    present = np.flatnonzero(counts.sum(axis=0))
    counts, classes = counts[:, present], [studio.images.class_name(int(label)) for label in present]
    order = by_dominating_class(counts)
    called = [str(group) for group in order] if len(counts) <= heatmaps.MOST_NAMED else None
    known = float(counts.sum())
    caption = (
        f"How many images of each of {counted(len(classes), 'class', 'classes')} lie in each of "
        f"{counted(len(counts), 'cluster')} of {layer.name}; rows are ordered by the class with the highest count."
    )
    if known:
        purity = float(counts.max(axis=1).sum()) / known
        caption += f" Purity (images in their cluster's largest class): {percent(purity)}."
    alt = f"Heat map of counts, {counted(len(counts), 'cluster')} by {counted(len(classes), 'class', 'classes')}"
    figure = heatmaps.cooccurrence(counts[order], called, classes, "cluster", counted="images")
    return studio.plate(figure, result, "classes", alt, caption + quoted(result.parameters))


def _row(group: int, result: Result, studio: Studio) -> Row:
    data = result.data
    size = int(data["size"].values[group])
    note = [counted(size, "image")]
    if "class_count" in data:
        note += largest_class(data["class_count"].values[group], studio)
    numbers = data["image"].values if "image" in data.coords else np.arange(data.sizes["image"])
    distance = dict(zip(numbers.tolist(), np.asarray(data["distance"].values).tolist(), strict=True))
    members = [int(image) for image in data["member"].values[group] if image >= 0][: studio.shown]
    tiles = [studio.tile(image, distance.get(image)) for image in members]
    return Row(f"Cluster {group}", ", ".join(note), tiles, [], end="Nearest")


def largest_class(counts: NDArray[np.int64], studio: Studio) -> list[str]:
    """Return the share and name of the class that most images of a cluster belong to, if any is known."""
    if not counts.sum():
        return []
    most = int(counts.argmax())
    return [f"{percent(float(counts[most] / counts.sum()))} {studio.images.class_name(most)}"]
