"""Reads by panels of neurons, each with all images, one matrix after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce as reduce_plans

import array_api_compat
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.nonnegative.arrays import (
    KEEP,
    PROJECT,
    Arrays,
    Factors,
    Matrix,
    RescaledError,
    Rule,
    no_gram,
    plan_read,
    weighted_gram,
    with_totals,
)
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan
from dneuro.kernels.base import Array, Kernel, Origin, check_finite, check_range
from dneuro.kernels.nmf import Alternate, check_nonnegative, improve

DUST = 1e-7
"""Directions below this share of the largest are rounding."""


@dataclass(frozen=True)
class _Upright:
    """Panels (features…, image) and rows of O (first feature, rest × components), made tables; looked at if asked."""

    layer: str
    images: NDArray[np.int64]
    check: bool
    by_place: bool

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        panel, *rest = blocks
        if self.check:
            turned = array_api_compat.array_namespace(panel).moveaxis(panel, -1, 0)
            place = {"image": self.images, "channel": origin["image"]}
            check_finite(turned, place, self.layer, by_place=self.by_place)
            check_range(turned, place, self.layer)
            check_nonnegative(turned, place, self.layer)
        tables = [panel.reshape(-1, panel.shape[-1])]
        return [*tables, *(table.reshape(len(tables[0]), -1) for table in rest)]


@dataclass
class ByNeurons:
    """Reads by panels of neurons, each with all images, one matrix after the other.

    One read more than iterations: the first update of F needs X O of the start. The read that improves O gives the X O
    of the next update too.
    """

    arrays: Arrays
    executor: Executor
    step: str
    totals: NDArray[np.float64] | None = None
    """(sum, sum of squares) of each matrix as it is factorised, once a read has taken them."""
    passes: int = 0
    """Reads so far."""
    how = "panels of neurons"
    extra = 1
    _ahead: tuple[Matrix, Matrix] | None = field(default=None, repr=False)

    def _panels(self, j: int) -> xr.DataArray:
        """Return a matrix with its images last: (first feature, …, images).

        Its dims have no names of their own, with which those of the layer could clash.
        """
        values = self.arrays.views[j].xs[0].variable
        values = values.transpose(*values.dims[1:], "image")
        if self.arrays.rows is not None:
            values = values[..., self.arrays.rows]
        return xr.DataArray(values.data)

    def _positions(self, j: int) -> int:
        """Return the neurons of each step along the first dim of a matrix."""
        return math.prod(self.arrays.views[j].xs[0].shape[2:])

    def _read(self, j: int, neurons: Matrix | None, kernels: dict[str, Kernel]) -> dict[str, dict[str, Matrix]]:
        """Read one matrix; `totals` are taken where they are not known."""
        seen, x = self.arrays.views[j], self._panels(j)
        kernels, first = with_totals(kernels, self.totals, 1, self._positions(j))
        xs = [x]
        if neurons is not None:
            xs.append(xr.DataArray(neurons.reshape(x.shape[0], -1, neurons.shape[1])))
        numbers = seen.images if self.arrays.rows is None else seen.images[self.arrays.rows]
        upright = _Upright(seen.layer, numbers, first, seen.prepare.by_place)
        return reduce(xs, kernels, self.executor, prepare=upright, step=f"{self.step} pass")

    def _read_all(
        self, images: Matrix, gram: Matrix, neurons: Sequence[Matrix | None], rule: Rule
    ) -> list[dict[str, Matrix]]:
        """Read every matrix once, with F."""
        found, totals = [], []
        for j, old in enumerate(neurons):
            scales = self.arrays.scales[j : j + 1]
            kernel = Alternate((images,), gram, (1.0,), rule.update, rule.sweeps, scales, self._positions(j))
            rows = np.zeros((self.arrays.neurons[j], images.shape[1]), images.dtype) if old is None else old
            both = self._read(j, rows, {"alternate": kernel})
            found.append(both["alternate"])
            totals += [both["totals"]["total-0"]] if "totals" in both else []
        self.passes += 1
        if totals and self._learn(np.stack(totals)):
            raise RescaledError
        return found

    def _learn(self, totals: Matrix) -> bool:
        """Keep the totals of what is stored; return whether another scale follows from them."""
        known, self.arrays = self.arrays, self.arrays if self.arrays.scales else self.arrays.at_unit_scale(totals)
        self.totals = self.arrays.scaled(totals)
        return known is not self.arrays

    def measure(self) -> None:
        """Take the totals alone."""
        count = len(self.arrays.views)
        self._learn(np.stack([self._read(j, None, {})["totals"]["total-0"] for j in range(count)]))
        self.passes += 1

    def step_on(self, at: Factors, rule: Rule) -> tuple[Factors, Matrix]:
        """Return the factors after one iteration, and the loss of each matrix, not yet weighted, with them.

        `at` is the start, or what the last call returned.
        """
        if self._ahead is None:
            self.losses(at)
        assert self._ahead is not None
        images = improve(rule.update, at.images, *self._ahead, rule.sweeps)
        gram = weighted_gram([images], (1.0,))
        found = self._read_all(images, gram, at.neurons, rule)
        self._look_ahead(found)
        return Factors(images, [part["factor"] for part in found]), self._losses(found, images)

    def losses(self, at: Factors) -> Matrix:
        """Return the loss of each matrix, not yet weighted, with these factors; one read, which the next step needs."""
        found = self._read_all(at.images, no_gram(at.images), at.neurons, KEEP)
        self._look_ahead(found)
        return self._losses(found, at.images)

    def _losses(self, found: list[dict[str, Matrix]], images: Matrix) -> Matrix:
        gram = weighted_gram([images], (1.0,))
        assert self.totals is not None
        losses = [
            self.totals[j, 1] - 2 * np.vdot(part["product-0"], images) + np.vdot(gram, part["gram"])
            for j, part in enumerate(found)
        ]
        return np.maximum(losses, 0.0)

    def _look_ahead(self, found: list[dict[str, Matrix]]) -> None:
        pairs = list(zip(self.arrays.weights, found, strict=True))
        target = sum(weight * part["product-0"] for weight, part in pairs)
        self._ahead = np.asarray(target), np.asarray(sum(weight * part["gram"] for weight, part in pairs))

    def subspace(self, basis: Matrix, count: int) -> tuple[Matrix, Matrix]:
        """Return Q (neurons of all, columns) after subspace iteration on MᵀM, and M Q, in `count` reads.

        The subspace is that of the other way to read: a read gives MᵀY and M MᵀY of Y = M Q, and what is done to MᵀY
        to make it orthonormal is done to M MᵀY too.
        """
        roots = self.arrays.roots
        sides = np.split(basis.astype(self.arrays.dtype), np.cumsum(self.arrays.neurons)[:-1])
        images = np.zeros((self.arrays.images, basis.shape[1]), dtype=self.arrays.dtype)
        found = self._read_all(images, no_gram(images), sides, KEEP)
        far = np.asarray(sum(root * part["product-0"] for root, part in zip(roots, found, strict=True)))
        nothing: list[Matrix | None] = [None] * len(roots)
        for _ in range(count - 1):
            found = self._read_all(far.astype(self.arrays.dtype), no_gram(images), nothing, PROJECT)
            pairs = list(zip(roots, found, strict=True))
            down = np.concatenate([root * part["factor"].astype(np.float64) for root, part in pairs])
            basis, sizes, turn = np.linalg.svd(down, full_matrices=False)
            scale = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > DUST * sizes[0])
            far = np.asarray(sum(root**2 * part["product-0"] for root, part in pairs)) @ (turn.T * scale)
        return basis, far

    def plan(self, sizes: Sizes, columns: int) -> tuple[Plan, int]:
        """Return the plan of one read with so many components, and the bytes of a block."""
        plans = []
        for j in range(len(self.arrays.views)):
            x = self._panels(j)
            one = np.zeros((), self.arrays.dtype)
            cells = (x.shape[0], self._positions(j), columns)
            rows = xr.DataArray(np.broadcast_to(one, cells))
            fixed = np.broadcast_to(one, (self.arrays.images, columns))
            plans.append(plan_read(self.step, [x, rows], (fixed,), sizes, 1, self._positions(j)))
        worst = reduce_plans(Plan.at_least, [plan for plan, _ in plans])
        tasks = sum(plan.tasks for plan, _ in plans)
        return replace(worst, tasks=tasks), max(block for _, block in plans)
