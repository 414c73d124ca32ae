"""Components of patches as pictures: in grey, per colour and together, in eight bits.

Patches may lie on a device; their components, a few pictures for each channel, are put together in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import Array

Matrix = NDArray[np.float64]

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue in grey (ITU-R BT.601), as Pillow makes it."""

MIDDLE = 128
"""Grey that stands for zero in eight bits."""


def grey(patches: Array) -> Array:
    """Return patches (…, color) in grey (…), on the same scale; those of one colour are grey."""
    xp = array_api_compat.array_namespace(patches)
    if patches.shape[-1] == 1:
        return xp.astype(patches[..., 0], xp.float64)
    found = xp.zeros(patches.shape[:-1], dtype=xp.float64, device=array_api_compat.device(patches))
    for color, share in enumerate(LUMINANCE):
        one = patches[..., color]
        found += share * (one if xp.isdtype(one.dtype, "real floating") else xp.astype(one, xp.float64))
    return found


def variance(values: Array, counts: NDArray[np.int64]) -> Matrix:
    """Return the variance (B,) of patches (B, S, P), all pixels together, of the first `counts` of each."""
    xp = array_api_compat.array_namespace(values)
    found = np.zeros(len(counts))
    for number, count in enumerate(counts.tolist()):
        found[number] = float(xp.sum(xp.var(values[number, :count], axis=0))) if count else 0.0
    return found


def share(parts: Sequence[Matrix], totals: Sequence[Matrix]) -> Matrix:
    """Return which part of the patches' variance each component makes up, all colours together.

    Parameters
    ----------
    parts : sequence of array (B, K, P)
        Of each colour, what a component of variance 1 adds to a patch.
    totals : sequence of array (B,)
        Of each colour, the variance of the patches.

    Returns
    -------
    array (B, K)
        NaN where there is no component in any colour.
    """
    size: Matrix = np.sum([np.nansum(pictures * pictures, axis=2) for pictures in parts], axis=0)
    total = np.sum(totals, axis=0)[:, None]
    found: Matrix = np.divide(size, total, out=np.full(size.shape, np.nan), where=total > 0)
    missing = np.all([np.isnan(pictures).all(axis=2) for pictures in parts], axis=0)
    return np.where(missing, np.nan, found)


def correlation(a: Matrix, b: Matrix) -> Matrix:
    """Return the Pearson correlation (B, K, L) of every two pictures of (B, K, P) and (B, L, P).

    It is 0 where one of them is not there (NaN) or does not vary.
    """

    def unit(pictures: Matrix) -> Matrix:
        centred = np.nan_to_num(pictures)
        centred = centred - centred.mean(axis=2, keepdims=True)
        length = np.linalg.norm(centred, axis=2, keepdims=True)
        found: Matrix = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
        return found

    found: Matrix = np.matmul(unit(a), np.swapaxes(unit(b), 1, 2))
    return found


def match(reference: Matrix, other: Matrix) -> tuple[NDArray[np.int64], Matrix]:
    """Find which picture of one colour belongs to which of another, and with which sign.

    Parameters
    ----------
    reference, other : array (B, K, P)
        Components of the same patches in two colours; NaN where there is none.

    Returns
    -------
    order : array (B, K) of int64
        Of `other`, the component that goes with each of `reference`: each once, so that the sum of all |correlations|
        is largest.
    r : array (B, K)
        Their correlations; negative where the one is the other's negative.
    """
    from scipy.optimize import linear_sum_assignment  # not at the top: workers load this file too, and SciPy is large

    found = correlation(reference, other)
    order = np.stack([linear_sum_assignment(np.abs(one), maximize=True)[1] for one in found])
    return order.astype(np.int64), np.take_along_axis(found, order[:, :, None], axis=2)[:, :, 0]


def together(parts: Sequence[Matrix], reference: int, *, matched: bool) -> tuple[list[Matrix], Matrix]:
    """Return the components of several colours in one order and with one sign, and how well they go together.

    Parameters
    ----------
    parts : sequence of array (B, K, P)
        Components of the same patches, colour by colour.
    reference : int
        The colour whose order and signs count.
    matched : bool
        Whether the others are brought into these; otherwise all stay as they are.

    Returns
    -------
    parts : list of array (B, K, P)
        The components.
    r : array (B, K, color)
        Correlation of each with that of the reference; NaN where one of them is not there.
    """
    lead = parts[reference]
    found, r = [], []
    for color, part in enumerate(parts):
        if matched and color != reference:
            order, signed = match(lead, part)
            part = np.take_along_axis(part, order[:, :, None], axis=1) * np.where(signed < 0, -1.0, 1.0)[:, :, None]
        found.append(part)
        known = np.isfinite(lead).all(axis=2) & np.isfinite(part).all(axis=2)
        r.append(np.where(known, np.einsum("bkk->bk", correlation(lead, part)), np.nan))
    return found, np.stack(r, axis=-1)


def eight_bit(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pictures (B, K, P, color) as bytes, each over its own range: 0 is 128, its largest size 1 or 255.

    All colours of a picture share one scale, so that it keeps its hues; a picture of NaN is 128 throughout.
    """
    known = np.nan_to_num(np.asarray(pictures, dtype=np.float64))
    largest = np.abs(known).max(axis=(2, 3), keepdims=True)
    scaled = np.divide(known, largest, out=np.zeros_like(known), where=largest > 0)
    return np.asarray(MIDDLE + np.rint((MIDDLE - 1) * scaled), dtype=np.uint8)
