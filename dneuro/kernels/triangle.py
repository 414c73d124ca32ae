"""The triangular factor of tall matrices, block by block: nothing is squared, so small singular values survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, row_slices, to_numpy
from dneuro.kernels.standardise import Standardise


@dataclass(frozen=True)
class Triangle:
    """R of Z = QR in float64; Q is never made.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.

    References
    ----------
    Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel and sequential QR and LU factorizations",
    SIAM Journal on Scientific Computing 34 (2012): TSQR.
    """

    standardise: Standardise
    whole_rows: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """Name of its states; empty where Z follows from an earlier pass."""
        return self.standardise.key_of("triangle")

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        # A factorisation of R and some rows costs as if R had as many: so at least twice that.
        for rows in row_slices(table, 2 * table.shape[1]):
            state = self.merge(state, {"triangle": triangle_of(self.standardise.apply(table[rows, :]))})
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        xp = array_api_compat.array_namespace(a["triangle"], b["triangle"])
        return {"triangle": triangle_of(xp.concat([a["triangle"], b["triangle"]]))}

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return triangle (min(images, features), features)."""
        return {"triangle": to_numpy(state["triangle"])}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        tall, high = min(rows, max(2 * features, SLICE_ITEMS // features + 1)), min(images, features)
        # A slice standardised and on the way there, its triangle, what is factorised and LAPACK's copy of it.
        return 8 * features * high, 24 * features * (tall + 2 * high) + 16 * features * tall


def triangle_of(table: Array) -> Array:
    """Return R of QR, of a matrix or of each of many."""
    if array_api_compat.is_torch_array(table):
        return array_api_compat.array_namespace(table).linalg.qr(table, mode="r")[1]
    return np.linalg.qr(table, mode="r")
