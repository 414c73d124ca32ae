"""What is kept of the tiles of a similarity matrix: all, in memory or in a file; the nearest; pairs beyond a limit.

Each way has a worker's half (`tile`, on frozen settings that travel with the task) and a driver's half (`gather`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.metrics import CLOSE, bytes_per_pair, dtype_of
from dneuro.errors import MemoryLimitError
from dneuro.quantities import format_bytes
from dneuro.store.files import Location

Values = Callable[[str], NDArray[Any]]
"""Gives one metric of a tile."""

PAIR_BYTES = 24
"""Bytes of a pair beyond a threshold: two numbers and a value."""

COLLECTED_PAIR_BYTES = 80
"""Bytes of a pair in the driver, at most: kept while as many arrive, or joined and put in order."""

IN_DRIVER = "in the driver, the process that asks"


class Keep(Protocol):
    """The worker's half."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that are asked for."""
        ...

    def start(self) -> Any:
        """Return what a task has kept before its first tile."""
        ...

    def tile(self, kept: Any, rows: slice, columns: slice, values: Values) -> Any:
        """Return what is kept after this tile; ``rows == columns`` on the diagonal, else rows come first."""
        ...

    def kept_bytes(self, tiles: int, now: int, strips: int, width: int) -> tuple[int, int]:
        """Return the bytes that the driver has not fetched yet, and those that a task keeps beyond its products.

        Parameters
        ----------
        tiles, now : int
            Tiles of the task, and those whose products (8 bytes) make room for results at the same time.
        strips, width : int
            Strips that the task is about, and their width.
        """
        ...

    def work_bytes(self, width: int) -> int:
        """Return the bytes that `tile` needs for one tile of `width` × `width`."""
        ...


class Collect(Protocol):
    """The driver's half."""

    def gather(self, kept: Any) -> None:
        """Take what one task has kept."""
        ...


@dataclass(frozen=True)
class KeepAll:
    """Every tile, for the driver."""

    metrics: tuple[str, ...]
    precision: str

    def start(self) -> list[Any]:  # noqa: D102
        return []

    def tile(self, kept: list[Any], rows: slice, columns: slice, values: Values) -> list[Any]:  # noqa: D102
        kept.extend((metric, rows, columns, values(metric)) for metric in self.metrics)
        return kept

    def kept_bytes(self, tiles: int, now: int, strips: int, width: int) -> tuple[int, int]:  # noqa: D102
        one = bytes_per_pair(self.metrics, self.precision)
        return one * tiles * width**2, (max(0, one * tiles - 8 * now) + one) * width**2

    def work_bytes(self, width: int) -> int:  # noqa: D102
        return 0


class Whole:
    """The matrices in memory, both halves."""

    def __init__(self, keep: KeepAll, count: int) -> None:
        self.matrices = {
            metric: np.empty((count, count), dtype=dtype_of(metric, keep.precision)) for metric in keep.metrics
        }

    def gather(self, kept: list[Any]) -> None:  # noqa: D102
        for metric, rows, columns, values in kept:
            self.matrices[metric][rows, columns] = values
            if rows != columns:
                self.matrices[metric][columns, rows] = values.T


@dataclass(frozen=True)
class KeepFile:
    """Every tile and its mirror image, as chunks of a Zarr group that the task writes itself."""

    metrics: tuple[str, ...]
    precision: str
    path: Location

    def start(self) -> None:  # noqa: D102
        return None

    def tile(self, kept: None, rows: slice, columns: slice, values: Values) -> None:  # noqa: D102
        from dneuro.store.matrices import write_tile

        for metric in self.metrics:
            write_tile(self.path, metric, rows, columns, values(metric))

    def kept_bytes(self, tiles: int, now: int, strips: int, width: int) -> tuple[int, int]:  # noqa: D102
        return 0, 0

    def work_bytes(self, width: int) -> int:  # noqa: D102
        widest = max(dtype_of(metric, self.precision).itemsize for metric in self.metrics)
        return 4 * widest * width**2  # the tile, its mirror image, and what is encoded


class Nothing:
    """The driver's half where the workers have done it all."""

    def gather(self, kept: Any) -> None:  # noqa: D102
        return None


@dataclass(frozen=True)
class KeepNearest:
    """The `count` others that are most alike each feature."""

    metrics: tuple[str, ...]
    count: int

    def start(self) -> dict[Any, Any]:  # noqa: D102
        return {}

    def tile(self, kept: dict[Any, Any], rows: slice, columns: slice, values: Values) -> dict[Any, Any]:  # noqa: D102
        for metric in self.metrics:
            keys = np.asarray(values(metric), dtype=np.float64) * CLOSE[metric]
            keys[np.isnan(keys)] = -np.inf
            if rows == columns:
                np.fill_diagonal(keys, -np.inf)
            self._add(kept, metric, rows, nearest(keys, columns.start, self.count))
            if rows != columns:
                self._add(kept, metric, columns, nearest(keys.T, rows.start, self.count))
        return kept

    def _add(self, kept: dict[Any, Any], metric: str, place: slice, found: tuple[Any, Any]) -> None:
        key = (metric, place.start, place.stop)
        kept[key] = joined(kept[key], found, self.count) if key in kept else found

    def kept_bytes(self, tiles: int, now: int, strips: int, width: int) -> tuple[int, int]:  # noqa: D102
        return (16 * len(self.metrics) * strips * width * self.count,) * 2

    def work_bytes(self, width: int) -> int:  # noqa: D102
        return 32 * width**2 + 6 * 16 * width * self.count  # keys, a copy that is partitioned, counts of equal ones


