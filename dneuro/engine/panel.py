"""What becomes of the states of one range of columns: merged in a tree, on the workers or here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.engine.executors import Future
from dneuro.engine.plan import by_image
from dneuro.engine.tree import Tree

ROWS = -1
"""Level of the rows that a run holds of its images."""

States = dict[str, dict[str, Any]]
"""By kernel and name."""

To = tuple[int, int]
"""Level and place."""


class Panel:
    """The states of the runs of one range of columns, in whatever order they come.

    Parameters
    ----------
    kernels : mapping of str to Kernel
        What they are states of.
    runs : int
        How many there are.
    here : bool
        Merge in this process. The order is that of the tree in any case, and so is the result, bit for bit.
    """

    def __init__(self, kernels: Mapping[str, Any], runs: int, *, here: bool) -> None:
        self._kernels = dict(kernels)
        self._tree = Tree(runs)
        self._here = here
        self._rows: dict[int, States] = {}
        self._awaited = runs if any(by_image(kernel) for kernel in kernels.values()) else 0

    @property
    def is_complete(self) -> bool:
        """Whether all has come, and all is merged."""
        return self._tree.root is not None and len(self._rows) == self._awaited

    def put(self, level: int, place: int, future: Future) -> Iterator[tuple[To, Any, tuple[Any, ...]]]:
        """Take what a task has made; yield (to, function, arguments) of the tasks that follow."""
        if level == ROWS:
            self._rows[place] = future.result()
            return
        made: Any = future
        if self._here:
            made = future.result()
        if level == 0 and self._awaited:
            if self._here:
                self._rows[place] = _rows_of(self._kernels, made)
            else:
                yield (ROWS, place), _rows, (future,)
        merge = self._tree.put(level, place, made)
        while merge is not None:
            if not self._here:
                yield (merge.level, merge.place), _merge, (merge.lower, merge.higher)
                return
            made = _merged(self._kernels, merge.lower, merge.higher)
            merge = self._tree.put(merge.level, merge.place, made)

    def finalise(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the results by kernel and by name."""
        states: States = self._tree.root if self._here else self._tree.root.result()
        found = {}
        for name, kernel in self._kernels.items():
            state = _summed(kernel, states[name])
            parts = [self._rows[place][name] for place in sorted(self._rows)]
            for key in by_image(kernel):
                arrays = [part[key] for part in parts if key in part]
                if arrays:
                    state[key] = np.concatenate(arrays) if isinstance(arrays[0], np.ndarray) else _joined(arrays)
            found[name] = kernel.finalise(state)
        return found


def _joined(arrays: list[Any]) -> Any:
    import array_api_compat

    return array_api_compat.array_namespace(*arrays).concat(arrays)


def _summed(kernel: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state without its rows."""
    return {key: array for key, array in state.items() if key not in by_image(kernel)}


def _merged(kernels: Mapping[str, Any], a: States, b: States) -> States:
    return {name: kernel.merge(_summed(kernel, a[name]), _summed(kernel, b[name])) for name, kernel in kernels.items()}


def _rows_of(kernels: Mapping[str, Any], states: States) -> States:
    return {name: {key: states[name][key] for key in by_image(kernel) if key in states[name]}
            for name, kernel in kernels.items()}  # fmt: skip


def _merge(work: Any, a: States, b: States) -> States:
    return _merged(work.kernels, a, b)


def _rows(work: Any, states: States) -> States:
    return _rows_of(work.kernels, states)
