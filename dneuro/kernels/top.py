"""The images with the largest or smallest value of every feature, exactly, under any blocking.

Value and image are packed into one 64-bit integer: the order-preserving bits of the float32 above, the
image, counted down, below. So a plain integer comparison sorts by value, ties go to the lower image, and the
result is the same bit for bit however the images are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, take_along, to_numpy

_LOW = 0xFFFFFFFF
_NAN = -(2**31) + 1  # below the key of -inf: NaN comes last, at either end


def _pack(values: Array, images: NDArray[np.int64], largest: bool) -> Array:
    """Return int64 keys of `values` (rows, features): larger means further ahead."""
    xp = array_api_compat.array_namespace(values)
    values = xp.astype(values, xp.float32) + 0.0  # -0.0 becomes 0.0: equal values must tie
    missing = xp.isnan(values)
    torch = array_api_compat.is_torch_array(values)
    bits: Array = values.view(xp.int32) if torch else np.ascontiguousarray(values).view(np.int32)
    key = xp.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    if not largest:
        key = ~key
    key = xp.astype(xp.where(missing, xp.full_like(key, _NAN), key), xp.int64)
    below = xp.asarray(_LOW - images, device=array_api_compat.device(values))
    return (key << 32) | below[:, None]


def _unpack(keys: NDArray[np.int64], largest: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (values, images) of packed keys."""
    high = (keys >> 32).astype(np.int32)
    ordered = high if largest else ~high
    bits = np.where(ordered >= 0, ordered, ordered ^ np.int32(0x7FFFFFFF)).astype(np.int32)
    values = np.where(high == _NAN, np.float32(np.nan), bits.view(np.float32))
    return values, _LOW - (keys & _LOW)


def _first(keys: Array, k: int) -> Array:
    """Return the row numbers (k, features) of the k largest keys of every column, in no order."""
    if array_api_compat.is_torch_array(keys):
        return keys.topk(k, dim=0, sorted=False).indices
    return np.argpartition(keys, keys.shape[0] - k, axis=0)[keys.shape[0] - k :]


@dataclass(frozen=True)
class TopK:
    """The `k` images with the largest (or smallest) value of each feature.

    The first block holds values; a second one, if given, the position that goes with each value.

    Parameters
    ----------
    k : int
        Images kept per feature; fewer if there are fewer images.
    largest : bool
        The upper end, or the lower.
    """

    k: int
    largest: bool = True
    whole_rows: ClassVar[bool] = False

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        block = blocks[0]
        xp = array_api_compat.array_namespace(block)
        shape = tuple(block.shape[1:])
        table = xp.reshape(block, (block.shape[0], -1))
        places = xp.reshape(blocks[1], table.shape) if len(blocks) > 1 and blocks[1] is not None else None
        old = {name: xp.reshape(array, (array.shape[0], -1)) for name, array in state.items()}
        step = max(1, SLICE_ITEMS // max(1, block.shape[0]))
        parts = []
        for start in range(0, table.shape[1], step):
            columns = slice(start, start + step)
            new = {"key": _pack(table[:, columns], origin["image"], self.largest)}
            if places is not None:
                new["position"] = places[:, columns]
            parts.append(self._enter({name: array[:, columns] for name, array in old.items()}, new))
        joined = {name: xp.concat([part[name] for part in parts], axis=1) for name in parts[0]}
        return {name: xp.reshape(array, (array.shape[0], *shape)) for name, array in joined.items()}

    def _enter(self, old: State, new: State) -> State:
        """Merge tables of candidates (rows, features); only rows that beat the worst kept take part."""
        if old and old["key"].shape[0] >= self.k:
            xp = array_api_compat.array_namespace(new["key"])
            rows = xp.any(new["key"] > xp.min(old["key"], axis=0)[None, :], axis=1)
            if not bool(xp.any(rows)):
                return old
            new = {name: array[rows, :] for name, array in new.items()}
        return self._cut(old, new)

    def _cut(self, a: State, b: State) -> State:
        xp = array_api_compat.array_namespace(b["key"])
        both = {name: xp.concat([a[name], b[name]]) for name in b} if a else b
        if both["key"].shape[0] <= self.k:
            return both
        shape = tuple(both["key"].shape[1:])
        tables = {name: xp.reshape(array, (array.shape[0], -1)) for name, array in both.items()}
        which = _first(tables["key"], self.k)
        return {name: xp.reshape(take_along(t, which, 0), (self.k, *shape)) for name, t in tables.items()}

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return self._cut(a, b) if a and b else a or b

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return ``value`` (float32), ``image`` and, if given, ``position``: (rank, *features), best first."""
        keys = to_numpy(state["key"])
        order = np.argsort(-keys, axis=0, kind="stable")
        values, images = _unpack(np.take_along_axis(keys, order, axis=0), self.largest)
        results: dict[str, NDArray[Any]] = {"value": values, "image": images}
        if "position" in state:
            results["position"] = np.take_along_axis(to_numpy(state["position"]), order, axis=0)
        return results

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        kept = min(self.k, images)
        return 12 * kept * features, 40 * max(SLICE_ITEMS, rows) + 12 * (kept + rows) * min(
            features, SLICE_ITEMS // max(1, rows) + 1
        ) * 2 + 12 * kept * features
