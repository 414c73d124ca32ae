"""Figures that set a distribution beside another: what was found, and what there would be without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dneuro.report.canvas import BLUE, INK, ORANGE, canvas, label
from dneuro.report.figures import Numbers, is_wide

_MOST_BINS = 40
_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7")


def shares(values: Mapping[str, Numbers], x: str, limit: float | None = None, said: str = "") -> Figure:
    """Draw how each of several samples is spread, in shares of the sample, over the same bins.

    Parameters
    ----------
    values : mapping of str to ndarray (values,)
        The samples by name, the first one in front; what is not finite is left out.
    x : str
        What is counted along.
    limit : float, optional
        A line across, with what it is (`said`).
    """
    figure, ax = canvas(5.6, 3.3)
    samples = {name: array[np.isfinite(array)] for name, array in values.items()}
    together = np.concatenate(list(samples.values()))
    if together.size:
        bins = _bins(ax, together, max(len(sample) for sample in samples.values())).tolist()
        for colour, (name, sample) in zip(_COLOURS, samples.items(), strict=False):
            weights = np.full(len(sample), 1 / max(1, len(sample)))
            ax.hist(sample, bins=bins, weights=weights, color=colour, alpha=0.55, edgecolor="white", lw=0.4, label=name)
    if limit is not None and np.isfinite(limit):
        ax.axvline(limit, color=INK, lw=1.2, ls="--", label=said)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label(ax, x, "share")
    _legend(ax)
    return figure


def density(values: Numbers, x: str, what: str, chance: tuple[float, float] | None = None) -> Figure:
    """Draw how values that are not negative are spread, with the normal fitted to them, beside what chance gives.

    Parameters
    ----------
    values : ndarray (values,)
        The values; those that are not finite are left out.
    x : str
        What is counted along.
    what : str
        What has the values: ``channels`` or ``neurons``.
    chance : (float, float), optional
        Mean and standard deviation of the values that chance gives.
    """
    figure, ax = canvas(5.6, 3.3)
    values = values[np.isfinite(values)]
    if values.size:
        ax.hist(values, bins=int(np.clip(np.sqrt(values.size) * 1.6, 5, _MOST_BINS)), density=True, color=BLUE,
                edgecolor="white", lw=0.5, label=what)  # fmt: skip
        mean, spread = float(values.mean()), float(values.std())
        if spread > 0:
            along = np.linspace(max(0.0, mean - 3.5 * spread), mean + 3.5 * spread, 200)
            bell = np.exp(-0.5 * ((along - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
            ax.plot(along, bell, color=INK, lw=1.4, label="fitted normal")
        ax.axvline(mean, color=INK, lw=1.0, ls=":", label="mean")
    if chance is not None and np.isfinite(chance).all():
        ax.axvspan(chance[0] - chance[1], chance[0] + chance[1], color=ORANGE, alpha=0.25, lw=0)
        ax.axvline(chance[0], color=ORANGE, lw=1.4, ls="--", label="by chance, ± 1 σ")
    label(ax, x, "density")
    _legend(ax)
    return figure


def depths(layers: Sequence[str], curves: Mapping[str, Numbers]) -> Figure:
    """Draw averages over the layers, from the first to the last.

    Parameters
    ----------
    layers : sequence of str
        Names of the layers, in order.
    curves : mapping of str to ndarray (layers,)
        What is averaged; NaN where a layer has no value.
    """
    figure, ax = canvas(5.6, 3.3)
    for colour, (name, values) in zip(_COLOURS, curves.items(), strict=False):
        ax.plot(np.arange(len(layers)), values, color=colour, lw=1.6, marker="o", ms=5, label=name)
    ax.set_xticks(np.arange(len(layers)), [_short(name) for name in layers], rotation=30, ha="right", fontsize=7.5)
    ax.set_ylim(bottom=0)
    label(ax, "", "mean over the layer")
    _legend(ax)
    return figure


def _bins(ax: Axes, values: Numbers, longest: int) -> Numbers:
    count = int(np.clip(np.sqrt(longest) * 1.6, 8, _MOST_BINS))
    positive = values[values > 0]
    if is_wide(values):
        ax.set_xscale("log")
        return np.geomspace(positive.min(), positive.max(), count + 1)
    return np.asarray(np.histogram_bin_edges(values, bins=count))


def _legend(ax: Axes) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if handles:
        ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=4, columnspacing=1.2)


def _short(name: str) -> str:
    return (name if len(name) <= 22 else "…" + name[-21:]).replace("$", r"\$")
