"""Small looks at a layer gathered over several batches: a kernel's call costs more than a few rows in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import Array, State, state_to_numpy
from dneuro.kernels.feeds import Feed
from dneuro.quantities import MiB

Seen = tuple[Array, Array | None]
"""What a look at a layer shows, and, of maxima, their positions."""

GATHERED = MiB
"""Bytes of a look that wait for more; a batch that is larger does not wait."""


class Feeding:
    """Feeds the statistics of a layer, in the order of the images.

    Parameters
    ----------
    feeds : iterable of Feed
        The statistics.
    shape : tuple of int
        Of the layer, per image.
    dtype : {"float32", "float16", "bfloat16"}
        In which it is seen; bfloat16 is float32 with 16 zero bits.
    images : int
        Images that will come.
    """

    def __init__(self, feeds: Iterable[Feed], shape: tuple[int, ...], dtype: str, images: int) -> None:
        self._feeds = tuple(feeds)
        self._states: dict[str, State] = {feed.key: feed.kernel.start() for feed in self._feeds}
        seen = np.dtype("float32" if dtype == "bfloat16" else dtype)
        sights = {"max": (shape[:1], seen), "mean": (shape[:1], np.dtype("float32")), "neuron": (shape, seen)}
        self._rows = {
            look: _Rows(*sights[look], images, positions=look == "max" and len(shape) > 1) for look in self.looks
        }

    @property
    def looks(self) -> frozenset[str]:
        """What the statistics see of the layer: ``max``, ``mean``, ``neuron``."""
        return frozenset(feed.look for feed in self._feeds)

    def add(self, looks: Mapping[str, Seen], numbers: NDArray[np.int64]) -> None:
        """Take what is seen of the images `numbers`."""
        for look, rows in self._rows.items():
            if not rows.has_room(len(numbers)):
                self._feed(look, *rows.taken())
            if rows.has_room(len(numbers)):
                rows.add(looks[look], numbers)
            else:
                self._feed(look, looks[look], numbers)

    def states(self) -> dict[str, State]:
        """Return the partial statistics of all that was taken, by key."""
        for look, rows in self._rows.items():
            self._feed(look, *rows.taken())
        return {key: state_to_numpy(state) for key, state in self._states.items()}

    def _feed(self, look: str, blocks: Seen, numbers: NDArray[np.int64]) -> None:
        if not len(numbers):
            return
        for feed in self._feeds:
            if feed.look == look:
                self._states[feed.key] = feed.kernel.update(self._states[feed.key], blocks, {"image": numbers})


class _Rows:
    """Rows of several batches, in memory that is taken once: pieces of it among activations would hold those apart."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, images: int, *, positions: bool) -> None:
        each = (dtype.itemsize + 4 * positions) * int(np.prod(shape))
        count = min(images, GATHERED // max(1, each))
        self._values = np.empty((count, *shape), dtype)
        self._positions = np.empty((count, *shape), np.int32) if positions else None
        self._numbers = np.empty(count, np.int64)
        self._filled = 0

    def has_room(self, count: int) -> bool:
        return self._filled + count <= len(self._numbers)

    def add(self, look: Seen, numbers: NDArray[np.int64]) -> None:
        values, positions = look
        where = slice(self._filled, self._filled + len(numbers))
        self._values[where], self._numbers[where] = values, numbers
        if self._positions is not None and positions is not None:
            self._positions[where] = positions
        self._filled = where.stop

    def taken(self) -> tuple[Seen, NDArray[np.int64]]:
        """Return the rows, valid until the next ones are added, and their numbers, which kernels may keep."""
        count, self._filled = self._filled, 0
        positions = None if self._positions is None else self._positions[:count]
        return (self._values[:count], positions), self._numbers[:count].copy()
