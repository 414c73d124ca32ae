"""Features of two arrays over the same images: what a regression of one on the other is made of."""

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
    flat,
    join_rows,
    placed,
    rows_by_image,
    spans,
    to_numpy,
)
from dneuro.kernels.products import LEAST_ROWS


@dataclass(frozen=True)
class PairedProducts:
    """Sums and products of regressors A and targets B about a shift, apart for each fold of the images, in float64.

    The blocks are A (images, sources) and B (images, targets). Kept are AᵀA, AᵀB and the squares of B, not BᵀB. The
    shift is the mean of the first block, so that nothing large is squared.

    Parameters
    ----------
    fold : array (images,) of int64
        Fold of every image, by the number that ``origin["image"]`` gives it; those that are read lie in 0…folds − 1.
    folds : int
        Number of folds, at least 1.
    sources, targets : int
        Features of A and of B.
    shift : array (sources + targets,), optional
        The shift of an earlier pass, so that its sums and these can be subtracted from each other.
    """

    fold: NDArray[np.int64]
    folds: int
    sources: int
    targets: int
    shift: NDArray[np.float64] | None = None
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        a, b = (flat(block) for block in blocks)
        state = state or self._nothing(a, b)
        xp = array_api_compat.array_namespace(a, b)
        where = array_api_compat.device(a)
        of_rows = self.fold[origin["image"]]
        for number in np.unique(of_rows).tolist():
            members = np.flatnonzero(of_rows == number)
            for some in spans(len(members), self._rows):
                rows = placed(members[some], xp, where)
                both = [xp.astype(xp.take(block, rows, axis=0), xp.float64) for block in (a, b)]
                z = xp.concat(both, axis=1)
                del both
                z -= state["shift"]
                state["count"][number] += len(rows)
                state["sum"][number, :] += xp.sum(z, axis=0)
                state["squares"][number, :] += xp.sum(z[:, self.sources :] ** 2, axis=0)
                for part in self._parts:  # a whole matrix of products at a time would be as large as the state
                    state["products"][number, part, :] += xp.matmul(z[:, part].T, z)
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        apart = b["shift"] - a["shift"]
        count, its = b["count"][:, None], b["sum"][:, self.sources :]
        far = apart[self.sources :]
        products = a["products"] + b["products"]
        for fold in range(self.folds):
            half = b["sum"][fold, :] + b["count"][fold] * apart
            for part in self._parts:
                products[fold, part, :] += apart[part, None] * half[None, :]
                products[fold, part, :] += b["sum"][fold, part, None] * apart[None, :]
        return {
            "shift": a["shift"],
            "count": a["count"] + b["count"],
            "sum": a["sum"] + b["sum"] + count * apart[None, :],
            "squares": a["squares"] + b["squares"] + 2 * far[None, :] * its + count * far[None, :] ** 2,
            "products": products,
        }

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return shift, count (folds,), sum, squares (folds, targets), products (folds, sources, sources + targets)."""
        return {name: to_numpy(array) for name, array in state.items()}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        wide = self.sources + self.targets
        state = self.folds * 8 * (self.sources * wide + wide + self.targets + 1) + 8 * wide
        # Rows in float64 and once more while they are joined, and a slice of products; in a merge the new state.
        update = max(16 * min(rows, self._rows) * wide + 8 * max(SLICE_ITEMS, wide), 8 * rows * wide)
        small = 64 * (self.folds + 1) * wide + 64 * rows + 8 * len(self.fold)
        return state, max(update, state + 16 * max(SLICE_ITEMS, wide)) + small

    @property
    def _rows(self) -> int:
        """Rows that are multiplied at a time."""
        return max(LEAST_ROWS, SLICE_ITEMS // (self.sources + self.targets))

    @property
    def _parts(self) -> list[slice]:
        """The sources, in slices whose products are small."""
        return list(spans(self.sources, SLICE_ITEMS // (self.sources + self.targets)))

    def _nothing(self, a: Array, b: Array) -> State:
        """Return the state of no images, about the mean of these."""
        xp = array_api_compat.array_namespace(a, b)
        where, wide = array_api_compat.device(a), self.sources + self.targets
        if self.shift is None:
            shift = xp.concat([xp.mean(xp.astype(block, xp.float64), axis=0) for block in (a, b)])
        else:
            shift = placed(self.shift, xp, where)
        sizes = {"count": (), "sum": (wide,), "squares": (self.targets,), "products": (self.sources, wide)}
        zeros = {name: xp.zeros((self.folds, *size), dtype=xp.float64, device=where) for name, size in sizes.items()}
        return {"shift": shift, **zeros}


@dataclass(frozen=True)
class PairedRows:
    """The features of two arrays themselves, as they are stored: for few images.

    Parameters
    ----------
    row_bytes : int
        Bytes of all features of an image.
    """

    row_bytes: int
    whole_rows: ClassVar[bool] = True
    by_image: ClassVar[tuple[str, ...]] = ("image", "a", "b")

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        a, b = (flat(block) for block in blocks)
        xp = array_api_compat.array_namespace(a, b)
        images = placed(origin["image"], xp, array_api_compat.device(a))
        # Copies: a block is not kept beyond its update.
        return self.merge(state, {"image": images, "a": xp.asarray(a, copy=True), "b": xp.asarray(b, copy=True)})

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return join_rows(a, b)

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return image (images,) in ascending order, a (images, sources) and b (images, targets)."""
        return rows_by_image(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        state = images * (self.row_bytes + 8)
        return state, state + rows * (self.row_bytes + 8)
