"""Half an iteration of a non-negative factorisation X ≈ R Cᵀ: R is improved where X is, and C learns what it needs.

X lies in blocks of rows. Given C, every row of R has a problem of its own, so a block improves its own rows and adds
its share of XᵀR and RᵀR, all that an update of C asks for. One read of X is a whole iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ArrayError
from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, Sums, flat, placed, row_slices, spans, to_numpy

Update = Literal["hals", "mu", "keep", "project"]

EPSILON = 1e-12
"""What keeps a multiplicative update from dividing by zero."""

LEAST_ROWS = 512
"""Rows of a slice, if the block has them: each slice adds a product features × components to the state."""

HELD_ITEMS = 1 << 17
"""Elements of a factor that are updated at a time: all sweeps over them happen in the cache (1 MiB)."""


def hals(factor: Array, target: Array, gram: Array, sweeps: int) -> Array:
    """Return the factor after sweeps of hierarchical alternating least squares.

    Parameters
    ----------
    factor : array (rows, components)
        R, non-negative.
    target : array (rows, components)
        X C.
    gram : array (components, components) of float64
        CᵀC.
    sweeps : int
        Times that every column is set to its best, given the others.

    Returns
    -------
    array (rows, components) of float64
        A component of which C has nothing stays as it was.

    References
    ----------
    Cichocki & Phan, "Fast local algorithms for large scale nonnegative matrix and tensor factorizations" (2009).
    """
    xp = array_api_compat.array_namespace(factor)
    done = xp.empty(factor.shape, dtype=xp.float64, device=array_api_compat.device(factor))
    nothing = xp.zeros((), dtype=xp.float64, device=array_api_compat.device(factor))
    live = np.flatnonzero(to_numpy(gram).diagonal() > 0).tolist()  # looked at here, and once: a device would wait
    for rows in spans(factor.shape[0], HELD_ITEMS // max(1, factor.shape[1])):
        # One component lies in one piece: a sweep goes over components.
        r = xp.asarray(xp.astype(factor[rows, :], xp.float64).T, copy=True)
        t = xp.asarray(xp.astype(target[rows, :], xp.float64).T, copy=True)
        for _ in range(sweeps):
            for k in live:
                step = t[k, :] - xp.matmul(gram[k, :], r)
                step /= gram[k, k]
                step += r[k, :]
                r[k, :] = xp.maximum(step, nothing)
        done[rows, :] = r.T
    return done


def multiplicative(factor: Array, target: Array, gram: Array, sweeps: int) -> Array:
    """Return the factor after multiplicative updates R ← R ∗ X C / (R CᵀC + ε), in float64; arguments as of `hals`.

    References
    ----------
    Saini & Papalexakis, "A Peek Into the Hidden Layers of a Convolutional Neural Network Through a Factorization
    Lens", the updates of coupled NMF; Lee & Seung (2001).
    """
    xp = array_api_compat.array_namespace(factor)
    done = xp.astype(factor, xp.float64)
    for _ in range(sweeps):
        done = done * (target / (xp.matmul(done, gram) + EPSILON))
    return done


def improve(update: Update, factor: Array, target: Array, gram: Array, sweeps: int) -> Array:
    """Return the factor after an update, in its own dtype."""
    xp = array_api_compat.array_namespace(factor)
    if update == "keep":
        return factor
    if update == "project":
        return xp.astype(target, factor.dtype)
    rule = hals if update == "hals" else multiplicative
    return xp.astype(rule(factor, target, gram, sweeps), factor.dtype)


def check_nonnegative(block: Array, origin: Origin, layer: str) -> None:
    """Raise if `block` holds a negative number, naming the place.

    Raises
    ------
    ArrayError
        Names layer, image and neuron of the least of them.
    """
    xp = array_api_compat.array_namespace(block)
    if float(xp.min(block)) >= 0:
        return
    values = to_numpy(block)
    first = np.unravel_index(int(values.argmin()), values.shape)
    neuron = [int(i) for i in first[1:]]
    if "channel" in origin:
        neuron[0] = int(origin["channel"][neuron[0]])
    raise ArrayError(
        f"{layer or 'activations'}: image {int(origin['image'][first[0]])}, neuron {tuple(neuron)} is "
        f"{float(values[first])}; a non-negative factorisation needs activations of 0 or more",
        hint="the layer after its ReLU, or x.clip(min=0), which takes negative activations for silence",
    )


@dataclass(frozen=True)
class Alternate:
    """One read of X₁, X₂, …: rows of R are updated, then X₁ᵀR, X₂ᵀR, … and RᵀR taken.

    The blocks are those of X₁, X₂, …, and the rows of R last.

    Parameters
    ----------
    fixed : tuple of array (features, components)
        C₁, C₂, …; their dtype, float32 or float64, is that of the large products.
    gram : array (components, components) of float64
        Σ wⱼ CⱼᵀCⱼ.
    weights : tuple of float
        wⱼ.
    rule : {"hals", "mu", "keep", "project"}
        What happens to R: an update, nothing, or R = Σ wⱼ XⱼCⱼ.
    sweeps : int
        Times that the rows are updated while their block is in memory.
    scales : tuple of float
        What X₁, X₂, … are multiplied by as they are read: powers of two. Empty: nothing.
    positions : int
        Rows of the blocks for each step along the arrays that they are cut from: panels of neurons have one for each
        position of a channel.
    """

    fixed: tuple[NDArray[Any], ...]
    gram: NDArray[np.float64]
    weights: tuple[float, ...]
    rule: Update
    sweeps: int = 1
    scales: tuple[float, ...] = ()
    positions: int = 1
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update_rows(self, tables: Sequence[Array], factor: Array, fixed: Sequence[Array], gram: Array) -> Array:
        """Return the new rows of R for a slice of rows of every X."""
        if self.rule == "keep":
            return factor
        xp = array_api_compat.array_namespace(factor)
        target = None
        for table, other, weight in zip(tables, fixed, self.weights, strict=True):
            product = xp.astype(xp.matmul(table, other), xp.float64) * weight
            target = product if target is None else target + product
        return improve(self.rule, factor, target, gram, self.sweeps)

    @np.errstate(over="ignore", invalid="ignore")  # a first read at no known scale; what is kept is looked at
    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        *tables, factor = [flat(block) for block in blocks]
        xp = array_api_compat.array_namespace(factor)
        where = array_api_compat.device(factor)
        fixed = [placed(other, xp, where) for other in self.fixed]
        gram = placed(self.gram, xp, where)
        new: State = {"factor": xp.empty(factor.shape, dtype=fixed[0].dtype, device=where)}
        new["gram"] = xp.zeros(gram.shape, dtype=xp.float64, device=where)
        for number, other in enumerate(fixed):
            name = f"product-{number}"
            new[name] = state[name] if state else xp.zeros(other.shape, dtype=xp.float64, device=where)
        widest = max(tables, key=lambda table: int(table.shape[1]))
        scales = self.scales or (1.0,) * len(tables)
        for rows in row_slices(widest, LEAST_ROWS):
            slices = [xp.astype(table[rows, :], fixed[0].dtype, copy=False) for table in tables]
            slices = [some if by == 1 else some * by for some, by in zip(slices, scales, strict=True)]
            improved = self.update_rows(slices, xp.astype(factor[rows, :], fixed[0].dtype), fixed, gram)
            new["factor"][rows, :] = improved
            for number, table in enumerate(slices):
                # Rᵀ X, not Xᵀ R: BLAS reads the large one as it lies.
                new[f"product-{number}"] += xp.matmul(improved.T, table).T
            exact = xp.astype(improved, xp.float64)
            new["gram"] += xp.matmul(exact.T, exact)
        return new if not state else {**new, **self._joined(state, new)}

    @staticmethod
    def _joined(a: State, b: State) -> State:
        xp = array_api_compat.array_namespace(a["factor"], b["factor"])
        return {"factor": xp.concat([a["factor"], b["factor"]]), "gram": a["gram"] + b["gram"]}

    @np.errstate(over="ignore", invalid="ignore")
    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        products = {name: a[name] + b[name] for name in a if name.startswith("product-")}
        return {**products, **self._joined(a, b)}

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return factor (rows, components), in the order of X, gram, and product-0, product-1, … (features, …)."""
        return {name: to_numpy(array) for name, array in state.items()}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        components, item = self.fixed[0].shape[1], self.fixed[0].dtype.itemsize
        lengths = [len(other) for other in self.fixed]
        images, rows = self.positions * images, self.positions * rows
        state = components * (8 * sum(lengths) + item * images + 8 * components)
        one_slice = max(SLICE_ITEMS, min(rows, LEAST_ROWS) * max(lengths)) // max(lengths)
        work = item * one_slice * sum(lengths)  # the slice in the dtype of the products, if it has another
        work += 48 * components * one_slice  # its rows of R, in every state of being updated
        work += components * item * 2 * sum(lengths)  # C, which every worker holds, and a product that is added
        return state, work + state  # what two states are merged into


@dataclass(frozen=True)
class Totals(Sums):
    """total-0, total-1, …: sum and sum of squares of each of several arrays, in float64.

    Parameters
    ----------
    arrays : int
        How many: the first so many blocks.
    positions : int
        As of `Alternate`.
    """

    arrays: int = 1
    positions: int = 1
    whole_rows: ClassVar[bool] = True

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        for number, block in enumerate(blocks[: self.arrays]):
            table = flat(block)
            xp = array_api_compat.array_namespace(table)
            for rows in row_slices(table):
                exact = xp.astype(table[rows, :], xp.float64)
                found = xp.stack([xp.sum(exact), xp.sum(exact * exact)])
                name = f"total-{number}"
                state[name] = state[name] + found if name in state else found
        return state

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        return 16 * self.arrays, 24 * max(SLICE_ITEMS, features // self.positions)
