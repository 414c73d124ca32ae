"""Small versions of what the network saw, for the pages of a report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def reduce_to(view: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a view reduced to (rows, columns), antialiased; one that has this size already stays as it is.

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
    small = image.resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(small).reshape(rows, columns, view.shape[2])
