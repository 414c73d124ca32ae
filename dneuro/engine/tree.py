"""The order in which states are merged."""

from __future__ import annotations

from typing import NamedTuple

from dneuro.engine.executors import Future


class Merge(NamedTuple):
    """Two neighbours that can be merged now, and where their merger belongs."""

    level: int
    place: int
    lower: Future
    higher: Future


class Tree:
    """Pairs up neighbours level by level: the order of merging never depends on who is ready first.

    Parameters
    ----------
    leaves : int
        States on level 0.
    """

    def __init__(self, leaves: int) -> None:
        self._waiting: dict[tuple[int, int], Future] = {}
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self.root: Future = None
        """The merger of all, once it was put."""

    @property
    def levels(self) -> int:
        """Mergers that a leaf goes through, at most."""
        return len(self._widths) - 1

    def put(self, level: int, place: int, future: Future) -> Merge | None:
        """Take a state; return what can be merged now."""
        while self._widths[level] > 1 and place == self._widths[level] - 1 and place % 2 == 0:
            level, place = level + 1, place // 2  # nobody to pair with: up it goes
        if level == self.levels:
            self.root = future
            return None
        other = self._waiting.pop((level, place ^ 1), None)
        if other is None:
            self._waiting[level, place] = future
            return None
        lower, higher = (other, future) if place % 2 else (future, other)
        return Merge(level + 1, place // 2, lower, higher)
