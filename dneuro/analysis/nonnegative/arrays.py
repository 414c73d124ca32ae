"""The matrices of a factorisation, its factors, and the small sums that both ways to read them need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import View
from dneuro.engine.executors import Sizes
from dneuro.engine.plan import Plan, fit, plan_pass
from dneuro.kernels.base import Kernel
from dneuro.kernels.nmf import Alternate, Totals, Update

Matrix = NDArray[Any]

ORDINARY = 10
"""Numbers whose root mean square lies within 2^±10 are factorised as they are; others at unit scale."""

FARTHEST = {"f4": 120, "f8": 480}
"""Power of two of a scale, at most, by the dtype of the large products, which has to hold it."""

LEAST_ROOT = 1e-4
"""Where arrays of very different scales are factorised together, a start counts none of them for less than this."""

LEAST_WEIGHT = 2.0**-900
"""Of an array in the unit of another: it has an inverse."""


@dataclass(frozen=True)
class Rule:
    """How factors are updated: `improve` with this rule and so many sweeps."""

    update: Update
    sweeps: int = 1


KEEP, PROJECT = Rule("keep"), Rule("project")


@dataclass
class Factors:
    """Where a factorisation stands.

    Parameters
    ----------
    images : array (images, components)
        F.
    neurons : list of array (neurons, components)
        O of every matrix.
    """

    images: Matrix
    neurons: list[Matrix]


@dataclass(frozen=True)
class Arrays:
    """The matrices that are factorised together.

    Parameters
    ----------
    views : tuple of View
        Every one as images × neurons.
    weights : tuple of float
        Of each in the loss.
    rows : array (images,) of bool or None
        Images that take part.
    scales : tuple of float
        What the numbers of each are multiplied by as they are read; the weights are then those of the products. Empty:
        nothing.
    """

    views: tuple[View, ...]
    weights: tuple[float, ...]
    rows: NDArray[np.bool_] | None
    scales: tuple[float, ...] = ()

    def at_unit_scale(self, totals: Matrix) -> Arrays:
        """Return the arrays so that squares and products of their numbers stay in the range of float32.

        Parameters
        ----------
        totals : array (matrices, 2)
            Sum and sum of squares of each, as it is stored.

        Returns
        -------
        Arrays
            These, where all are of ordinary size. Scales are powers of two, so that nothing is rounded.
        """
        exponents = []
        for squares, count in zip(totals[:, 1], self.neurons, strict=True):
            half = math.frexp(float(squares) / (self.images * count))[1] // 2 if squares > 0 else 0
            most = FARTHEST[self.dtype.str[1:]]
            exponents.append(min(most, max(-most, -half)) if abs(half) > ORDINARY else 0)
        if not any(exponents):
            return self
        # The loss counts wⱼ ‖Xⱼ − F Oⱼᵀ‖² in the units that were given; the largest weight is brought near 1.
        pairs = [(*math.frexp(weight), by) for weight, by in zip(self.weights, exponents, strict=True)]
        most = max(power - 2 * by for _, power, by in pairs)
        weights = [max(LEAST_WEIGHT, math.ldexp(part, power - 2 * by - most)) for part, power, by in pairs]
        return replace(self, weights=tuple(weights), scales=tuple(math.ldexp(1.0, by) for by in exponents))

    def scaled(self, totals: Matrix) -> Matrix:
        """Return the totals of what is factorised, of those of what is stored."""
        by = np.asarray(self.scales or (1.0,) * len(self.views))[:, None]
        return np.asarray(totals * by ** [1, 2])

    def as_stored(self, totals: Matrix) -> Matrix:
        """Return the totals of what is stored, of those of what is factorised."""
        by = np.asarray(self.scales or (1.0,) * len(self.views))[:, None]
        return np.asarray(totals / by ** [1, 2])

    @property
    def roots(self) -> list[float]:
        """√wⱼ, as a start counts them."""
        roots = [math.sqrt(weight) for weight in self.weights]
        return [max(root, LEAST_ROOT * max(roots)) for root in roots] if self.scales else roots

    @property
    def images(self) -> int:
        """Images that take part."""
        return len(self.views[0].images) if self.rows is None else int(self.rows.sum())

    @property
    def neurons(self) -> list[int]:
        """Neurons of each."""
        return [seen.labels.count for seen in self.views]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of factors and large products."""
        double = any(seen.xs[0].dtype.itemsize > 4 for seen in self.views)
        return np.dtype("f8" if double else "f4")

    @property
    def nbytes(self) -> int:
        """Bytes that one read takes."""
        return sum(int(seen.xs[0].nbytes) for seen in self.views)


class RescaledError(Exception):
    """The first read has found numbers of no ordinary size; what follows has to begin again, at unit scale."""


def weighted_gram(sides: Sequence[Matrix], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return Σ w CᵀC in float64."""
    total = np.zeros((sides[0].shape[1],) * 2)
    for side, weight in zip(sides, weights, strict=True):
        exact = side.astype(np.float64)
        total += weight * (exact.T @ exact)
    return total


def loss(squares: float, product: Matrix, neurons: Matrix, gram: Matrix) -> float:
    """Return ‖X − F Oᵀ‖² from ‖X‖², XᵀF, O and FᵀF."""
    exact = neurons.astype(np.float64)
    return max(0.0, float(squares - 2 * np.vdot(product, exact) + np.vdot(gram, exact.T @ exact)))


def no_gram(like: Matrix) -> NDArray[np.float64]:
    """Return the Gram matrix for a rule that uses none."""
    return np.zeros((like.shape[1],) * 2)


def with_totals(
    kernels: dict[str, Kernel], totals: Matrix | None, arrays: int, positions: int = 1
) -> tuple[dict[str, Kernel], bool]:
    """Add the kernel of the totals to a first read; return whether it is one."""
    return (kernels, False) if totals is not None else ({**kernels, "totals": Totals(arrays, positions)}, True)


def plan_read(
    step: str, xs: list[xr.DataArray], fixed: tuple[Matrix, ...], sizes: Sizes, arrays: int,
    positions: int = 1,
) -> tuple[Plan, int]:  # fmt: skip
    """Return the plan of one read, and the bytes of a block; `positions` as of `dneuro.kernels.nmf.Alternate`."""
    columns = fixed[0].shape[1]
    kernels: dict[str, Kernel] = {
        "alternate": Alternate(fixed, np.zeros((columns, columns)), (1.0,) * len(fixed), "hals", positions=positions),
        "totals": Totals(arrays, positions),
    }
    return plan_pass(step, xs, kernels, sizes), fit(xs, kernels, sizes)[0].block_bytes
