"""The images with the largest or smallest value of every feature, exactly, under any blocking.

Value and image are packed into one 64-bit integer: the order-preserving bits of the float32 above, the
image, counted down, below. So a plain integer comparison sorts by value, ties go to the lower image, and the
result is the same bit for bit however the images are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, spans, take_along, to_numpy

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

    @property
    def key(self) -> str:
        """Name of its states."""
        return f"{self._end}{self.k}"

    @property
    def _end(self) -> str:
        return "top-" if self.largest else "bottom-"

    def serving(self, keys: Iterable[str], images: int) -> str | None:
        """Return the shortest list among `keys` that holds this one: as long, or all of `images`."""
        enough = [length for length in self.lengths(keys) if length >= min(self.k, images)]
        return f"{self._end}{min(enough)}" if enough else None

    def lengths(self, keys: Iterable[str]) -> list[int]:
        """Return how long the lists of this end among `keys` are."""
        return [int(key.removeprefix(self._end)) for key in keys if key.startswith(self._end)]

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        block = blocks[0]
        table = flat(block)
        tables = {"key": table}
        if len(blocks) > 1 and blocks[1] is not None:
            tables["position"] = flat(blocks[1])

        def candidates(columns: slice) -> State:
            keys = _pack(table[:, columns], origin["image"], self.largest)
            return {name: keys if name == "key" else t[:, columns] for name, t in tables.items()}

        return self._enter(state, tables, tuple(block.shape[1:]), candidates, in_place=True)

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        tables = {name: flat(array) for name, array in b.items()}

        def candidates(columns: slice) -> State:
            return {name: t[:, columns] for name, t in tables.items()}

        return self._enter(a, tables, tuple(b["key"].shape[1:]), candidates, in_place=False)

    def _enter(
        self,
        state: State,
        tables: State,
        shape: tuple[int, ...],
        candidates: Callable[[slice], State],
        *,
        in_place: bool,
    ) -> State:
        """Let candidates (rows, features) into a state, some columns at a time."""
        xp = array_api_compat.array_namespace(tables["key"])
        rows, features = tables["key"].shape
        old = {name: xp.reshape(array, (array.shape[0], features)) for name, array in state.items()}
        held = old["key"].shape[0] if old else 0
        new = old
        if held < self.k or not in_place:
            types = {"key": xp.int64, "position": xp.int32}
            size, where = (min(self.k, held + rows), features), array_api_compat.device(tables["key"])
            new = {name: xp.empty(size, dtype=types[name], device=where) for name in tables}
        for columns in spans(features, SLICE_ITEMS // (held + rows)):
            kept = {name: t[:, columns] for name, t in old.items()}
            best = self._first_of(kept, candidates(columns))
            if best is not kept or new is not old:
                for name, values in best.items():
                    new[name][:, columns] = values
        return {name: xp.reshape(array, (array.shape[0], *shape)) for name, array in new.items()}

    def _first_of(self, old: State, new: State) -> State:
        """Return the first `k` of both, in no order."""
        xp = array_api_compat.array_namespace(new["key"])
        if old and old["key"].shape[0] == self.k:
            # Most rows hold nothing that beats the worst kept: only the others are sorted.
            rows = xp.any(new["key"] > xp.min(old["key"], axis=0)[None, :], axis=1)
            if not bool(xp.any(rows)):
                return old
            new = {name: array[rows, :] for name, array in new.items()}
        both = {name: xp.concat([old[name], new[name]]) for name in new} if old else new
        if both["key"].shape[0] <= self.k:
            return both
        which = _first(both["key"], self.k)
        return {name: take_along(table, which, 0) for name, table in both.items()}

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return ``value`` (float32), ``image`` and, if given, ``position``: (rank, *features), best first."""
        keys = to_numpy(state["key"])
        order = np.argsort(-keys, axis=0, kind="stable")[: self.k]  # a longer list serves a shorter one
        values, images = _unpack(np.take_along_axis(keys, order, axis=0), self.largest)
        results: dict[str, NDArray[Any]] = {"value": values, "image": images}
        if "position" in state:
            results["position"] = np.take_along_axis(to_numpy(state["position"]), order, axis=0)
        return results

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        kept = min(self.k, images)
        # A slice: keys and what they are made of, candidates and kept joined, their order; then the new state.
        return 12 * kept * features, 48 * max(SLICE_ITEMS, rows + kept) + 12 * kept * features
