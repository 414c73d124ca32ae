"""The matrices of a factorisation, its factors, and the small sums that both ways to read them need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    views: tuple[View, ...]
    weights: tuple[float, ...]
    rows: NDArray[np.bool_] | None

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
    kernels: dict[str, Kernel], totals: Matrix | None, arrays: int
) -> tuple[dict[str, Kernel], bool]:
    """Add the kernel of the totals to a first read; return whether it is one."""
    return (kernels, False) if totals is not None else ({**kernels, "totals": Totals(arrays)}, True)


def plan_read(
    step: str, xs: list[xr.DataArray], fixed: tuple[Matrix, ...], sizes: Sizes, arrays: int
) -> tuple[Plan, int]:
    """Return the plan of one read, and the bytes of a block."""
    columns = fixed[0].shape[1]
    kernels: dict[str, Kernel] = {
        "alternate": Alternate(fixed, np.zeros((columns, columns)), (1.0,) * len(fixed), "hals"),
        "totals": Totals(arrays),
    }
    return plan_pass(step, xs, kernels, sizes), fit(xs, kernels, sizes)[0].block_bytes
