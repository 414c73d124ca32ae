"""On the side of the images: where they are few, products of every two of them are less than those of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.regressing.asked import Asked
from dneuro.analysis.regressing.fitted import ROUNDING, Fitted, Matrix, solve, solve_bytes
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.kernels.paired import PairedRows


@dataclass(frozen=True)
class ByImages:
    """All features of all images, brought here; each fit is Zᵀ(ZZᵀ + ridge·n·I)⁻¹Y in place of (ZᵀZ + ridge·n·I)⁻¹ZᵀY.

    Parameters
    ----------
    asked : Asked
        The regression.
    """

    asked: Asked
    passes: ClassVar[int] = 1

    def plan(self, executor: Sizes) -> Plan:
        """Return what it will read and hold."""
        asked, n, p, q = self.asked, self.asked.images, self.asked.sources, self.asked.targets
        stored = n * (asked.row_bytes + 8)
        # As they come, joined and in order; in float64; standardised, and the two sides of the equations.
        solving = 8 * n * (2 * p + 3 * q + n) + solve_bytes(n, q, asked.ridge) + 16 * p * q
        return asked.plan(
            PairedRows(asked.row_bytes), executor, passes=self.passes, method="products of images",
            driver_bytes=max(3 * stored, stored + 8 * n * (p + q), solving),
        )  # fmt: skip

    def fit(self, executor: Executor) -> Fitted:
        """Return the regression on all images, and what it is worth on those held out."""
        asked = self.asked
        found = asked.read(PairedRows(asked.row_bytes), executor)
        fold = asked.fold[found["image"]]
        a, b = (_about_mean(found.pop(name)) for name in "ab")
        levels = [ROUNDING * _mean_squares(side) for side in (a, b)]
        left = total = np.zeros(asked.targets)
        for number in range(asked.folds if asked.folds > 1 else 0):
            missed, there = _held_out(a, b, fold == number, levels[0], asked.ridge)
            left, total = left + missed, total + there
        z, _, scale = _standardised(a.copy(), levels[0])
        spread = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        mean = b.mean(axis=0)
        variance = _mean_squares(b) - mean**2
        b -= mean
        slope = z.T @ _weights(z, b, asked.ridge)
        missed = _mean_squares(b - z @ slope)
        covariance = z.T @ b
        covariance /= len(b)
        return Fitted(slope, covariance, spread, np.sqrt(np.where(variance > levels[1], variance, 0.0)), missed,
                      left, total)  # fmt: skip


def _about_mean(values: NDArray[np.floating]) -> Matrix:
    """Return features in float64 about a value near their mean, so that nothing large is squared."""
    found = values.astype(np.float64)
    found -= found.mean(axis=0)
    return found


def _mean_squares(values: Matrix) -> Matrix:
    return np.asarray(np.einsum("ij,ij->j", values, values) / len(values))


def _standardised(values: Matrix, level: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return features standardised in place, their means, and what they were multiplied by: 0 where constant."""
    mean = values.mean(axis=0)
    variance = _mean_squares(values) - mean**2
    live = variance > level
    scale = np.where(live, 1 / np.sqrt(np.where(live, variance, 1.0)), 0.0)
    values -= mean
    values *= scale
    return values, mean, scale


def _weights(z: Matrix, y: Matrix, ridge: float) -> Matrix:
    """Return weights (images, targets) of the images, of which the slopes are made: Zᵀ weights."""
    square = z @ z.T
    square /= len(z)
    return solve(square, y / len(z), ridge)


def _held_out(a: Matrix, b: Matrix, out: NDArray[np.bool_], level: Matrix, ridge: float) -> tuple[Matrix, Matrix]:
    """Return Σ(y − ŷ)² and Σ(y − ȳ)² over images held out, predicted from the others."""
    z, mean, scale = _standardised(a[~out], level)
    y = b[~out]
    middle = y.mean(axis=0)
    y -= middle
    weights = _weights(z, y, ridge)
    there = b[out] - middle
    predicted = (((a[out] - mean) * scale) @ z.T) @ weights
    return len(there) * _mean_squares(there - predicted), len(there) * _mean_squares(there)
