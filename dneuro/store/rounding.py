"""Numbers with fewer bits, in a dtype that every reader knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = {"float16": "65504", "bfloat16": "3.39e38"}
"""The largest number that each can hold."""

_KEPT = np.uint32(0xFFFF0000)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 numbers rounded to those that bfloat16 has: to the nearest, ties to even.

    Parameters
    ----------
    values : array of float32
        Any shape; finite numbers above 3.39·10³⁸ become infinite, as bfloat16 would have them.

    Returns
    -------
    array of float32
        The upper 16 bits of each number are its bfloat16, the lower 16 are 0: a shuffling codec stores them in
        next to no space, and any reader reads them. Relative error up to 2⁻⁸ = 3.9·10⁻³.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = ((bits + (np.uint32(0x7FFF) + odd)) & _KEPT).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), rounded)


def rounded(values: NDArray[np.floating], dtype: str) -> NDArray[np.floating]:
    """Return numbers as a store of 16 bits holds them: those too large become infinite.

    Parameters
    ----------
    values : array of float32
        Any shape.
    dtype : {"float16", "bfloat16"}
        bfloat16 is float32 with the numbers that it has.
    """
    if dtype == "bfloat16":
        return to_bfloat16(np.asarray(values, np.float32))
    with np.errstate(over="ignore"):
        return values.astype(dtype)
