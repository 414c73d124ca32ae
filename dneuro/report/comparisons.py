"""Figures that set a distribution beside another: what was found, and what there would be without it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dneuro.report.canvas import BLUE, GREEN, INK, ORANGE, PINK, canvas, label, legend
from dneuro.report.figures import Numbers, is_wide

_MOST_BINS = 40
_COLOURS = (BLUE, ORANGE, GREEN, PINK)


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
    legend(ax)
    return figure


def density(
    values: Numbers, x: str, what: str, *, chance: tuple[float, float] | None = None,
    line: tuple[float, str] | None = None, sides: tuple[str, str] | None = None, most: float = np.inf,
) -> Figure:  # fmt: skip
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
    line : (float, str), optional
        A line across, and what it is.
    sides : (str, str), optional
        What lies below this line and what above it, told apart by colour.
    most : float
        No value can be larger, so the normal ends there.
    """
    figure, ax = canvas(5.6, 3.3)
    values = values[np.isfinite(values)]
    if values.size:
        bins: int | list[float] = int(np.clip(np.sqrt(values.size) * 1.6, 5, _MOST_BINS))
        if line is not None and sides is not None:
            bins = np.unique([*np.histogram_bin_edges(values, bins=bins), line[0]]).tolist()
        height, edges = np.histogram(values, bins=bins, density=True)
        above = edges[:-1] >= line[0] if line is not None and sides is not None else np.zeros(len(height), dtype=bool)
        named = zip((~above, above), (BLUE, GREEN), sides or (what, None), strict=True)
        for part, colour, name in named:
            ax.bar(edges[:-1][part], height[part], np.diff(edges)[part], align="edge", color=colour, edgecolor="white",
                   lw=0.5, label=name)  # fmt: skip
        mean, spread = float(values.mean()), float(values.std())
        if spread > 0:
            along = np.linspace(max(0.0, mean - 3.5 * spread), min(most, mean + 3.5 * spread), 200)
            ax.plot(along, bell(along, mean, spread), color=INK, lw=1.4, label="fitted normal")
        ax.axvline(mean, color=INK, lw=1.0, ls=":", label="mean")
    if line is not None and np.isfinite(line[0]):
        ax.axvline(line[0], color=INK, lw=1.4, ls="-.", label=line[1])
    if chance is not None and np.isfinite(chance).all():
        ax.axvspan(chance[0] - chance[1], chance[0] + chance[1], color=ORANGE, alpha=0.25, lw=0)
        ax.axvline(chance[0], color=ORANGE, lw=1.4, ls="--", label="by chance, ± 1 σ")
    label(ax, x, "density")
    legend(ax, columns=3 if sides else 4)
    return figure


def bell(along: Numbers, mean: float, spread: float) -> Numbers:
    """Return the density of a normal along an axis."""
    return np.asarray(np.exp(-0.5 * ((along - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi)))


def _bins(ax: Axes, values: Numbers, longest: int) -> Numbers:
    count = int(np.clip(np.sqrt(longest) * 1.6, 8, _MOST_BINS))
    positive = values[values > 0]
    if is_wide(values):
        ax.set_xscale("log")
        return np.geomspace(positive.min(), positive.max(), count + 1)
    return np.asarray(np.histogram_bin_edges(values, bins=count))
