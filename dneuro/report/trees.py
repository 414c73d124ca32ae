"""A tree of features above the heat map of their similarity, in the tree's order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dneuro.report.canvas import FAINT, INK, ORANGE, canvas, label, plain
from dneuro.report.heatmaps import Values, averaged, name_ticks

_MOST_BRANCHES = 4000  # more cannot be told apart; the lowest are left out


def clustered(
    values: Values, tree: NDArray[np.float64], sizes: Sequence[int], names: Sequence[str], metric: str, what: str
) -> Figure:
    """Draw a similarity matrix, features already in the tree's order, below the tree, with the clusters framed.

    Parameters
    ----------
    values : ndarray (features, features)
        The measure, NaN where it is not defined: such features stand last.
    tree : ndarray (mergers, 4)
        SciPy's linkage of those that are defined, its leaves numbered in the order shown.
    sizes : sequence of int
        Features of each cluster, in the order shown.
    names : sequence of str
        Names of the features, in that order.
    metric : str
        ``pearson`` or another measure.
    what : str
        What a feature is.
    """
    if not len(values):
        values, names = np.full((1, 1), np.nan, dtype=np.float32), [""]
    figure, ax = canvas(5.6, 5.9)
    figure.set_layout_engine("none")
    ax.set_position((0.13, 0.10, 0.66, 0.66 * 5.6 / 5.9))
    count = len(values)
    pearson = metric == "pearson"
    known = values[np.isfinite(values)]
    low, high = (-1.0, 1.0) if pearson else (0.0, float(known.max(initial=0)) or 1.0)
    colours = mpl.colormaps["RdBu_r" if pearson else "viridis_r"].with_extremes(bad="#9a9a9a")
    shown = ax.imshow(
        np.ma.masked_invalid(averaged(values)), cmap=colours, vmin=low, vmax=high, aspect="auto",
        interpolation="nearest", extent=(-0.5, count - 0.5, count - 0.5, -0.5),
    )  # fmt: skip
    ax.grid(visible=False)
    edges = np.concatenate([[0], np.cumsum(sizes)]) - 0.5
    boxes = [
        [(a, a), (b, a), (b, b), (a, b), (a, a)] for a, b in itertools.pairwise(edges) if b - a > 1
    ]
    ax.add_collection(LineCollection(boxes, colors=INK, linewidths=1.2))
    name_ticks(ax, names, names)
    label(ax, f"{what}, in the tree's order", what)
    above = figure.add_axes((0.13, 0.10 + 0.66 * 5.6 / 5.9 + 0.015, 0.66, 0.22))
    plain(above)
    above.grid(visible=False)
    branches, top = _branches(tree)
    above.add_collection(LineCollection(branches, colors=INK, linewidths=0.8))
    above.set_xlim(-0.5, count - 0.5)
    above.set_ylim(0, 1.03 * top or 1.0)
    above.set_xticks([])
    if len(tree) and 0 < len(sizes) <= len(tree):
        above.axhline(_height_of_cut(tree, len(sizes)), color=ORANGE, lw=1.2, ls="--")
    label(above, "", "1 − r" if pearson else "distance")
    above.spines["bottom"].set_color(FAINT)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.82, 0.10, 0.025, 0.66 * 5.6 / 5.9)))
    bar.set_label("Pearson correlation" if pearson else f"{metric.capitalize()} distance", color=INK, fontsize=9.5)
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=3)
    bar.outline.set_visible(False)
    return figure


def _branches(tree: NDArray[np.float64]) -> tuple[list[list[tuple[float, float]]], float]:
    """Return the brackets of a tree, and its height."""
    leaves = len(tree) + 1
    place, height = np.arange(2.0 * leaves), np.zeros(2 * leaves)
    found = []
    for number, (left, right, distance, _) in enumerate(tree):
        a, b, node = int(left), int(right), leaves + number
        place[node], height[node] = (place[a] + place[b]) / 2, distance
        found.append([(place[a], height[a]), (place[a], distance), (place[b], distance), (place[b], height[b])])
    return found[-_MOST_BRANCHES:], float(height.max(initial=0))


def _height_of_cut(tree: NDArray[np.float64], clusters: int) -> float:
    """Return a height between the last merger within a cluster and the first between two."""
    heights = np.concatenate([[0.0], tree[:, 2], [tree[-1, 2] * 1.02]])
    joined = len(tree) + 1 - clusters
    return float((heights[joined] + heights[joined + 1]) / 2)
