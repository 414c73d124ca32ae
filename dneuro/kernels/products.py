"""Products of every two features: what covariance, correlation and distance are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, Sums, flat, placed, row_slices, spans, to_numpy

LEAST_ROWS = 512
"""Rows of a slice, if the block has them: each slice adds a whole matrix of products to the state."""

MOST_ROWS = 1024
"""Rows that are multiplied before their products are added in float64."""

MOVES_AT_ONCE = 32
"""Blocks whose moves are multiplied together: a task holds two float64 of each feature for each of them."""

CENTRE_ITEMS = 1 << 16
"""Elements that are centred at a time (512 KiB in float64)."""

Precision = Literal["float32", "float64"]

Move = tuple[Array, Array]
"""By how much a block's own shift lies above that of its group (features,), and the block's sum of z plus half of its
count times that (features,); float64."""


@dataclass(frozen=True)
class CrossProducts:
    """Sums and products of z = x − shift over the images, in float64.

    The shift is the mean of the first slice, rounded to the dtype of the activations, so that nothing large is
    squared and the z of a constant feature are exactly zero. States with different shifts are brought to one when
    they are merged.
    """

    whole_rows: ClassVar[bool] = True
    key: ClassVar[str] = "products"

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        for rows in row_slices(table, LEAST_ROWS):
            z = xp.astype(table[rows, :], xp.float64)
            if not state:
                state = _nothing(xp.astype(xp.astype(xp.mean(z, axis=0), table.dtype), xp.float64))
            z -= state["shift"]
            state["sum"] += xp.sum(z, axis=0)
            state["products"] += xp.matmul(z.T, z)
        state["count"] = state["count"] + table.shape[0]
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        apart = b["shift"] - a["shift"]
        products = a["products"] + b["products"]
        half = b["sum"] + 0.5 * b["count"] * apart
        for rows in row_slices(products):  # both terms at once: the sum stays symmetric to the last bit
            products[rows, :] += apart[rows, None] * half[None, :] + half[rows, None] * apart[None, :]
        return {
            "count": a["count"] + b["count"],
            "shift": a["shift"],
            "sum": a["sum"] + b["sum"] + b["count"] * apart,
            "products": products,
        }

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return count, shift (features,), sum (features,), products (features, features) of z."""
        return {name: to_numpy(array) for name, array in state.items()}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        # A slice in float64 and the product that is added; in a merge the terms of a slice and the new state.
        one_slice = max(SLICE_ITEMS, min(rows, LEAST_ROWS) * features)
        return 8 * features * (features + 2) + 8, 24 * one_slice + 8 * features**2 + 64 * features


def _nothing(shift: Array) -> State:
    """Return the state of no images about this shift."""
    xp = array_api_compat.array_namespace(shift)
    where = array_api_compat.device(shift)
    features = shift.shape[0]
    return {
        "count": xp.zeros((), dtype=xp.int64, device=where),
        "shift": shift,
        "sum": xp.zeros((features,), dtype=xp.float64, device=where),
        "products": xp.zeros((features, features), dtype=xp.float64, device=where),
    }


