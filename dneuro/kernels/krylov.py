"""One step of the block Krylov method: Z·Q and Zᵀ·(Z·Q) from one read of the activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, placed, rows_by_image, spans, to_numpy
from dneuro.kernels.standardise import Standardise

SINGLE_ITEMS = 2 * SLICE_ITEMS
"""Elements of a slice in float32: as many bytes as the slices of other kernels have in float64."""


@dataclass(frozen=True)
class Step:
    """T = ZQ, one row per image, and W = ZᵀT; Z never exists as a whole.

    Parameters
    ----------
    standardise : Standardise
        How activations become Z.
    vectors : array (features, columns) of float64
        Q.
    single : bool
        Multiply in float32; sums over slices are float64 in any case.

    Notes
    -----
    W is kept as columns × features, which is how BLAS makes it fastest.
    """

    standardise: Standardise
    vectors: NDArray[np.float64]
    single: bool = False
    whole_rows: ClassVar[bool] = True
    by_image: ClassVar[tuple[str, ...]] = ("image", "score")

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        q = placed(self.vectors, xp, where, dtype=xp.float32 if self.single else xp.float64)
        if "product" not in state:
            zeros = xp.zeros((q.shape[1], table.shape[1]), dtype=xp.float64, device=where)
            state = {**state, "total": xp.zeros((), dtype=xp.float64, device=where), "product": zeros}
        scores = []
        for rows in self._slices(table.shape):
            z = self.standardise.apply(table[rows, :], single=self.single)
            with np.errstate(over="ignore", invalid="ignore"):  # seen by who asked, who then asks for float64
                score = xp.matmul(z, q)
                state["product"] += xp.matmul(score.T, z)
            state["total"] = state["total"] + self._energy(z)
            scores.append(score)
        images = placed(origin["image"], xp, where)
        return self.merge(state, {"image": images, "score": xp.concat(scores)})

    def _slices(self, shape: tuple[int, ...]) -> Any:
        # Each slice adds a product columns × features to the state; with few rows that costs more than the slice.
        items = SINGLE_ITEMS if self.single else SLICE_ITEMS
        return spans(shape[0], max(min(512, 1 + self.vectors.shape[1] // 4), items // shape[1]))

    def _energy(self, z: Array) -> Array:
        xp = array_api_compat.array_namespace(z)
        if self.standardise.mode == "image":  # every row that lives has variance 1: count them
            return z.shape[1] * xp.sum(xp.any(z != 0, axis=1), dtype=xp.float64)
        total = xp.zeros((), dtype=xp.float64, device=array_api_compat.device(z))
        for some in spans(z.shape[0], SLICE_ITEMS // z.shape[1]):
            wide = xp.astype(z[some, :], xp.float64)
            total = total + xp.sum(wide * wide)
        return total

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        xp = array_api_compat.array_namespace(*a.values(), *b.values())
        merged = {}
        for name in {**a, **b}:
            if name not in a or name not in b:
                merged[name] = a[name] if name in a else b[name]
            else:
                merged[name] = xp.concat([a[name], b[name]]) if name in self.by_image else a[name] + b[name]
        return merged

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return total (), product (features, columns), image (images,), ascending, and score (images, columns)."""
        rows = rows_by_image({name: state[name] for name in self.by_image})
        return {"total": to_numpy(state["total"]), "product": to_numpy(state["product"]).T, **rows}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        columns, size = self.vectors.shape[1], 4 if self.single else 8
        least = min(rows, min(512, 1 + columns // 4)) * features
        one_slice = max(SINGLE_ITEMS if self.single else SLICE_ITEMS, least)
        summed = 8 * features * columns + 8
        gathered = images * (size * columns + 8)
        # A slice, its square; the product that is added or merged, and the vectors, which every worker holds twice.
        work = 3 * size * one_slice + 16 * SLICE_ITEMS + 8 * rows * columns
        return summed + gathered, work + 2 * summed + 2 * gathered
