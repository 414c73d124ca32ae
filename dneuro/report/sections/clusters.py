"""Clusters of neurons, or of images: the tree above the heat map in its order, and members of the largest clusters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dneuro.report import heatmaps, trees
from dneuro.report.blocks import Block, Plate, Row, Studio, Tile, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections import kmeans
from dneuro.report.sections.picking import names
from dneuro.report.words import counted, listed, number, quoted

_MOST = 4096  # neurons of a map; of more every m-th is shown, without the tree


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``clusters`` result."""
    size = np.asarray(result.data["size"].values)
    rows = [_row(group, result, layer, studio) for group in range(min(studio.neurons, int((size > 1).sum())))]
    caption = None
    if rows:
        caption = f"The {counted(len(rows), 'largest cluster')} with more than one member, the most central first"
        caption += "." if _of_images(result) else "; each picture is the top image of the member named below it."
    plates = [_plate(result, layer, studio)]
    if "class_count" in result.data:
        plates.append(kmeans.by_class(result, layer, studio))
    return Block(heading(result), plates=plates, rows=rows, caption=caption, facts=facts(result))


def _of_images(result: Result) -> bool:
    return "leaf_image" in result.data


def _metric(result: Result) -> str:
    return next(metric for metric in ("pearson", "euclidean") if metric in result.data)


def _plate(result: Result, layer: Layer, studio: Studio) -> Plate:
    data, metric = result.data, _metric(result)
    array = data[metric]
    cluster, order = (np.asarray(data[name].values) for name in ("cluster", "order"))
    shown = np.argsort(order)
    what = str(array.dims[0])
    step = -(-len(shown) // _MOST)
    tree = np.asarray(data["linkage"].values)
    if step > 1:
        shown, tree = shown[::step], np.empty((0, 4))
    values = np.asarray(array.values, dtype=np.float32)[np.ix_(shown, shown)]
    called = names(array, (what,))
    leaf = np.asarray(data["leaf_image" if _of_images(result) else "leaf_neuron"].values)
    figure = trees.clustered(
        values, _in_order(tree, leaf, order), _runs(cluster[shown]),
        [called[place] for place in shown], metric, what,
    )  # fmt: skip
    size = np.asarray(data["size"].values)
    single, without = int((size == 1).sum()), int((cluster < 0).sum())
    caption = (
        f"{counted(len(cluster), what).capitalize()} of {layer.name} in {counted(len(size), 'cluster')}, framed; "
        "above, the tree, cut at the dashed line."
    )
    if size.size:
        caption += f" The largest has {counted(int(size[0]), 'member')}, {single:,} have one."
    if without:
        why = "it does not vary" if without == 1 else "they do not vary"
        if _of_images(result):
            why += ", or took no part"
        caption += f" Grey: {counted(without, what)} in no cluster, for {why}."
    if step > 1:
        caption += f" One {what} in {step} is shown, without the tree."
    if heatmaps.block(len(values)) > 1:
        caption += f" A cell of the map is the mean of {heatmaps.block(len(values))} × {heatmaps.block(len(values))}."
    alt = f"Tree and heat map of {counted(len(cluster), what)}, {metric}"
    return studio.plate(figure, result, "clusters", alt, caption + quoted(result.parameters))


def _in_order(tree: NDArray[np.float64], leaf: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a tree whose leaves are numbered by their place in the order shown."""
    tree = tree.copy()
    children = tree[:, :2].astype(np.int64)
    own = children < len(leaf)
    tree[:, :2] = np.where(own, order[leaf[np.minimum(children, len(leaf) - 1)]] if len(leaf) else 0, children)
    return tree


def _runs(cluster: NDArray[np.int64]) -> list[int]:
    """Return the lengths of the runs of one cluster; the tree's order keeps its members together."""
    known = cluster[cluster >= 0]
    ends = np.flatnonzero(np.diff(known, append=-1))
    return [int(length) for length in np.diff(ends, prepend=-1)] if len(known) else []


def _row(group: int, result: Result, layer: Layer, studio: Studio) -> Row:
    data = result.data
    called = names(data[_metric(result)], (str(data[_metric(result)].dims[0]),))
    members = [int(member) for member in data["member"].values[group] if member >= 0]
    if _of_images(result):
        return _row_of_images(group, members, result, studio)
    size, spread = int(data["size"].values[group]), float(data["spread"].values[group])
    note = f"{counted(size, 'member')}, mean distance {number(spread)}: {listed([called[m] for m in members], 8)}"
    top = layer.first("top_images", "top_image")
    tiles: list[Tile] = []
    if top is not None:
        images = top.data["top_image"].values
        images = images.reshape(-1, images.shape[-1])
        if len(images) == data.sizes[str(data[_metric(result)].dims[0])]:
            tiles = [
                replace(studio.tile(int(images[member, 0]), None), value=called[member])
                for member in members[: studio.shown]
            ]
    return Row(f"Cluster {group}", note, tiles, [], end="Members")


def _row_of_images(group: int, members: list[int], result: Result, studio: Studio) -> Row:
    """Return the most central images of a cluster, and the class that most of it belongs to."""
    data = result.data
    spread = float(data["spread"].values[group])
    note = [counted(int(data["size"].values[group]), "image"), f"mean distance {number(spread)}"]
    if "class_count" in data:
        note += kmeans.largest_class(data["class_count"].values[group], studio)
    tiles = [studio.tile(image, None) for image in members[: studio.shown]]
    return Row(f"Cluster {group}", ", ".join(note), tiles, [], end="Members")
