"""Small looks at a layer gathered over several batches: a kernel's call costs more than a few rows in it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import Array, State, state_to_numpy
from dneuro.kernels.feeds import Feed
from dneuro.quantities import MiB

Look = tuple[Array, Array | None]
"""What is looked at of a layer, and, of maxima, their positions."""

GATHERED = MiB
"""Bytes of a look that wait for more; a look that is larger does not wait."""


class Feeding:
    """Feeds the statistics of a layer, in the order of the images.

    Parameters
    ----------
    feeds : iterable of Feed
        The statistics.
    """

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = tuple(feeds)
        self._states: dict[str, State] = {feed.key: feed.kernel.start() for feed in self._feeds}
        self._waiting: dict[str, list[tuple[Look, NDArray[np.int64]]]] = {feed.look: [] for feed in self._feeds}

    @property
    def looks(self) -> frozenset[str]:
        """What the statistics see of the layer: ``max``, ``mean``, ``neuron``."""
        return frozenset(self._waiting)

    def add(self, looks: dict[str, Look], numbers: NDArray[np.int64]) -> None:
        """Take what is seen of the images `numbers`; the arrays must not change any more."""
        for look, waiting in self._waiting.items():
            waiting.append((looks[look], numbers))
            if sum(_nbytes(one) for one, _ in waiting) + _nbytes(looks[look]) > GATHERED:
                self._feed(look)

    def states(self) -> dict[str, State]:
        """Return the partial statistics of all that was taken, by key."""
        for look in self._waiting:
            self._feed(look)
        return {key: state_to_numpy(state) for key, state in self._states.items()}

    def _feed(self, look: str) -> None:
        waiting, self._waiting[look] = self._waiting[look], []
        if not waiting:
            return
        blocks = _joined([one for one, _ in waiting])
        origin = {"image": np.concatenate([numbers for _, numbers in waiting])}
        for feed in self._feeds:
            if feed.look == look:
                self._states[feed.key] = feed.kernel.update(self._states[feed.key], blocks, origin)


def _nbytes(look: Look) -> int:
    return sum(part.nbytes for part in look if part is not None)


def _joined(looks: list[Look]) -> Look:
    if len(looks) == 1:
        return looks[0]
    values = np.concatenate([values for values, _ in looks])
    places = [places for _, places in looks if places is not None]
    return values, np.concatenate(places) if places else None
