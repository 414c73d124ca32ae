"""Latent images: components that are pictures themselves."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dneuro.report.canvas import INK

MOST = 24
"""Components drawn, at most."""
_WIDE = 8


def pictures(parts: NDArray[np.float64]) -> Figure:
    """Draw components side by side, each scaled to its own maximum.

    Parameters
    ----------
    parts : ndarray (components, rows, columns, 1 or 3)
        Non-negative.
    """
    across = min(_WIDE, max(1, len(parts)))
    down = math.ceil(len(parts) / across)
    figure = Figure(figsize=(1.1 * across, 1.3 * down), dpi=200, layout="constrained", facecolor="white")
    for number, part in enumerate(parts):
        ax = figure.add_subplot(down, across, number + 1)
        top = float(part.max()) or 1.0
        shown = np.clip(part / top, 0, 1)
        grey = shown.shape[2] == 1
        ax.imshow(shown[:, :, 0] if grey else shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()
        ax.set_title(str(number + 1), color=INK, fontsize=8.5, pad=2)
    return figure
