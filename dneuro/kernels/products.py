"""Products of every two features: what covariance, correlation and distance are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, row_slices, spans, to_numpy

LEAST_ROWS = 512
"""Rows of a slice, if the block has them: each slice adds a whole matrix of products to the state."""


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
class PairDistances:
    """Squared distances of chosen pairs of features, summed directly: exact where products cancel.

    Parameters
    ----------
    pairs : array (pairs, 2) of int32
        Feature numbers.
    """

    pairs: NDArray[np.int32]
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        if not state:
            state = {"squared": xp.zeros((len(self.pairs),), dtype=xp.float64, device=where)}
        for some in spans(len(self.pairs), SLICE_ITEMS // table.shape[0]):
            left, right = (xp.asarray(side, dtype=xp.int64, device=where) for side in self.pairs[some].T)
            apart = xp.astype(xp.take(table, left, axis=1), xp.float64)
            apart -= xp.astype(xp.take(table, right, axis=1), xp.float64)
            state["squared"][some] += xp.sum(apart * apart, axis=0)
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return {"squared": a["squared"] + b["squared"]} if a and b else a or b

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:  # noqa: D102
        return {"squared": to_numpy(state["squared"])}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        return 8 * len(self.pairs), 28 * max(SLICE_ITEMS, rows) + 16 * len(self.pairs)
