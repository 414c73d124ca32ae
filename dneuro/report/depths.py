"""Figures over depth: one place along the axis for each layer, from the first to the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from dneuro.report.canvas import BLUE, GREEN, INK, ORANGE, PINK, canvas, label, legend, short
from dneuro.report.figures import Numbers

_COLOURS = (BLUE, GREEN, PINK, ORANGE)
_PALE = 0.4
_FAR = 1.6
BY_CHANCE = "by chance, ± 1 σ"


@dataclass(frozen=True)
class Curve:
    """Averages (layers,), NaN where a layer has none, and how far the values lie from them, (layers,), if told."""

    mean: Numbers
    spread: Numbers | None = None


def curves(
    layers: Sequence[str], found: Mapping[str, Curve], y: str, *, chance: Curve | None = None,
    lines: Mapping[str, Numbers] | None = None, from_zero: bool = True,
) -> Figure:  # fmt: skip
    """Draw averages over the layers, shaded as far as one standard deviation.

    Parameters
    ----------
    layers : sequence of str
        Names of the layers, in order.
    found : mapping of str to Curve
        What is averaged, by name.
    y : str
        What the axis says.
    chance : Curve, optional
        What chance gives; not drawn where it is so far off that the rest could not be told apart.
    lines : mapping of str to ndarray (layers,), optional
        Limits to compare with, by name.
    from_zero : bool
        The axis begins at 0.
    """
    figure, ax = canvas(5.6, 3.5)
    places = np.arange(len(layers))
    if chance is not None and not is_far(chance.mean, [curve.mean for curve in found.values()]):
        _shade(ax, places, chance, ORANGE)
        ax.plot(places, chance.mean, color=ORANGE, lw=1.4, ls="--", label=BY_CHANCE)
    for colour, (name, curve) in zip(_COLOURS, found.items(), strict=False):
        _shade(ax, places, curve, colour)
        ax.plot(places, curve.mean, color=colour, lw=1.8, marker="o", ms=5, label=name)
    for style, (name, values) in zip(("-.", ":"), (lines or {}).items(), strict=False):
        ax.plot(places, values, color=INK, lw=1.2, ls=style, label=name)
    _name_layers(ax, layers)
    if from_zero:
        ax.set_ylim(bottom=0)
    label(ax, "", y)
    legend(ax)
    return figure


def is_far(values: Numbers, others: Sequence[Numbers]) -> bool:
    """Return whether values lie so far above all others that an axis with both would show little of these."""
    largest = max((float(np.max(known)) for other in others if (known := other[np.isfinite(other)]).size), default=0.0)
    finite = values[np.isfinite(values)]
    return not finite.size or float(finite.min()) > _FAR * largest


def fractions(layers: Sequence[str], parts: Sequence[tuple[str, Numbers, Numbers]], y: str, sure: str) -> Figure:
    """Draw which part of each layer lies on either side, and which part of it for certain.

    Parameters
    ----------
    layers : sequence of str
        Names of the layers, in order.
    parts : two of (str, ndarray (layers,), ndarray (layers,))
        Name of a side, its share of 1, and the share that is certain; the first from below, the second from above.
    y : str
        What is divided.
    sure : str
        What makes it certain.
    """
    figure, ax = canvas(5.6, 3.5)
    places = np.arange(len(layers))
    for colour, (name, share, certain), above in zip((GREEN, BLUE), parts, (False, True), strict=True):
        for height, alpha, what in ((share, _PALE, name), (certain, 1.0, f"… {sure}")):
            bottom = 1 - height if above else np.zeros(len(layers))
            ax.bar(places, height, 0.78, bottom=bottom, color=colour, alpha=alpha, lw=0, label=what)
    _name_layers(ax, layers)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label(ax, "", y)
    legend(ax)
    return figure


def _shade(ax: Axes, places: NDArray[np.int64], curve: Curve, colour: str) -> None:
    if curve.spread is not None:
        ax.fill_between(places, curve.mean - curve.spread, curve.mean + curve.spread, color=colour, alpha=0.16, lw=0)


def _name_layers(ax: Axes, layers: Sequence[str]) -> None:
    ax.set_xticks(np.arange(len(layers)), [short(name) for name in layers], rotation=30, ha="right", fontsize=7.5)
    ax.set_xlim(-0.6, len(layers) - 0.4)
