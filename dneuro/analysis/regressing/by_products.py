"""On the side of the features: products of every two, of some folds at a time, and a fit without each fold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dneuro.analysis.regressing.asked import Asked
from dneuro.analysis.regressing.fitted import ROUNDING, Fitted, Matrix, solve, solve_bytes
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.kernels.base import SLICE_ITEMS, spans
from dneuro.kernels.paired import PairedProducts


@dataclass(frozen=True)
class ByProducts:
    """Products of all folds in one pass; or of all images in one pass, and of `at_once` folds in each that follows.

    Parameters
    ----------
    asked : Asked
        The regression.
    at_once : int
        Folds whose products are in memory together.
    """

    asked: Asked
    at_once: int

    @property
    def passes(self) -> int:
        """Times that both arrays are read."""
        folds = self.asked.folds
        return 1 if self.at_once >= folds else 1 + -(-folds // self.at_once)

    def plan(self, executor: Sizes) -> Plan:
        """Return what it will read and hold."""
        asked, p, q = self.asked, self.asked.sources, self.asked.targets
        products, folds = 8 * p * (p + q), min(self.at_once, asked.folds)
        # Those folds, all images, all without one, and the two sides of the equations.
        held = products * (folds + 3 if asked.folds > 1 else 2)
        several = f", {folds} of {asked.folds} folds at a time" if self.passes > 1 else ""
        return asked.plan(
            PairedProducts(asked.fold, folds, p, q), executor, passes=self.passes,
            driver_bytes=held + solve_bytes(p, q, asked.ridge) + 32 * p * q, method=f"products of features{several}",
        )  # fmt: skip

    def fit(self, executor: Executor) -> Fitted:
        """Return the regression on all images, and what it is worth on those held out."""
        asked = self.asked
        if self.passes == 1:
            apart = self._read(executor, 0, asked.folds)
            whole, folds = _Sums.added(apart), iter(apart)
            del apart
        else:
            whole = self._read(executor, 0, 0)[0]
            folds = self._fold_by_fold(executor, whole.shift)
        level = ROUNDING * whole.mean_squares()
        left = total = np.zeros(asked.targets)
        if asked.folds > 1:
            left, total = _held_out(whole, folds, level, asked.ridge)
        return _whole_fit(whole, level, asked.ridge, left, total)

    def _fold_by_fold(self, executor: Executor, shift: Matrix) -> Iterator[_Sums]:
        for first in range(0, self.asked.folds, self.at_once):
            some = self._read(executor, first, min(self.at_once, self.asked.folds - first), shift)
            while some:  # each is let go of once it has been used
                yield some.pop(0)

    def _read(self, executor: Executor, first: int, count: int, shift: Matrix | None = None) -> list[_Sums]:
        """Return the sums of some folds each by itself, or with `count` 0 of all images together."""
        asked = self.asked
        fold = asked.fold - first if count else np.zeros_like(asked.fold)
        among = (fold >= 0) & (fold < count) if 0 < count < asked.folds else None
        kernel = PairedProducts(fold, max(1, count), asked.sources, asked.targets, shift)
        return _Sums.each(asked.read(kernel, executor, among))


@dataclass(frozen=True)
class _Sums:
    """What is known of sources A and targets B, about a shift, over some images."""

    shift: Matrix
    count: float
    total: Matrix
    squares: Matrix
    products: Matrix

    @classmethod
    def each(cls, found: dict[str, Any]) -> list[_Sums]:
        """Return the sums of each fold."""
        by_fold = zip(found["count"], found["sum"], found["squares"], list(found["products"]), strict=True)
        return [cls(found["shift"], float(count), *arrays) for count, *arrays in by_fold]

    @classmethod
    def added(cls, some: list[_Sums]) -> _Sums:
        """Return the sums over all of them."""
        first, *others = some
        if not others:
            return first
        count, total = sum(one.count for one in some), sum(one.total for one in some)
        squares, products = sum(one.squares for one in some), first.products.copy()
        for one in others:
            products += one.products
        return cls(first.shift, count, np.asarray(total), np.asarray(squares), products)

    def without(self, fold: _Sums) -> _Sums:
        """Return the sums over the images that are not in `fold`."""
        return _Sums(self.shift, self.count - fold.count, self.total - fold.total, self.squares - fold.squares,
                     self.products - fold.products)  # fmt: skip

    def mean_squares(self) -> Matrix:
        """Return those of all features about the shift."""
        return np.concatenate([self.products.diagonal(), self.squares]) / self.count


@dataclass(frozen=True)
class _Moments:
    """Means about the shift, covariances of A with A and B, variances of B."""

    mean: Matrix
    covariance: Matrix
    spread_a: Matrix
    spread_b: Matrix

    @classmethod
    def of(cls, sums: _Sums, level: Matrix) -> _Moments:
        """Make them of sums, whose products are overwritten; what varies by less than `level` does not."""
        mean, covariance, p = sums.total / sums.count, sums.products, len(sums.products)
        covariance /= sums.count
        for rows in spans(p, SLICE_ITEMS // len(mean)):
            covariance[rows] -= mean[:p][rows, None] * mean
        variance = np.concatenate([covariance.diagonal(), sums.squares / sums.count - mean[p:] ** 2])
        spread = np.sqrt(np.where(variance > level, variance, 0.0))
        return cls(mean, covariance, spread[:p], spread[p:])

    def slope(self, ridge: float) -> Matrix:
        """Return what the targets gain per unit of each source (sources, targets)."""
        p, live = len(self.spread_a), self.spread_a > 0
        scale, made = self.spread_a[live, None], np.zeros((p, self.covariance.shape[1] - p))
        square = self.covariance[:, :p][np.ix_(live, live)]
        square /= scale
        square /= scale[:, 0]
        square[np.diag_indices_from(square)] = 1.0
        right = self.covariance[live, p:]
        right /= scale
        solved = solve(square, right, ridge)
        solved /= scale
        made[live] = solved
        return made


def _held_out(whole: _Sums, folds: Iterable[_Sums], level: Matrix, ridge: float) -> tuple[Matrix, Matrix]:
    """Return Σ(y − ŷ)² and Σ(y − ȳ)² over all folds, each predicted from the others."""
    left = total = np.zeros(len(whole.squares))
    for fold in folds:
        rest = _Moments.of(whole.without(fold), level)
        slope, mean = rest.slope(ridge), rest.mean
        del rest
        missed, there = _missed(fold, slope, mean)
        left, total = left + missed, total + there
        del fold, slope  # before the next are read
    return left, total


def _missed(fold: _Sums, slope: Matrix, mean: Matrix) -> tuple[Matrix, Matrix]:
    """Return Σ(y − ŷ)² and Σ(y − ȳ)² over the images of a fold, of a fit about `mean`: ŷ = ȳ + (x − x̄) slope."""
    n, p = fold.count, len(slope)
    of_mean, of_sum = mean[:p] @ slope, fold.total[:p] @ slope
    its, own = mean[p:], fold.total[p:]
    total = fold.squares - 2 * its * own + n * its**2
    left = total - 2 * (np.einsum("ij,ij->j", fold.products[:, p:], slope) - of_mean * own - of_sum * its
                        + n * of_mean * its)  # fmt: skip
    left += np.einsum("ij,ij->j", fold.products[:, :p] @ slope, slope) - 2 * of_mean * of_sum + n * of_mean**2
    return np.maximum(left, 0.0), total


def _whole_fit(whole: _Sums, level: Matrix, ridge: float, left: Matrix, total: Matrix) -> Fitted:
    """Return the fit on all images; their products are overwritten."""
    found = _Moments.of(whole, level)
    slope, p = found.slope(ridge), len(found.spread_a)
    missed = found.spread_b**2 - 2 * np.einsum("ij,ij->j", found.covariance[:, p:], slope)
    missed += np.einsum("ij,ij->j", found.covariance[:, :p] @ slope, slope)
    slope *= found.spread_a[:, None]
    covariance = found.covariance[:, p:].copy()
    covariance /= np.where(found.spread_a > 0, found.spread_a, 1.0)[:, None]
    return Fitted(slope, covariance, found.spread_a, found.spread_b, np.maximum(missed, 0.0), left, total)
