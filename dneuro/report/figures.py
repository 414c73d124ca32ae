"""Curves and histograms of the report."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dneuro.report.canvas import BLUE, INK, ORANGE, canvas, count_along, label, plain, plain_log

_MOST_POINTS = 2000  # of a curve; more cannot be told apart in a figure this wide
_WIDE_RANGE = 200.0  # largest ÷ median beyond which an axis is logarithmic

Numbers = NDArray[np.float64]


def histogram(values: Numbers, x: str, y: str) -> Figure:
    """Draw how values are spread; the axis is logarithmic where they are spread widely.

    Parameters
    ----------
    values : ndarray (values,)
        The values; those that are not finite are left out, on a logarithmic axis zeros too.
    x, y : str
        What is counted along, and what is counted.
    """
    figure, ax = canvas(5.6, 3.1)
    values = values[np.isfinite(values)]
    bins: int | list[float] = int(np.clip(np.sqrt(values.size) * 1.6, 5, 40))
    if is_wide(values):
        values = values[values > 0]
        bins = np.geomspace(values.min(), values.max(), 31).tolist()
        ax.set_xscale("log")
    ax.hist(values, bins=bins, color=BLUE, edgecolor="white", lw=0.5)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    label(ax, x, y)
    return figure


def ranked(values: Numbers, x: str, y: str) -> Figure:
    """Draw values from the largest to the smallest, on the axis that `histogram` takes."""
    figure, ax = canvas(5.6, 3.1)
    finite = np.sort(values[np.isfinite(values)])[::-1]
    ranks = _thin(finite.size)
    ax.plot(ranks + 1, finite[ranks], color=BLUE, lw=1.6, marker="o" if finite.size <= 60 else None, ms=3.5)
    count_along(ax, finite.size)
    if is_wide(finite):
        ax.set_yscale("log", nonpositive="mask")
    elif finite.size:
        ax.set_ylim(bottom=0)
    label(ax, x, y)
    return figure


def spectrum(singular: Numbers, explained: Numbers | None) -> Figure:
    """Draw singular values by component, and what they explain together on a second axis.

    Parameters
    ----------
    singular : ndarray (components,)
        Singular values, descending.
    explained : ndarray (components,), optional
        Share of the total variance that each explains.
    """
    figure, ax = canvas(5.6, 3.3)
    components = np.arange(1, singular.size + 1)
    ax.plot(components, singular, color=BLUE, lw=1.6, marker="o" if singular.size <= 60 else None, ms=4)
    ax.set_ylim(bottom=0)
    count_along(ax, singular.size)
    label(ax, "component", "singular value σ")
    ax.yaxis.label.set_color(BLUE)
    if explained is not None:
        other = ax.twinx()
        other.plot(components, np.cumsum(np.nan_to_num(explained)), color=ORANGE, lw=1.6, ls="--")
        plain(other)
        other.grid(visible=False)
        other.spines["right"].set_visible(True)
        other.set_ylim(0, 1)
        other.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        other.set_ylabel("explained variance, cumulative", color=ORANGE, fontsize=9.5)
    return figure


def spectra(curves: Mapping[str, Numbers], y: str, limit: float | None = None, said: str = "") -> Figure:
    """Draw the singular values of several layers over each other, on a logarithmic axis.

    Parameters
    ----------
    curves : mapping of str to ndarray (components,)
        Of each layer, the earliest first: the later, the lighter.
    y : str
        What they are.
    limit : float, optional
        A line across, with what it is (`said`).
    """
    figure, ax = canvas(5.6, 3.8)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.88, max(1, len(curves))))
    for shade, (name, values) in zip(shades, curves.items(), strict=True):
        ax.plot(np.arange(1, values.size + 1), values, color=shade, lw=1.5, label=name.replace("$", r"\$"))
    if limit is not None:
        ax.axhline(limit, color=INK, lw=1.0, ls="--", label=said)
    ax.set_yscale("log", nonpositive="mask")
    plain_log(ax.yaxis, *ax.get_ylim())
    count_along(ax, max((values.size for values in curves.values()), default=1))
    label(ax, "component", y)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def convergence(errors: Numbers) -> Figure:
    """Draw the relative error after each iteration.

    Parameters
    ----------
    errors : ndarray (iterations,)
        ‖X − FOᵀ‖ / ‖X‖.
    """
    figure, ax = canvas(5.6, 2.8)
    shown = _thin(errors.size)
    ax.plot(shown + 1, errors[shown], color=BLUE, lw=1.6, marker="o" if errors.size <= 40 else None, ms=3.5)
    count_along(ax, errors.size)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    label(ax, "iteration", "error, share of ‖X‖")
    return figure


def spans(
    components: Numbers, channels: Numbers | None, classes: int, k: int, what: str = "component"
) -> Figure:
    """Draw how many classes the top images of each component span, against those of single neurons.

    Parameters
    ----------
    components : ndarray (components,)
        Number of classes for each component.
    channels : ndarray (features,), optional
        Number of classes for each neuron.
    classes : int
        Classes there are.
    k : int
        Top images counted.
    what : str
        What has the number of classes.
    """
    figure, ax = canvas(5.6, 3.3)
    if channels is not None and channels.size:
        low, middle, high = np.percentile(channels, (10, 50, 90))
        ax.axhspan(low, high, color=ORANGE, alpha=0.15, lw=0, label="single neurons, 10 to 90 %")
        ax.axhline(middle, color=ORANGE, lw=1.4, ls="--", label="single neurons, median")
    positions = np.arange(1, components.size + 1)
    ax.plot(positions, components, color=BLUE, marker="o", ms=5, ls="none", label=f"{what}s")
    ax.set_ylim(0, min(classes, k) * 1.08 + 0.2)
    count_along(ax, components.size)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    label(ax, what, f"classes among top {k}")
    if channels is not None and channels.size:
        ax.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, columnspacing=1.2)
    return figure


def is_wide(finite: Numbers) -> bool:
    """Return whether positive values spread so far that their axis is drawn logarithmic."""
    positive = finite[finite > 0]
    return bool(positive.size > 3 and positive.max() > _WIDE_RANGE * np.median(positive))


def _thin(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(0, count - 1), min(count, _MOST_POINTS)).astype(np.int64))