class Neighbours:
    """The nearest so far, of all features."""

    def __init__(self, keep: KeepNearest, count: int) -> None:
        self._most = keep.count
        self.found = {
            metric: (np.full((count, keep.count), -np.inf), np.full((count, keep.count), count, dtype=np.int64))
            for metric in keep.metrics
        }

    def gather(self, kept: dict[Any, Any]) -> None:  # noqa: D102
        for (metric, start, stop), some in kept.items():
            keys, numbers = self.found[metric]
            keys[start:stop], numbers[start:stop] = joined((keys[start:stop], numbers[start:stop]), some, self._most)

    def result(self, metric: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return values (features, neighbours), NaN where there are fewer, and numbers, −1 there."""
        keys, numbers = self.found[metric]
        none = np.isneginf(keys)
        return np.where(none, np.nan, keys * CLOSE[metric] + 0.0), np.where(none, -1, numbers)


@dataclass(frozen=True)
class KeepPairs:
    """Pairs whose similarity is at least a threshold in size, or whose distance is at most that."""

    metrics: tuple[str, ...]
    threshold: float
    most: int
    """Pairs that a task may find."""
    where: str = "in one task of a worker"
    """Where there is no room for more."""

    def start(self) -> list[Any]:  # noqa: D102
        return []

    def tile(self, kept: list[Any], rows: slice, columns: slice, values: Values) -> list[Any]:  # noqa: D102
        found = values(self.metrics[0])
        wanted = found <= self.threshold if self.metrics[0] == "euclidean" else np.abs(found) >= self.threshold
        wanted = np.triu(wanted, 1) if rows == columns else wanted
        count = int(np.count_nonzero(wanted)) + sum(len(some) for _, some in kept)
        check_pairs(count, self.most, self.threshold, self.where)  # before they are spelled out
        pairs = np.argwhere(wanted)
        place = np.array([rows.start, columns.start])
        kept.append((pairs + place, found[pairs[:, 0], pairs[:, 1]].astype(np.float64)))
        return kept

    def kept_bytes(self, tiles: int, now: int, strips: int, width: int) -> tuple[int, int]:  # noqa: D102
        return (PAIR_BYTES * min(self.most, tiles * width**2),) * 2

    def work_bytes(self, width: int) -> int:  # noqa: D102
        return 18 * width**2 + 40 * min(self.most, width**2)


class Pairs:
    """Pairs so far; as many as fit into the driver."""

    def __init__(self, keep: KeepPairs, most: int) -> None:
        self._threshold, self._most, self._count = keep.threshold, most, 0
        self._kept: list[Any] = []

    def gather(self, kept: list[Any]) -> None:  # noqa: D102
        self._count += sum(len(values) for _, values in kept)
        check_pairs(self._count, self._most, self._threshold, IN_DRIVER)
        self._kept.extend(some for some in kept if len(some[1]))

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return pairs (pairs, 2) in ascending order and their values (pairs,)."""
        if not self._kept:
            return np.empty((0, 2), dtype=np.int64), np.empty(0)
        pairs = np.concatenate([pairs for pairs, _ in self._kept])
        values = np.concatenate([values for _, values in self._kept])
        self._kept.clear()  # they are there twice
        order = np.lexsort(pairs.T[::-1])
        return pairs[order], values[order]


def check_pairs(count: int, most: int, threshold: float, where: str) -> None:
    """Refuse to keep more pairs than there is room for.

    Raises
    ------
    MemoryLimitError
        With the numbers.
    """
    if count > most:
        size = format_bytes(PAIR_BYTES * most)
        raise MemoryLimitError(
            f"threshold={threshold:g} is passed by more than {most:,} pairs, {size} of them, which "
            f"is what there is room for {where}",
            hint="a stricter threshold=, neighbours=20 for the nearest of each neuron, or more memory there",
        )


def nearest(keys: NDArray[np.float64], first: int, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the `count` largest of each row, best first, and their columns counted from `first`; lower ones first.

    Fewer columns than `count` are filled up with −inf.
    """
    if keys.shape[1] <= count:
        chosen = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    else:
        limit = np.partition(keys, keys.shape[1] - count, axis=1)[:, keys.shape[1] - count, None]
        above, equal = keys > limit, keys == limit
        free = count - above.sum(axis=1, dtype=np.int32)  # of those that are equal the first ones are taken
        taken = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= free[:, None]))
        chosen = np.nonzero(taken)[1].reshape(len(keys), count)
    values = np.take_along_axis(keys, chosen, axis=1)
    return joined((values, chosen + first), (values[:, :0], chosen[:, :0]), count)


def joined(a: tuple[Any, Any], b: tuple[Any, Any], count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the best `count` of two lists of (keys, numbers) per row; of equal keys the lower number."""
    keys = np.concatenate([a[0], b[0]], axis=1)
    numbers = np.concatenate([a[1], b[1]], axis=1)
    order = np.lexsort((numbers, -keys), axis=1)[:, :count]
    return np.take_along_axis(keys, order, axis=1), np.take_along_axis(numbers, order, axis=1)
