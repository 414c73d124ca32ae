"""Kernels of the singular value decomposition: ZᵀZ on the way down, Z·V on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import (
    SLICE_ITEMS,
    Array,
    Origin,
    State,
    Sums,
    flat,
    join_rows,
    placed,
    row_slices,
    rows_by_image,
)
from dneuro.kernels.standardise import Standardise


@dataclass(frozen=True)
class Energy(Sums):
    """product, ZᵀZ (features, features), and total, ‖Z‖²_F; Z never exists as a whole.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    """

    standardise: Standardise
    whole_rows: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """Name of its states; empty where Z follows from an earlier pass."""
        return self.standardise.key_of("energy")

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        if not state:
            state = {
                "total": xp.zeros((), dtype=xp.float64, device=where),
                "product": xp.zeros((table.shape[1], table.shape[1]), dtype=xp.float64, device=where),
            }
        for rows in row_slices(table, self._least_rows(table.shape[1])):
            z = self.standardise.apply(table[rows, :])
            state["total"] = state["total"] + xp.sum(z * z)
            state["product"] += xp.matmul(z.T, z)
        return state

    @staticmethod
    def _least_rows(features: int) -> int:
        # Each slice adds a whole product to the state; with fewer rows that costs more than the slice.
        return min(512, 1 + features // 4)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        one_slice = max(SLICE_ITEMS, min(rows, self._least_rows(features)) * features)
        state = 8 * features**2 + 8
        return state, 24 * one_slice + state  # the product that is added or merged


@dataclass(frozen=True)
class Scores:
    """Z times a few vectors: one row per image.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    vectors : array (features, components) of float64
        What Z is multiplied by.
    """

    standardise: Standardise
    vectors: NDArray[np.float64]
    whole_rows: ClassVar[bool] = True
    by_image: ClassVar[tuple[str, ...]] = ("image", "score")

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        vectors = placed(self.vectors, xp, where)
        rows = [xp.matmul(self.standardise.apply(table[rows, :]), vectors) for rows in row_slices(table)]
        images = placed(origin["image"], xp, where)
        return self.merge(state, {"image": images, "score": xp.concat(rows)})

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return join_rows(a, b)

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return image (images,) in ascending order and score (images, components)."""
        return rows_by_image(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        width = self.vectors.shape[1]
        state = 8 * images * (width + 1)
        return state, 24 * max(SLICE_ITEMS, features) + 8 * features * width + state + 24 * rows * width