@dataclass(frozen=True)
class TileProducts:
    """Products of two groups of features: multiplied in one precision, added in float64.

    No kernel of its own, but what a task does that holds tiles of the matrix of products: features are centred group
    by group, each pair of groups has its products.

    Parameters
    ----------
    precision : {"float32", "float64"}
        In which z = x − shift are multiplied.
    images : int
        Images there will be in all.

    Notes
    -----
    A sum of k like terms in float32 is wrong by about ε √k, ε = 6e-8, and n / k such sums by ε k / √n. With k = 2.3 √n
    rows at a time that is 1.4e-7 of ‖zᵢ‖ ‖zⱼ‖, and stays below 1e-6 among some millions of pairs (measured). Fewer rows
    would take longer: adding to the products takes as long as multiplying some 50 rows.

    So in float32 each block is centred about its own mean: over all blocks ‖zᵢ‖² is then at most the variation of i,
    in whatever order the images come. About the mean of the first block it would be many times that where images are
    ordered by class. What is between the blocks' means is multiplied in float64.
    """

    precision: Precision
    images: int

    @property
    def rows(self) -> int:
        """Rows that are multiplied at a time."""
        return min(MOST_ROWS, max(64, math.isqrt(16 * self.images // 3))) if self.precision == "float32" else MOST_ROWS

    def centre(self, state: State, block: Array) -> tuple[State, Array, Move | None]:
        """Return what is known of a group after this block, the block's z, and the move of those to the group's shift.

        Of the group: shift, sum and sum of squares of x − shift, count, and ``multiplied``, the sum of the squares of
        the z that are multiplied. The shift of the group is that of its first block: the mean rounded to the dtype of
        the activations, and exactly the value of a feature that is constant there, so that its z are exactly zero.
        In float64 it is the shift of all blocks, and there is no move.
        """
        table = flat(block)
        xp = array_api_compat.array_namespace(table)
        own = self._shift(table) if not state or self.precision == "float32" else state["shift"]
        nothing = xp.zeros_like(own)
        if not state:
            state = {"shift": own, "sum": nothing, "squares": nothing, "multiplied": nothing, "count": 0}
        shift = xp.astype(own, table.dtype)
        z = xp.empty(table.shape, dtype=self._dtype(xp), device=array_api_compat.device(table))
        total, squares, wider = nothing, nothing, table.dtype.itemsize > z.dtype.itemsize
        for rows in spans(len(table), CENTRE_ITEMS // table.shape[1]):
            # Subtracted in the wider of the two dtypes: float64 activations may differ by less than float32 shows.
            z[rows, :] = table[rows, :] - shift if wider else table[rows, :]
            if not wider:
                z[rows, :] -= xp.astype(shift, z.dtype)
            wide = xp.astype(z[rows, :], xp.float64)
            total = total + xp.sum(wide, axis=0)
            wide *= wide
            squares = squares + xp.sum(wide, axis=0)
        apart = own - state["shift"]
        half = total + 0.5 * len(table) * apart
        state = {
            "shift": state["shift"],
            "sum": state["sum"] + (total + len(table) * apart),
            "squares": state["squares"] + (squares + 2 * apart * half),
            "multiplied": state["multiplied"] + squares,
            "count": state["count"] + len(table),
        }
        return state, z, (apart, half) if self.precision == "float32" else None

    def add(self, products: Array | None, left: Array, right: Array) -> Array:
        """Return `products` (features, features) with those of these rows added; in place, None is zero."""
        xp = array_api_compat.array_namespace(left)
        shape, where = (left.shape[1], right.shape[1]), array_api_compat.device(left)
        if products is None:
            products = xp.zeros(shape, dtype=xp.float64, device=where)
        some = xp.empty(shape, dtype=left.dtype, device=where)
        for rows in spans(left.shape[0], self.rows):
            # Of one array with itself NumPy computes half.
            xp.matmul(left[rows, :].T, right[rows, :], out=some)
            products += some
        return products

    def move(self, products: Array, left: Sequence[Move], right: Sequence[Move]) -> None:
        """Make products about the blocks' own shifts those about the shifts of the groups; in place."""
        xp = array_api_compat.array_namespace(products)
        ours = xp.stack([apart for apart, _ in left] + [half for _, half in left])
        theirs = xp.stack([half for _, half in right] + [apart for apart, _ in right])
        for rows in spans(products.shape[0], CENTRE_ITEMS // products.shape[1]):
            products[rows, :] += xp.matmul(ours[:, rows].T, theirs)

    def _shift(self, table: Array) -> Array:
        xp = array_api_compat.array_namespace(table)
        wide = xp.zeros((table.shape[1],), dtype=xp.float64, device=array_api_compat.device(table))
        for rows in spans(len(table), CENTRE_ITEMS // table.shape[1]):
            wide += xp.sum(table[rows, :], axis=0, dtype=xp.float64)
        mean = xp.astype(xp.astype(wide / table.shape[0], table.dtype), xp.float64)
        if table.dtype.itemsize < wide.dtype.itemsize:
            return mean  # float64 holds all sums of one value exactly, and their mean is that value
        low, high = xp.min(table, axis=0), xp.max(table, axis=0)
        return xp.where(low == high, xp.astype(low, xp.float64), mean)

    def _dtype(self, xp: Any) -> Any:
        return xp.float32 if self.precision == "float32" else xp.float64


def direct_distances(pairs: NDArray[np.integer], left: Array, right: Array) -> Array:
    """Return Σ (xᵢ − yⱼ)² over the rows, in float64, for chosen pairs (pairs, 2): columns i of `left`, j of `right`."""
    xp = array_api_compat.array_namespace(left)
    where = array_api_compat.device(left)
    squared = xp.zeros((len(pairs),), dtype=xp.float64, device=where)
    for some in spans(len(pairs), CENTRE_ITEMS // left.shape[0]):
        first, second = (placed(side, xp, where, dtype=xp.int64) for side in pairs[some].T)
        apart = xp.astype(xp.take(left, first, axis=1), xp.float64)
        apart -= xp.astype(xp.take(right, second, axis=1), xp.float64)
        squared[some] = xp.sum(apart * apart, axis=0)
    return squared


@dataclass(frozen=True)
class PairDistances(Sums):
    """Squared distances of chosen pairs of features, summed directly: exact where products cancel.

    Parameters
    ----------
    pairs : array (pairs, 2) of int32
        Feature numbers.
    """

    pairs: NDArray[np.int32]
    whole_rows: ClassVar[bool] = True

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        if not state:
            state = {"squared": xp.zeros((len(self.pairs),), dtype=xp.float64, device=where)}
        state["squared"] += direct_distances(self.pairs, table, table)
        return state

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        return 8 * len(self.pairs), 28 * max(CENTRE_ITEMS, rows) + 24 * len(self.pairs)
