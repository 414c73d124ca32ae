"""Patches of what a network sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.spec.network import Preprocessing

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels of the network's input, the last two exclusive; may reach outside."""


def cut(view: NDArray[np.uint8], box: Box, fill: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the part of a view that lies in a box.

    Parameters
    ----------
    view : ndarray of uint8
        (height, width, channel), as `preprocess.view` gives it.
    box : (int, int, int, int)
        Top, left, bottom, right, the last two exclusive.
    fill : ndarray of uint8
        (channel,): the colour of what lies outside the view.

    Returns
    -------
    ndarray of uint8
        (bottom − top, right − left, channel).
    """
    top, left, bottom, right = box
    patch = np.empty((bottom - top, right - left, view.shape[2]), np.uint8)
    patch[:] = fill
    first_row, first_column = max(top, 0), max(left, 0)
    inside = view[first_row : max(bottom, 0), first_column : max(right, 0)]
    rows, columns = inside.shape[:2]
    if rows and columns:
        above, before = first_row - top, first_column - left
        patch[above : above + rows, before : before + columns] = inside
    return patch


def padding_color(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the colour (channel,) that the zeros around a network's input stand for: its mean, as eight bits."""
    mean = np.rint(255 * np.array(preprocessing.mean))
    return np.broadcast_to(np.clip(mean, 0, 255).astype(np.uint8), (preprocessing.channels,))
