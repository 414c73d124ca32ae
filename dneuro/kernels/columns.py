"""Chosen columns of images × features, as they are and standardised: the responses of single neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, join_rows, placed, row_slices, rows_by_image
from dneuro.kernels.standardise import Standardise


@dataclass(frozen=True)
class Columns:
    """The values of chosen features for every image, before and after the standardisation of all features.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    columns : array (columns,) of int64
        Numbers of the features that are kept.
    """

    standardise: Standardise
    columns: NDArray[np.int64]
    whole_rows: ClassVar[bool] = True
    by_image: ClassVar[tuple[str, ...]] = ("image", "raw", "value")

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        columns = placed(self.columns, xp, where)
        raw = xp.astype(xp.take(table, columns, axis=1), xp.float64)
        made = [xp.take(self.standardise.apply(table[rows, :]), columns, axis=1) for rows in row_slices(table)]
        images = placed(origin["image"], xp, where)
        return self.merge(state, {"image": images, "raw": raw, "value": xp.concat(made)})

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return join_rows(a, b)

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return image (images,) in ascending order, raw and value (images, columns)."""
        return rows_by_image(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        width = len(self.columns)
        state = 8 * images * (2 * width + 1)
        return state, 24 * max(SLICE_ITEMS, features) + state + 40 * rows * width
