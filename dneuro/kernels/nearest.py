"""Chosen images, the nearest of a few centres to every image, and the means of those that are nearest to each."""

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
class Gather:
    """The standardised activations of chosen images.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    chosen : array (images,) of int64
        Their numbers, as ``origin["image"]`` gives them.
    """

    standardise: Standardise
    chosen: NDArray[np.int64]
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        rows = np.flatnonzero(np.isin(origin["image"], self.chosen))
        if not len(rows):
            return state
        z = self.standardise.apply(xp.take(table, placed(rows, xp, where), axis=0))
        return join_rows(state, {"image": placed(origin["image"][rows], xp, where), "z": z})

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return join_rows(a, b)

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return image (chosen,) in ascending order and z (chosen, features)."""
        return rows_by_image(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        # Any block may hold all that were chosen; each is taken, standardised in float64, and joined to the state.
        state = 8 * min(images, len(self.chosen)) * (features + 1)
        return state, 24 * min(rows, len(self.chosen)) * features + state + 32 * rows + 8 * len(self.chosen)


def _nearest(z: Array, centres: Array) -> Array:
    """Return the number of the nearest centre to each row."""
    xp = array_api_compat.array_namespace(z)
    norms = xp.sum(centres * centres, axis=1)
    return xp.argmin(norms[None, :] - 2 * xp.matmul(z, centres.T), axis=1)


@dataclass(frozen=True)
class Lloyd(Sums):
    """Of each centre, how many images are nearest to it, and their sum, in float64: an iteration of k-means.

    Found are count (centres,) of int64 and sum (centres, features).

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    centres : array (centres, features) of float64
        Points among the rows of Z.
    """

    standardise: Standardise
    centres: NDArray[np.float64]
    whole_rows: ClassVar[bool] = True

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        centres = placed(self.centres, xp, where)
        numbers = xp.arange(len(self.centres), device=where)
        if not state:
            count = xp.zeros((len(self.centres),), dtype=xp.int64, device=where)
            state = {"count": count, "sum": xp.zeros_like(centres)}
        for rows in row_slices(table):
            z = self.standardise.apply(table[rows, :])
            own = _nearest(z, centres)[:, None] == numbers[None, :]
            state["count"] += xp.sum(own, axis=0, dtype=xp.int64)
            state["sum"] += xp.matmul(xp.astype(own, xp.float64).T, z)
        return state

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        count = len(self.centres)
        state = 8 * count * (features + 1)
        # A slice, standardised; distances, which is nearest, and that as numbers; centres; what is added or merged.
        return state, 24 * max(SLICE_ITEMS, features) + 40 * rows * count + 3 * state


@dataclass(frozen=True)
class Nearest:
    """For every image the nearest centre and the squared distance from it.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    centres : array (centres, features) of float64
        Points among the rows of Z.
    """

    standardise: Standardise
    centres: NDArray[np.float64]
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        centres = placed(self.centres, xp, where)
        nearest, squared = [], []
        for rows in row_slices(table):
            z = self.standardise.apply(table[rows, :])
            first = _nearest(z, centres)
            z -= xp.take(centres, first, axis=0)  # directly: nothing of a short distance cancels
            nearest.append(first)
            squared.append(xp.sum(z * z, axis=1))
        images = placed(origin["image"], xp, where)
        return join_rows(state, {"image": images, "nearest": xp.concat(nearest), "squared": xp.concat(squared)})

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return join_rows(a, b)

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return image (images,) in ascending order, nearest (images,) of int64, squared (images,)."""
        return rows_by_image(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        count = len(self.centres)
        one_slice = max(SLICE_ITEMS, features)
        return 24 * images, 32 * one_slice + 24 * rows * count + 8 * features * count + 24 * images + 48 * rows
