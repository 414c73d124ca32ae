"""Sums of what lies off the diagonal of a square matrix: what an average over all pairs is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import array_api_compat
import numpy as np

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, Sums, placed, row_slices


@dataclass(frozen=True)
class OffDiagonal(Sums):
    """Count (int64), sum and squares (float64) of each column of a matrix, without its diagonal and NaN."""

    whole_rows: ClassVar[bool] = False

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = blocks[0]
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        if not state:
            kinds = {"count": xp.int64, "sum": xp.float64, "squares": xp.float64}
            state = {name: xp.zeros((table.shape[1],), dtype=kind, device=where) for name, kind in kinds.items()}
        numbers = next((places for name, places in origin.items() if name != "image"), np.arange(table.shape[1]))
        columns = placed(numbers, xp, where)
        for rows in row_slices(table):
            own = placed(origin["image"][rows], xp, where)
            some = xp.astype(table[rows, :], xp.float64)
            counts = ~xp.isnan(some) & (own[:, None] != columns[None, :])
            some = xp.where(counts, some, xp.zeros_like(some))
            state["count"] += xp.sum(xp.astype(counts, xp.int64), axis=0)
            state["sum"] += xp.sum(some, axis=0)
            state["squares"] += xp.sum(some * some, axis=0)
        return state

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        # A slice in float64, without what does not count, squared; what counts, as bool, int64 and while compared.
        return 24 * features, 40 * max(SLICE_ITEMS, features) + 24 * features
