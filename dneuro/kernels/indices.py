"""How selective a row is: of each row of a table (counts or means, one column per class), one number.

Rows are worked through in slices, so that a table of any height needs little besides itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dneuro.kernels.base import SLICE_ITEMS, spans

Numbers = NDArray[np.float64]

FLATNESS_OFFSET = 1e-7
"""Added to every entry of a row before its flatness is taken, as the paper does."""


def gini(rows: ArrayLike) -> Numbers:
    """Return the Gini index of each row (…, N): 0 if all entries are equal, 1 − 1/N if all but one are 0.

    NaN for a row of zeros, and for one with a negative entry or NaN.
    """
    return _by_slices(_gini, rows)


def flatness(rows: ArrayLike) -> Numbers:
    """Return 2^(H / log₂ N) − 1 of each row (…, N), H the entropy in bits of its shares: 0 one-sided, 1 flat.

    −1 for a row of zeros; NaN for one with a negative entry or NaN, and where N is 1.
    """
    return _by_slices(_flatness, rows)


def entropy(rows: ArrayLike) -> Numbers:
    """Return the entropy in bits of the shares of each row (…, N); NaN for zeros, a negative entry or NaN."""
    return _by_slices(_entropy, rows)


def class_selectivity(rows: ArrayLike) -> Numbers:
    """Return (largest − mean of the others) / (largest + mean of the others) of each row (…, N), 0 to 1.

    Columns that are NaN in a row are classes without images, and left out of it. NaN where fewer than two are left,
    where all are 0, and where the mean of the others is negative: the index is about activations after a ReLU.
    """
    return _by_slices(_class_selectivity, rows)


def multifacetedness(flat: Numbers, sparsity: Numbers) -> Numbers:
    """Return flatness ÷ Gini index: NaN for a row of zeros, infinite for a row of equal entries."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(flat < 0, np.nan, flat / sparsity))


def _by_slices(index: Callable[[Numbers], Numbers], rows: ArrayLike) -> Numbers:
    table = np.asarray(rows)
    lead, width = table.shape[:-1], table.shape[-1]
    table = table.reshape(-1, width)
    found = np.empty(len(table))
    for some in spans(len(table), SLICE_ITEMS // max(1, width)):
        found[some] = index(table[some].astype(np.float64))
    return found.reshape(lead)


def _undefined(rows: Numbers) -> NDArray[np.bool_]:
    """Return which rows have no shares: a negative entry, or NaN."""
    return np.asarray(~((rows >= 0) & np.isfinite(rows)).all(axis=1))


def _shares(rows: Numbers) -> Numbers:
    """Return each row divided by its sum; the largest entry goes first, for the sum may overflow or vanish.

    What is negative or no number counts as 0: rows that have such a thing have no shares.
    """
    rows = np.where((rows >= 0) & np.isfinite(rows), rows, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = rows / rows.max(axis=1, keepdims=True)
        shares: Numbers = rows / rows.sum(axis=1, keepdims=True)
    return shares


def _gini(rows: Numbers) -> Numbers:
    n = rows.shape[1]
    shares = np.sort(_shares(rows), axis=1)
    found: Numbers = 1.0 - 2.0 * (shares @ (n - np.arange(1, n + 1) + 0.5)) / n
    found[rows.min(axis=1) == rows.max(axis=1)] = 0.0  # exactly
    found[_undefined(rows) | ~rows.any(axis=1)] = np.nan
    return found


def _flatness(rows: Numbers) -> Numbers:
    n, empty = rows.shape[1], ~rows.any(axis=1)
    undefined = _undefined(rows)
    if n == 1:
        return np.asarray(np.where(empty & ~undefined, -1.0, np.nan))
    found: Numbers = np.exp2(_bits(_shares(rows + FLATNESS_OFFSET)) / np.log2(n)) - 1.0
    found[empty] = -1.0
    found[undefined] = np.nan
    return found


def _entropy(rows: Numbers) -> Numbers:
    found = _bits(_shares(rows))
    found[_undefined(rows) | ~rows.any(axis=1)] = np.nan
    return found


def _bits(shares: Numbers) -> Numbers:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-np.sum(shares * logs, axis=1) + 0.0)  # no −0


def _class_selectivity(rows: Numbers) -> Numbers:
    known = ~np.isnan(rows)
    count = known.sum(axis=1)
    best = np.where(known, rows, -np.inf).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The best class is left out of the sum instead of subtracted from it: of a large best nothing remains.
        first = np.where(known, rows, -np.inf).argmax(axis=1)
        others = np.where(known, rows, 0.0)
        others[np.arange(len(rows)), first] = 0.0
        rest = others.sum(axis=1) / (count - 1)
        found: Numbers = (best - rest) / (best + rest)
    found[(count < 2) | (rest < 0) | ~np.isfinite(best) | (best + rest == 0)] = np.nan
    return found
