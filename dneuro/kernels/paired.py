"""Products of the features of two arrays over the same images: what a regression of one on the other is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, placed, spans, to_numpy


@dataclass(frozen=True)
class PairedProducts:
    """Sums and products of regressors A and targets B about a shift, apart for each fold of the images, in float64.

    The blocks are A (images, sources) and B (images, targets). Kept are AᵀA, AᵀB and the squares of B, not BᵀB. The
    shift is the mean of the first block, so that nothing large is squared.

    Parameters
    ----------
    fold : array (images,) of int64
        Fold of every image, by the number that ``origin["image"]`` gives it.
    folds : int
        Number of folds, at least 1.
    sources, targets : int
        Features of A and of B.
    """

    fold: NDArray[np.int64]
    folds: int
    sources: int
    targets: int
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        a, b = (flat(block) for block in blocks)
        xp = array_api_compat.array_namespace(a, b)
        where = array_api_compat.device(a)
        if not state:
            mean = [xp.mean(xp.astype(block, xp.float64), axis=0) for block in (a, b)]
            wide = self.sources + self.targets
            state = {
                "shift": xp.concat(mean),
                "count": xp.zeros((self.folds,), dtype=xp.float64, device=where),
                "sum": xp.zeros((self.folds, wide), dtype=xp.float64, device=where),
                "squares": xp.zeros((self.folds, self.targets), dtype=xp.float64, device=where),
                "products": xp.zeros((self.folds, self.sources, wide), dtype=xp.float64, device=where),
            }
        of_rows = self.fold[origin["image"]]
        for number in np.unique(of_rows).tolist():
            members = np.flatnonzero(of_rows == number)
            for some in spans(len(members), SLICE_ITEMS // (self.sources + self.targets)):
                rows = placed(members[some], xp, where)
                both = [xp.astype(xp.take(block, rows, axis=0), xp.float64) for block in (a, b)]
                z = xp.concat(both, axis=1) - state["shift"]
                state["count"][number] += len(rows)
                state["sum"][number, :] += xp.sum(z, axis=0)
                state["squares"][number, :] += xp.sum(z[:, self.sources :] ** 2, axis=0)
                state["products"][number, :, :] += xp.matmul(z[:, : self.sources].T, z)
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        apart = b["shift"] - a["shift"]
        count, own, its = b["count"][:, None], b["sum"][:, : self.sources], b["sum"][:, self.sources :]
        near, far = apart[: self.sources], apart[self.sources :]
        xp = array_api_compat.array_namespace(apart)
        products = xp.stack([
            a["products"][fold, :, :] + b["products"][fold, :, :]
            + near[:, None] * b["sum"][fold, None, :] + own[fold, :, None] * apart[None, :]
            + b["count"][fold] * near[:, None] * apart[None, :]
            for fold in range(self.folds)
        ])  # fmt: skip
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
        one = 8 * self.sources * wide
        state = self.folds * (one + 8 * (wide + self.targets + 1)) + 8 * wide
        # A slice in float64, twice, and the product that is added; in a merge the new state and the terms of a fold.
        return state, 32 * max(SLICE_ITEMS, wide) + 8 * rows * wide + 8 * len(self.fold) + 2 * state + 4 * one
