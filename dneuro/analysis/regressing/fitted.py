"""What a ridge regression comes to, whichever side it was solved on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

ROUNDING = 1e-13
"""What varies by less than this share of its mean square, over all images, about a value near its mean, does not."""


@dataclass(frozen=True)
class Fitted:
    """A regression on all images, and what it is worth on those that it has not seen.

    Parameters
    ----------
    slope : array (sources, targets)
        In units of the targets, per standard deviation of a source; 0 for a source that does not vary.
    covariance : array (sources, targets)
        Of a target with a standardised source.
    spread_a, spread_b : array (sources,), (targets,)
        Standard deviations; 0 where it is rounding.
    missed : array (targets,)
        Mean of (y − ŷ)² on the images it was fitted to.
    left, total : array (targets,)
        Σ(y − ŷ)² and Σ(y − ȳ)² over images held out, ŷ and ȳ from the others; 0 without folds.
    """

    slope: Matrix
    covariance: Matrix
    spread_a: Matrix
    spread_b: Matrix
    missed: Matrix
    left: Matrix
    total: Matrix

    def coefficient(self) -> Matrix:
        """Return (targets, sources): standard deviations of one per standard deviation of the other."""
        return self._per_target(self.slope)

    def correlation(self) -> Matrix:
        """Return (targets, sources), NaN where either does not vary."""
        found = self._per_target(self.covariance)
        found[:, self.spread_a == 0] = np.nan
        return found

    def r2(self) -> Matrix:
        """Return the share of the variance explained, on the images that it was fitted to."""
        return self._explained(self.missed, self.spread_b**2)

    def r2_held_out(self) -> Matrix:
        """Return the same on images held out."""
        return self._explained(self.left, self.total)

    def _per_target(self, found: Matrix) -> Matrix:
        made = np.array(found.T)
        made /= np.where(self.spread_b > 0, self.spread_b, np.nan)[:, None]
        return made

    def _explained(self, left: Matrix, total: Matrix) -> Matrix:
        return np.where((self.spread_b > 0) & (total > 0), 1 - left / np.where(total > 0, total, 1.0), np.nan)


def solve(square: Matrix, right: Matrix, ridge: float) -> Matrix:
    """Return (square + ridge·I)⁻¹ right, of `ridge` 0 the smallest of all solutions; `square` is changed."""
    if ridge > 0:
        square[np.diag_indices_from(square)] += ridge
        return np.asarray(np.linalg.solve(square, right))
    return np.asarray(np.linalg.pinv(square, rcond=1e-12, hermitian=True) @ right)


def solve_bytes(size: int, columns: int, ridge: float) -> int:
    """Return what `solve` takes besides what it is given, with its result."""
    return 8 * size * ((1 if ridge > 0 else 5) * size + 2 * columns)
