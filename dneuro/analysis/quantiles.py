"""The quantile of every feature, as a value that occurs, in memory that does not depend on the number of images."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.arrays import View
from dneuro.engine.executors import Executor
from dneuro.errors import ArrayError
from dneuro.kernels.quantile import DIGIT, Digits, values_of


def beyond(quantile: object, images: int) -> int:
    """Return how many of so many images lie beyond the quantile if no two values are equal.

    The quantile is the ⌈q·n⌉-th smallest value, as `numpy.quantile` gives it with ``method="inverted_cdf"``; q is taken
    as the decimal fraction it is written as.

    Raises
    ------
    ArrayError
        If it does not lie between 0 and 1, or so near to 1 that no image lies beyond it.
    """
    if not isinstance(quantile, float | np.floating | Fraction) or not 0 < quantile < 1:
        raise ArrayError(f"quantile={quantile!r} does not lie between 0 and 1", hint="quantile=0.99")
    exact = quantile if isinstance(quantile, Fraction) else Fraction(repr(float(quantile)))
    above = images - math.ceil(exact * images)
    if above < 1:
        raise ArrayError(
            f"quantile={quantile!r} of {images} images: none lies above it",
            hint=f"quantile={math.floor(1000 * (1 - 1 / images)) / 1000}" if images > 1 else "more images",
        )
    return above


def passes(bits: int) -> int:
    """Return how many passes `select` takes."""
    return bits // DIGIT


def select(seen: View, rank: int, bits: int, executor: Executor, step: str) -> NDArray[np.float32]:
    """Return of every feature the value that `rank` others precede, largest first; (features…)."""
    found = np.zeros(seen.labels.sizes, dtype=np.int64)
    left = np.full(seen.labels.sizes, rank, dtype=np.int64)
    for below in range(bits - DIGIT, -1, -DIGIT):
        count = seen.reduce({"digits": Digits(found, below)}, executor, step)["digits"]["count"]
        # From the largest digit down: how many values there are with this digit or a larger one.
        reached = np.cumsum(count[::-1], axis=0, dtype=np.int64)
        place = (reached <= left).sum(axis=0)
        before = np.take_along_axis(np.concatenate([np.zeros_like(reached[:1]), reached]), place[None], axis=0)[0]
        found = (found << DIGIT) | (len(count) - 1 - place)
        left = left - before
    return values_of(found, bits)
