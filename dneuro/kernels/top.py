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

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, flat, placed, spans, take_along, to_numpy

LEAST_ROWS = 512
"""Images that are looked at together, if there are so many."""

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
    below = placed(_LOW - images, xp, array_api_compat.device(values))
    return (key << 32) | below[:, None]


def _unpack(keys: NDArray[np.int64], largest: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (values, images) of packed keys."""
    high = (keys >> 32).astype(np.int32)
    ordered = high if largest else ~high
    bits = np.where(ordered >= 0, ordered, ordered ^ np.int32(0x7FFFFFFF)).astype(np.int32)
    values = np.where(high == _NAN, np.float32(np.nan), bits.view(np.float32))
    return values, _LOW - (keys & _LOW)


def _entering(
    values: NDArray[np.float32], images: NDArray[np.int64], bar: NDArray[np.int64], largest: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the values whose keys are above the bar of their column; no key is made for it."""
    least, holder = _unpack(bar, largest)
    enters = values > least if largest else values < least
    if images.min() < holder.max():  # a tie goes to the lower image: never to a later one
        enters |= (values == least) & (images[:, None] < holder)
    if np.isnan(least).any():  # NaN is last: whatever is none goes before it
        enters |= np.isnan(least) & (~np.isnan(values) | (images[:, None] < holder))
    found = np.flatnonzero(enters)  # several times as fast as by rows and columns
    rows = found // enters.shape[1]
    return rows, found - rows * enters.shape[1]


def _stacked(columns: NDArray[np.int64], features: int) -> tuple[NDArray[np.int64], int]:
    """Return for entries of columns the row of a table in which each column's entries lie on top of each other."""
    counts = np.bincount(columns, minlength=features)
    order = np.argsort(columns.astype(np.uint16) if features <= 1 << 16 else columns, kind="stable")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.empty(len(columns), dtype=np.int64)
    place[order] = np.arange(len(columns)) - starts
    return place, int(counts.max(initial=0))


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
    long_runs: ClassVar[bool] = True

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

        shape = tuple(block.shape[1:])
        # Long enough that looking up what is kept costs little, short enough that the first does not sort everything.
        for rows in spans(table.shape[0], max(4 * self.k, LEAST_ROWS, SLICE_ITEMS // table.shape[1])):
            images, some = origin["image"][rows], {name: t[rows, :] for name, t in tables.items()}
            if isinstance(table, np.ndarray) and state and state["key"].shape[0] == self.k:
                self._let_in(state, some, images)
                continue

            def candidates(columns: slice, some: State = some, images: Any = images) -> State:
                keys = _pack(some["key"][:, columns], images, self.largest)
                return {name: keys if name == "key" else t[:, columns] for name, t in some.items()}

            state = self._enter(state, some, shape, candidates, in_place=True)
        return state

    def _let_in(self, state: State, tables: State, images: NDArray[np.int64]) -> None:
        """Let the few values in that beat the worst kept of their feature, into a state that is full; in place."""
        rows, features = tables["key"].shape
        old = {name: array.reshape(self.k, features) for name, array in state.items()}
        for columns in spans(features, max(1, SLICE_ITEMS // (2 * (rows + self.k)))):
            kept = {name: array[:, columns] for name, array in old.items()}
            values = tables["key"][:, columns].astype(np.float32, copy=False)
            bar = kept["key"].min(axis=0)
            row, column = _entering(values, images, bar, self.largest)
            if not len(row):
                continue
            place, height = _stacked(column, len(bar))
            keys = np.full((height, len(bar)), np.iinfo(np.int64).min)
            keys[place, column] = _pack(values[row, column][:, None], images[row], self.largest)[:, 0]
            new = {"key": keys}
            if "position" in tables:
                new["position"] = np.zeros(keys.shape, dtype=np.int32)
                new["position"][place, column] = tables["position"][:, columns][row, column]
            for name, best in self._first_of(kept, new).items():
                kept[name][...] = best

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
        if old and old["key"].shape[0] == self.k and array_api_compat.is_torch_array(new["key"]):
            # Most rows hold nothing that beats the worst kept: only the others are sorted.
            rows = xp.any(new["key"] > xp.min(old["key"], axis=0)[None, :], axis=1)
            if not bool(xp.any(rows)):
                return old
            new = {name: array[rows, :] for name, array in new.items()}
        both = {name: xp.concat([old[name], new[name]]) for name in new} if old else new
        if both["key"].shape[0] <= self.k:
            return both
        if len(both) == 1 and isinstance(both["key"], np.ndarray):
            # Keys say all there is to know: no need to know where each was. Along contiguous rows it is fastest.
            keys = np.ascontiguousarray(both["key"].T)
            keys.partition(keys.shape[1] - self.k, axis=1)
            return {"key": keys[:, keys.shape[1] - self.k :].T}
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
        most = kept + max(rows, kept)
        one_slice = max(most, min(SLICE_ITEMS, 2 * most * features))
        # A slice: keys and what they are made of, candidates and kept joined, their order; then the new state.
        return 12 * kept * features, 48 * one_slice + 12 * kept * features
