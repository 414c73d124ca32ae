"""Heat maps: neuron × class and neuron × neuron, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dneuro.report.canvas import INK, MISSING, canvas, label

MOST_NAMED = 36
"""Rows of a heat map that have room for names of their own."""
_MOST_CELLS = 1200  # along a side, so that each is about a pixel of the file

Values = NDArray[np.float32]


def cooccurrence(
    counts: Values, rows: Sequence[str] | None, classes: Sequence[str], what: str, *, counted: str = "top images"
) -> Figure:
    """Draw the neuron × class map of counts.

    Parameters
    ----------
    counts : ndarray (neurons, classes)
        Top images of each class, neurons already in the order shown.
    rows : sequence of str, optional
        Names of the neurons in that order; none counts them.
    classes : sequence of str
        Names of the classes.
    what : str
        What a row is: ``channel`` or ``neuron``.
    counted : str
        What the counts count.
    """
    height = float(np.clip(0.16 * len(counts) + 1.4, 3.0, 6.4))
    width = float(np.clip(0.3 * len(classes) + 3.0, 5.6, 9.6))
    figure, ax = canvas(width, height)
    _heat(figure, ax, counts, "GnBu", counted, counts=True)
    name_ticks(ax, rows, classes)
    label(ax, "class", f"{what}, ordered by dominating class")
    return figure


def shares(values: Values, what: str) -> Figure:
    """Draw how much of each component lies in each channel or neuron.

    Parameters
    ----------
    values : ndarray (components, features)
        Shares of 1.
    what : str
        What a feature is.
    """
    figure, ax = canvas(8.4, float(np.clip(0.2 * len(values) + 1.2, 2.2, 6.4)))
    _heat(figure, ax, values, "GnBu", "share")
    name_ticks(ax, [str(number + 1) for number in range(len(values))], [str(i) for i in range(values.shape[1])])
    label(ax, what, "component")
    return figure


def similarity(values: Values, names: Sequence[str], metric: str, what: str) -> Figure:
    """Draw the similarity of every two features: distances from 0, others about 0, from −1 to 1 if bounded; NaN grey.

    Parameters
    ----------
    values : ndarray (features, features)
        The measure, NaN where it is not defined.
    names : sequence of str
        Names of the features.
    metric : str
        ``pearson``, ``euclidean``, ``cosine`` or ``covariance``.
    what : str
        What a feature is.
    """
    figure, ax = canvas(5.6, 4.7)
    figure.set_layout_engine("compressed")  # constrained layout cuts labels off where the aspect is fixed
    if metric == "euclidean":
        _heat(figure, ax, values, "viridis_r", "Euclidean distance", square=True)
    else:
        largest = 1.0 if metric in ("pearson", "cosine") else _largest_off_diagonal(values)
        name = {"pearson": "Pearson correlation"}.get(metric, metric)
        _heat(figure, ax, values, "RdBu_r", name, limits=(-largest, largest), square=True)
    name_ticks(ax, names, names)
    label(ax, what, what)
    return figure


def _largest_off_diagonal(values: Values) -> float:
    """Return the largest size off the diagonal, whose own values, variances, would leave the others pale."""
    sizes = np.where(np.isfinite(values), np.abs(values), 0)
    np.fill_diagonal(sizes, 0)
    return float(sizes.max(initial=0)) or 1.0


def block(count: int) -> int:
    """Return how many neighbouring rows (or columns) of `count` one cell of a heat map averages."""
    return -(-count // _MOST_CELLS) or 1


def _heat(
    figure: Figure, ax: Axes, values: Values, colours: str, name: str,
    *, limits: tuple[float, float] | None = None, square: bool = False, counts: bool = False,
) -> None:  # fmt: skip
    if not values.size:
        values = np.full((1, 1), np.nan, dtype=np.float32)
    rows, columns = values.shape
    cells = np.ma.masked_invalid(averaged(values))
    low, high = limits if limits is not None else (0.0, float(cells.max()) if cells.count() else 1.0)
    shown = ax.imshow(
        cells, cmap=mpl.colormaps[colours].with_extremes(bad=MISSING), vmin=low, vmax=high or 1.0,
        aspect="equal" if square else "auto", interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip
    ax.grid(visible=False)
    bar = figure.colorbar(shown, ax=ax, fraction=0.05, aspect=20 if square else 40, pad=0.02)
    if counts:
        bar.locator = MaxNLocator(integer=True)
    bar.set_label(name, color=INK, fontsize=9.5)
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=3)
    bar.outline.set_visible(False)


def averaged(values: Values) -> Values:
    """Return the means of blocks so large that no side has more cells than can be seen, NaN left out."""
    starts = [np.arange(0, length, block(length)) for length in values.shape]
    if all(len(s) == length for s, length in zip(starts, values.shape, strict=True)):
        return values
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0), known.astype(np.int32)
    for axis, first in enumerate(starts):
        sums, counts = np.add.reduceat(sums, first, axis=axis), np.add.reduceat(counts, first, axis=axis)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def name_ticks(ax: Axes, rows: Sequence[str] | None, columns: Sequence[str]) -> None:
    """Name every row and column where there is room, else some of them; rows None: by position."""
    wide = max((len(name) for name in columns), default=0) > 3
    for axis, names, rotation in ((ax.yaxis, rows, 0), (ax.xaxis, columns, 90 if wide else 0)):
        if names is None:
            axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            continue
        step = _round_step(len(names), MOST_NAMED if rotation or axis is ax.yaxis else MOST_NAMED // 2)
        ticks = list(range(0, len(names), step))
        axis.set_ticks(ticks, labels=[_brief(names[tick]) for tick in ticks], fontsize=7.5, rotation=rotation)


def _round_step(count: int, most: int) -> int:
    """Return the least of 1, 2, 5, 10, 20, … that leaves at most `most` of `count`."""
    steps = (digit * 10**power for power in range(18) for digit in (1, 2, 5))
    return next(int(step) for step in steps if count <= most * step)


def _brief(name: str) -> str:
    """Shorten a name that may contain anything, and put a square for what the font cannot draw."""
    drawable = _drawable()
    name = "".join(letter if ord(letter) in drawable else "□" for letter in " ".join(name.split()))
    # A dollar sign would start mathematics.
    return (name if len(name) <= 22 else name[:21] + "…").replace("$", r"\$")


@cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def shared(values: Values, names: Sequence[str], name: str, what: str) -> Figure:
    """Draw shares between every two features, from 0 to the largest; NaN grey."""
    figure, ax = canvas(5.6, 4.7)
    figure.set_layout_engine("compressed")
    _heat(figure, ax, values, "GnBu", name, square=True)
    name_ticks(ax, names, names)
    label(ax, what, what)
    return figure


def plane(values: Values, down: NDArray[np.integer], along: NDArray[np.integer], name: str, what: str) -> Figure:
    """Draw a number for every offset (y, x), the middle being none; NaN grey."""
    figure, ax = canvas(5.6, 4.7)
    figure.set_layout_engine("compressed")
    _heat(figure, ax, values, "GnBu", name, square=True)
    name_ticks(ax, [str(int(offset)) for offset in down], [str(int(offset)) for offset in along])
    label(ax, f"{what} x", f"{what} y")
    return figure


def signed(values: Values, name: str, x: str, y: str) -> Figure:
    """Draw a matrix of numbers of either sign about 0; the one per cent that is largest saturates."""
    figure, ax = canvas(8.4, 4.9)
    sizes = np.abs(values[np.isfinite(values)])
    most = float(np.quantile(sizes, 0.99)) if sizes.size else 1.0
    _heat(figure, ax, values, "RdBu_r", name, limits=(-(most or 1.0), most or 1.0))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    label(ax, x, y)
    return figure
