"""Densities of several layers, one above the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from dneuro.report.canvas import BLUE, FAINT, INK, ORANGE, canvas, label, legend, short
from dneuro.report.comparisons import bell
from dneuro.report.depths import BY_CHANCE, is_far
from dneuro.report.figures import Numbers

_POINTS = 512
"""Along the axis."""
_REACH = 3.0
"""Bandwidths that a density goes beyond its outermost values."""
_OVERLAP = 1.35
"""Height of a ridge in distances between two of them."""


@dataclass(frozen=True)
class Fit:
    """The normal fitted to a sample."""

    mean: float
    spread: float


def ridges(
    samples: Mapping[str, Numbers], fits: Mapping[str, Fit], x: str, *, chance: Fit | None = None,
    line: tuple[float, str] | None = None, most: float = np.inf,
) -> Figure:  # fmt: skip
    """Draw the density of each of several samples above the next, with the normal fitted to it, all equally high.

    Parameters
    ----------
    samples : mapping of str to ndarray (values,)
        By layer, the first on top; what is not finite is left out.
    fits : mapping of str to Fit
        By layer.
    x : str
        What is counted along.
    chance : Fit, optional
        What chance gives; not drawn where it is far off.
    line : (float, str), optional
        A line down through all of them, and what it is.
    most : float
        No value can be larger, and nothing is drawn there; nor below 0 where no value is negative.
    """
    figure, ax = canvas(5.6, float(np.clip(0.42 * len(samples) + 1.2, 2.6, 9.0)))
    finite = {name: values[np.isfinite(values)] for name, values in samples.items()}
    called = {"density": "density", "normal": "fitted normal"}  # of the first alone, in the legend
    if chance is not None and not is_far(np.array([chance.mean]), list(finite.values())):
        ax.axvspan(chance.mean - chance.spread, chance.mean + chance.spread, color=ORANGE, alpha=0.25, lw=0)
        ax.axvline(chance.mean, color=ORANGE, lw=1.4, ls="--", label=BY_CHANCE)
    if line is not None:
        ax.axvline(line[0], color=INK, lw=1.2, ls="-.", label=line[1], zorder=20 + len(finite))
    ceiling = len(finite) - 1 + _OVERLAP
    for place, (name, values) in enumerate(finite.items()):
        base, order = len(finite) - 1 - place, 10 + place  # a ridge lies over the one above it
        along, height = kernel_density(values)
        if not along.size:
            ax.plot(values[:1], [base][: len(values)], marker="|", ms=12, color=BLUE, zorder=order)
            continue
        can_be = (along >= 0 if values.min() >= 0 else np.full(along.shape, True)) & (along <= most)
        along, height = along[can_be], height[can_be]
        top = base + _OVERLAP * height / height.max()
        ax.fill_between(along, base, top, color="white", lw=0, zorder=order)
        ax.fill_between(along, base, top, color=BLUE, alpha=0.55, lw=0, zorder=order, label=called.pop("density", None))
        ax.plot(along, top, color=BLUE, lw=1.0, zorder=order)
        fit = fits[name]
        if fit.spread > 0:
            normal = base + _OVERLAP * bell(along, fit.mean, fit.spread) / height.max()
            ceiling = max(ceiling, float(normal.max()))
            ax.plot(along, normal, color=INK, lw=1.0, zorder=order, label=called.pop("normal", None))
    ax.set_yticks(np.arange(len(finite))[::-1], [short(name) for name in finite])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.15, ceiling + 0.15)
    ax.grid(visible=True, axis="x", color=FAINT, lw=0.7)
    ax.spines["left"].set_visible(False)
    label(ax, x, "")
    legend(ax)
    return figure


def kernel_density(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return where, and what, the density of a sample is, by Gaussian kernels of Scott's width.

    Parameters
    ----------
    values : ndarray (values,)
        Finite.

    Returns
    -------
    along, density : ndarray (512,)
        Both empty of fewer than two values, or of values that are all the same.

    Notes
    -----
    As `scipy.stats.gaussian_kde`, on a grid: values are dealt to its points first, so that the work does not grow with
    their number. **References**: Scott, "Multivariate Density Estimation" (1992).
    """
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    if not spread > 0:
        return np.empty(0), np.empty(0)
    width = spread * values.size ** (-1 / 5)
    low, high = float(values.min()) - _REACH * width, float(values.max()) + _REACH * width
    edges = np.linspace(low, high, _POINTS + 1)
    along, step = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    counts, _ = np.histogram(values, bins=edges)
    offsets = step * np.arange(-_POINTS + 1, _POINTS)
    return along, np.convolve(counts, bell(offsets, 0.0, width), mode="valid") / values.size
