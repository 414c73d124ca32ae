"""Products of every two features: what covariance, correlation and distance are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, row_slices, to_numpy


@dataclass(frozen=True)
class CrossProducts:
    """Sums and products of z = x − shift over the images, in float64.

    The shift is the mean of the first block, rounded to float32, so that nothing large is squared and the z
    of a constant feature are exactly zero. States with different shifts are brought to one when they
    are merged.
    """

    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        features = table.shape[1]
        where = array_api_compat.device(table)
        if not state:
            first = xp.mean(xp.astype(table, xp.float64), axis=0)
            state = {
                "count": xp.zeros((), dtype=xp.int64, device=where),
                "shift": xp.astype(xp.astype(first, xp.float32), xp.float64),
                "sum": xp.zeros((features,), dtype=xp.float64, device=where),
                "products": xp.zeros((features, features), dtype=xp.float64, device=where),
            }
        for rows in row_slices(table):
            z = xp.astype(table[rows, :], xp.float64) - state["shift"]
            state["sum"] += xp.sum(z, axis=0)
            state["products"] += xp.matmul(z.T, z)
        state["count"] = state["count"] + table.shape[0]
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        apart = b["shift"] - a["shift"]
        cross = apart[:, None] * b["sum"][None, :]
        a["products"] += b["products"]
        a["products"] += cross
        a["products"] += cross.T
        a["products"] += b["count"] * apart[:, None] * apart[None, :]
        a["sum"] = a["sum"] + b["sum"] + b["count"] * apart
        a["count"] = a["count"] + b["count"]
        return a

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return count, shift (features,), sum (features,), products (features, features) of z."""
        return {name: to_numpy(array) for name, array in state.items()}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        # Work: one slice in float64 twice, and a product that is added (or, in a merge, the cross terms).
        return 8 * features * (features + 2), 16 * max(SLICE_ITEMS, features) + 16 * features**2


@dataclass(frozen=True)
class PairDistances:
    """Squared distances of chosen pairs of features, summed directly: exact where products cancel.

    Parameters
    ----------
    pairs : array (pairs, 2) of int64
        Feature numbers.
    """

    pairs: NDArray[np.int64]
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = to_numpy(flat(blocks[0]))
        total = np.zeros(len(self.pairs)) if not state else state["squared"]
        step = max(1, SLICE_ITEMS // max(1, table.shape[0]))
        for start in range(0, len(self.pairs), step):
            some = self.pairs[start : start + step]
            apart = table[:, some[:, 0]].astype(np.float64) - table[:, some[:, 1]]
            total[start : start + step] += np.einsum("ij,ij->j", apart, apart)
        return {"squared": total}

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return {"squared": a["squared"] + b["squared"]} if a and b else a or b

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:  # noqa: D102
        return {"squared": to_numpy(state["squared"])}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        return 24 * len(self.pairs), 24 * max(SLICE_ITEMS, rows)
