"""Sums of every feature over the images of each class: what class means and class selectivity are made of."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, Sums, flat, placed, spans


@dataclass(frozen=True)
class ClassSums(Sums):
    """Count, sum and sum of squares of each feature over the images of each class, in float64.

    Parameters
    ----------
    labels : array (images,) of int64
        Class of every image, by the number that ``origin["image"]`` gives it; −1 takes part in no class.
    classes : int
        Number of classes.
    """

    labels: NDArray[np.int64]
    classes: int
    whole_rows: ClassVar[bool] = False

    @property
    def key(self) -> str:
        """Name of its states; other labels give another name."""
        labels = np.ascontiguousarray(self.labels, dtype=np.int64)
        return f"class_sums-{self.classes}-{zlib.crc32(labels.data):08x}"

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        block = blocks[0]
        table = flat(block)
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        if not state:
            shape = (self.classes, *block.shape[1:])
            state = {
                "count": xp.zeros((self.classes,), dtype=xp.int64, device=where),
                "sum": xp.zeros(shape, dtype=xp.float64, device=where),
                "squares": xp.zeros(shape, dtype=xp.float64, device=where),
            }
        sums, squares = (xp.reshape(state[name], (self.classes, -1)) for name in ("sum", "squares"))
        labels = np.asarray(self.labels)[origin["image"]]
        for of_class in np.unique(labels[labels >= 0]):
            members = np.flatnonzero(labels == of_class)
            state["count"][int(of_class)] += len(members)
            rows = placed(members, xp, where)
            for columns in spans(table.shape[1], SLICE_ITEMS // len(members)):
                some = xp.astype(table[rows, columns], xp.float64)  # take would copy all rows of the slice first
                sums[int(of_class), columns] += xp.sum(some, axis=0)
                squares[int(of_class), columns] += xp.sum(some * some, axis=0)
        return state

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return count (int64), sum and squares (float64), all (class, *features)."""
        found = super().finalise(state)
        count = found["count"].reshape(-1, *[1] * (found["sum"].ndim - 1))
        return {**found, "count": np.broadcast_to(count, found["sum"].shape)}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        state = 8 * self.classes * (2 * features + 1)
        # A slice as it is stored, in float64, and squared; in a merge the new state. Labels are gathered and compared.
        return state, 24 * max(rows, min(SLICE_ITEMS, rows * features)) + 32 * rows + 32 * features + state
