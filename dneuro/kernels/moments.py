"""Count, mean, variance, extremes and fraction active, by the pairwise update of Chan et al.

Every slice is summarised in float64 about its own mean and merged, so that no large sum of squares is
ever subtracted from another: the variance is right at any ratio of mean to spread.

References
----------
Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, placed, spans, to_numpy

CACHE_ITEMS = 1 << 16
"""Rows are summarised in runs of about this many elements: in float64 these stay in a core's cache (512 KiB), which is
three times faster than a long row in one piece."""


def _summarise(values: Array, axis: int) -> State:
    """Return the moments of `values` (float64) over one axis."""
    xp = array_api_compat.array_namespace(values)
    mean = xp.mean(values, axis=axis)
    spread = values - xp.expand_dims(mean, axis=axis)
    return {
        "count": xp.full(mean.shape, values.shape[axis], dtype=xp.int64, device=array_api_compat.device(mean)),
        "mean": mean,
        "m2": xp.sum(spread * spread, axis=axis),
        "min": xp.min(values, axis=axis),
        "max": xp.max(values, axis=axis),
        "active": xp.sum(values > 0, axis=axis, dtype=xp.int64),
    }


def _joined(parts: list[State], shape: tuple[int, ...]) -> State:
    """Return the moments of neighbouring slices as one state of that shape."""
    xp = array_api_compat.array_namespace(parts[0]["mean"])
    return {name: xp.reshape(xp.concat([part[name] for part in parts]), shape) for name in parts[0]}


def _results(state: State) -> dict[str, NDArray[Any]]:
    named = {name: to_numpy(array) for name, array in state.items()}
    # The mean of equal numbers is rounded, and all of them lie beside it.
    varies = named["max"] > named["min"]
    variance = np.where(varies, named["m2"] / named["count"], 0.0)
    return {
        "count": named["count"],
        "mean": np.where(varies, named["mean"], named["min"]),
        "std": np.sqrt(variance),
        "variance": variance,
        "min": named["min"],
        "max": named["max"],
        "fraction_active": named["active"] / named["count"],
    }


@dataclass(frozen=True)
class Moments:
    """Moments of each feature over the images; population variance (divided by the count)."""

    whole_rows: ClassVar[bool] = False
    key: ClassVar[str] = "moments"

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        block = blocks[0]
        table = flat(block)
        xp = array_api_compat.array_namespace(table)
        for rows in spans(table.shape[0], SLICE_ITEMS):
            # As many rows as there are: every merge goes through a state that is wider than a few rows.
            height = rows.stop - rows.start
            parts = [
                _summarise(xp.astype(table[rows, columns], xp.float64), axis=0)
                for columns in spans(table.shape[1], SLICE_ITEMS // height)
            ]
            state = self.merge(state, _joined(parts, block.shape[1:]))
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        xp = array_api_compat.array_namespace(a["mean"], b["mean"])
        count = a["count"] + b["count"]
        apart = b["mean"] - a["mean"]
        share = xp.astype(b["count"], xp.float64) / xp.astype(count, xp.float64)
        return {
            "count": count,
            "mean": a["mean"] + apart * share,
            "m2": a["m2"] + b["m2"] + apart * apart * a["count"] * share,
            "min": xp.minimum(a["min"], b["min"]),
            "max": xp.maximum(a["max"], b["max"]),
            "active": a["active"] + b["active"],
        }

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:  # noqa: D102
        return _results(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        # A slice: its values, their distances from the mean, the squares of these; then old, new and merged state.
        return 48 * features, 26 * min(SLICE_ITEMS, rows * features) + 160 * features


@dataclass(frozen=True)
class ImageMoments:
    """Moments of each image over its features; one row per image, laid end to end."""

    whole_rows: ClassVar[bool] = True
    key: ClassVar[str] = "image_moments"

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        xp = array_api_compat.array_namespace(table)
        images = placed(origin["image"], xp, array_api_compat.device(table))
        parts = [self._rows(table[rows, :]) for rows in spans(table.shape[0], CACHE_ITEMS // table.shape[1])]
        return self.merge(state, {"image": images, **_joined(parts, images.shape)})

    @staticmethod
    def _rows(rows: Array) -> State:
        """Return the moments of a few rows, run of features by run of features: the cut is the same for every row."""
        xp = array_api_compat.array_namespace(rows)
        parts = (_summarise(xp.astype(rows[:, some], xp.float64), axis=1) for some in spans(rows.shape[1], CACHE_ITEMS))
        return reduce(Moments().merge, parts)

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        xp = array_api_compat.array_namespace(a["mean"], b["mean"])
        return {name: xp.concat([a[name], b[name]]) for name in a}

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:  # noqa: D102
        order = np.argsort(to_numpy(state["image"]))
        rest = {name: to_numpy(array)[order] for name, array in state.items()}
        return {"image": rest.pop("image"), **_results(rest)}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        return 56 * images, 26 * max(SLICE_ITEMS, features) + 56 * images + 112 * rows
