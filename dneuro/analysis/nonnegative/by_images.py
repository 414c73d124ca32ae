"""Reads by blocks of images, each with all neurons of every matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.nonnegative.arrays import (
    KEEP,
    Arrays,
    Factors,
    Matrix,
    RescaledError,
    Rule,
    loss,
    no_gram,
    plan_read,
    weighted_gram,
    with_totals,
)
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.parts import Source
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan
from dneuro.kernels.base import Array, Kernel, Origin, check_finite, check_range
from dneuro.kernels.nmf import Alternate, check_nonnegative, improve


@dataclass(frozen=True)
class _Check:
    """Blocks (images, features…) of every matrix, looked at before the kernels get them."""

    layers: tuple[str, ...]
    images: NDArray[np.int64]
    by_place: bool

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        place = {"image": self.images[origin["image"]]}
        for layer, block in zip(self.layers, blocks, strict=False):
            check_finite(block, place, layer, by_place=self.by_place)
            check_range(block, place, layer)
            check_nonnegative(block, place, layer)
        return blocks


@dataclass
class ByImages:
    """Reads by blocks of images, each with all neurons of every matrix; one read per iteration, no more."""

    arrays: Arrays
    executor: Executor
    step: str
    totals: NDArray[np.float64] | None = None
    """(sum, sum of squares) of each matrix as it is factorised, once a read has taken them."""
    passes: int = 0
    """Reads so far."""
    how = "blocks of images"
    extra = 0

    def _read(self, images: Matrix | None, kernels: dict[str, Kernel]) -> dict[str, dict[str, Matrix]]:
        """Run one read; the first looks at every number and takes the totals."""
        xs = [seen.xs[0] for seen in self.arrays.views]
        sources = [seen.sources[0] for seen in self.arrays.views]
        kernels, first = with_totals(kernels, self.totals, len(xs))
        if images is not None:
            whole = images
            if self.arrays.rows is not None:
                whole = np.zeros((len(self.arrays.rows), images.shape[1]), dtype=images.dtype)
                whole[self.arrays.rows] = images
            xs.append(xr.DataArray(whole, dims=("image", "component")))
            sources.append(Source(xs[-1]))
        first_view = self.arrays.views[0]
        layers = tuple(seen.layer for seen in self.arrays.views)
        check = _Check(layers, first_view.images, first_view.prepare.by_place)
        prepare = check if first else None
        found = reduce(
            xs, kernels, self.executor, prepare=prepare, rows=self.arrays.rows, step=f"{self.step} pass",
            sources=sources,
        )  # fmt: skip
        self.passes += 1
        if first:
            totals = np.stack([found["totals"][f"total-{j}"] for j in range(len(self.arrays.views))])
            known, self.arrays = self.arrays, self.arrays if self.arrays.scales else self.arrays.at_unit_scale(totals)
            self.totals = self.arrays.scaled(totals)
            if kernels.keys() != {"totals"} and known is not self.arrays:
                raise RescaledError
        return found

    def measure(self) -> None:
        """Take the totals alone."""
        self._read(None, {})

    def step_on(self, at: Factors, rule: Rule) -> tuple[Factors, Matrix]:
        """Return the factors after one iteration, and the loss of each matrix, not yet weighted, with them."""
        found = self._alternate(at.images, at.neurons, rule)
        new = Factors(found["factor"], [])
        gram, losses = found["gram"], []
        assert self.totals is not None
        for j, old in enumerate(at.neurons):
            product = found[f"product-{j}"]
            new.neurons.append(improve(rule.update, old, product, gram, rule.sweeps))
            losses.append(loss(self.totals[j, 1], product, new.neurons[j], gram))
        return new, np.asarray(losses)

    def losses(self, at: Factors) -> Matrix:
        """Return the loss of each matrix, not yet weighted, with these factors; one read."""
        return self.step_on(at, KEEP)[1]

    def _alternate(self, images: Matrix, neurons: list[Matrix], rule: Rule) -> dict[str, Matrix]:
        weights = self.arrays.weights
        gram = weighted_gram(neurons, weights)
        kernel = Alternate(tuple(neurons), gram, weights, rule.update, rule.sweeps, self.arrays.scales)
        return self._read(images, {"alternate": kernel})["alternate"]

    def subspace(self, basis: Matrix, count: int) -> tuple[Matrix, Matrix]:
        """Return Q (neurons of all, columns) after subspace iteration on MᵀM, and M Q, in `count` reads.

        M = [√w₁ X₁, √w₂ X₂, …].
        """
        for _ in range(count - 1):
            basis = np.linalg.qr(self._project(basis)[1])[0]
        return basis, self._project(basis)[0]

    def _project(self, basis: Matrix) -> tuple[Matrix, Matrix]:
        """Return M Q and MᵀM Q."""
        roots, scales = tuple(self.arrays.roots), self.arrays.scales
        sides = np.split(basis, np.cumsum(self.arrays.neurons)[:-1])
        narrow = tuple(side.astype(self.arrays.dtype) for side in sides)
        kernel = Alternate(narrow, no_gram(basis), roots, "project", scales=scales)
        nothing = np.zeros((self.arrays.images, basis.shape[1]), dtype=self.arrays.dtype)
        found = self._read(nothing, {"alternate": kernel})["alternate"]
        back = np.concatenate([found[f"product-{j}"] * root for j, root in enumerate(roots)])
        return found["factor"].astype(np.float64), back

    def plan(self, sizes: Sizes, columns: int) -> tuple[Plan, int]:
        """Return the plan of one read with so many components, and the bytes of a block."""
        lead = self.arrays.views[0]
        xs = [seen.xs[0] for seen in self.arrays.views]
        whole = np.broadcast_to(np.zeros((), self.arrays.dtype), (len(lead.images), columns))
        xs.append(xr.DataArray(whole, dims=("image", "component")))
        fixed = tuple(np.broadcast_to(whole[:1], (count, columns)) for count in self.arrays.neurons)
        return plan_read(self.step, xs, fixed, sizes, len(self.arrays.views))
