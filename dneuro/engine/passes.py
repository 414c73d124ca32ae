"""One pass: every chunk is read once, reduced where it was read, and the states merged in a tree."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cloudpickle
import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.engine.blocks import Block
from dneuro.engine.executors import Executor, Future
from dneuro.engine.plan import Plannable, fit
from dneuro.engine.window import Window

State = dict[str, Any]
Origin = Mapping[str, NDArray[np.int64]]
Prepare = Callable[[Sequence[Any], Origin], Sequence[Any]]
"""What happens to the blocks before the kernels see them: a check, a maximum over positions."""


class Reduction(Plannable, Protocol):
    """What a pass needs of a kernel."""

    def start(self) -> State:
        """Return the state that knows nothing."""
        ...

    def update(self, state: State, blocks: Sequence[Any], origin: Origin) -> State:
        """Return the state after these blocks."""
        ...

    def merge(self, a: State, b: State) -> State:
        """Return the state that knows what `a` and `b` know."""
        ...

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return named results."""
        ...


@dataclass(frozen=True)
class _Work:
    """What every task of a pass needs to know, sent to each worker once."""

    kernels: dict[str, Reduction]
    prepare: Prepare | None
    dims: tuple[str, ...]
    rows: NDArray[np.bool_] | None


def reduce(
    xs: Sequence[xr.DataArray],
    kernels: Mapping[str, Reduction],
    executor: Executor,
    *,
    prepare: Prepare | None = None,
    pooled: bool = False,
    rows: NDArray[np.bool_] | None = None,
    step: str = "",
) -> dict[str, dict[str, NDArray[Any]]]:
    """Run kernels over arrays in one pass and return the results of each.

    Parameters
    ----------
    xs : sequence of DataArray, dims (image, …)
        Arrays that share their images, backed by dask or NumPy. Several at once reach the kernels as
        several blocks.
    kernels : mapping of str to Kernel
        All of them are fed from the same blocks.
    executor : Executor
        Where the tasks run.
    prepare : callable, optional
        Applied to the blocks of each task before the kernels.
    pooled : bool
        `prepare` makes one number of all positions of a channel.
    rows : array (images,) of bool, optional
        Images that take part; the others are read with their chunk and left out.
    step : str
        Name under which progress is reported.

    Returns
    -------
    dict of dict of array
        By kernel and by name; where columns were cut, joined along the last feature dims again.
    """
    grid, _ = fit(xs, kernels, executor, pooled=pooled)
    work = executor.share(_Work(dict(kernels), prepare, tuple(map(str, xs[0].dims)), rows))
    panels: dict[tuple[int, int], list[tuple[Block, ...]]] = {}
    for run in grid.runs:
        panels.setdefault(run[0].columns, []).append(run)
    window: Window[tuple[tuple[int, int], int, int]] = Window(executor)
    for columns, runs in panels.items():
        for place, run in enumerate(runs):
            parts, fillings = zip(*(_parts(xs, block) for block in run), strict=True)
            window.add((columns, 0, place), _run, work, run, parts, fillings)
    trees = {columns: _Tree(len(runs)) for columns, runs in panels.items()}
    done = 0
    events.emit("started", step, total=grid.blocks, what="blocks")
    for (columns, level, place), future in window:
        state = _checked(future)
        if level == 0:
            done += len(panels[columns][place])
            events.emit("progress", step, done=done, total=grid.blocks, what="blocks")
        pair = trees[columns].put(level, place, state)
        if pair is not None:
            window.add((columns, level + 1, place // 2), _merge, work, *pair, first=True)
    events.emit("finished", step, done=done, total=grid.blocks, what="blocks")
    parts = []
    for columns in sorted(trees):
        state = trees[columns].root.result()
        parts.append({name: kernels[name].finalise(state[name]) for name in kernels})
    return {name: _join([part[name] for part in parts], 1 if pooled else xs[0].ndim - 1) for name in kernels}


class _Tree:
    """Pairs up neighbours level by level: the order of merging never depends on who is ready first."""

    def __init__(self, leaves: int) -> None:
        self._waiting: dict[tuple[int, int], Future] = {}
        self._widths = [leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self.root: Future = None

    def put(self, level: int, place: int, future: Future) -> tuple[Future, Future] | None:
        """Take a state; return the two that can be merged now, lower images first."""
        while self._widths[level] > 1 and place == self._widths[level] - 1 and place % 2 == 0:
            level, place = level + 1, place // 2  # nobody to pair with: up it goes
        if self._widths[level] == 1:
            self.root = future
            return None
        other = self._waiting.pop((level, place ^ 1), None)
        if other is None:
            self._waiting[level, place] = future
            return None
        return (other, future) if place % 2 else (future, other)


def _checked(future: Future) -> Future:
    """Raise what the task raised; the state itself stays where it is."""
    error = future.exception()
    if error is not None:
        raise error
    return future


@dataclass(frozen=True)
class _Part:
    """One array's share of a block: a small graph that computes it, pickled, with holes for persisted chunks."""

    pickled: bytes
    holes: tuple[Any, ...]

    def compute(self, fillings: Sequence[Any]) -> Any:
        graph, keys, (finish, extra) = pickle.loads(self.pickled)
        graph.update(zip(self.holes, fillings, strict=True))
        return finish(dask.get(graph, keys), *extra)


def _part(array: Any) -> tuple[_Part, list[Future]]:
    """Pack a dask array for a task.

    A task cannot wait for futures that lie inside a graph; those among its arguments the scheduler brings to the
    worker before it starts. So the chunks of a persisted array are taken out and passed beside it.
    """
    (array,) = dask.optimize(array)
    graph = dict(array.__dask_graph__())
    held = {key: getattr(value, "value", value) for key, value in graph.items()}
    held = {key: value for key, value in held.items() if hasattr(value, "client") and hasattr(value, "key")}
    for key in held:
        del graph[key]
    pickled = cloudpickle.dumps((graph, array.__dask_keys__(), array.__dask_postcompute__()))
    return _Part(pickled, tuple(held)), list(held.values())


def _parts(xs: Sequence[xr.DataArray], block: Block) -> tuple[list[Any], list[list[Future]]]:
    """Return each array's part in the block, or the values themselves if they are in memory."""
    parts: list[Any] = []
    fillings: list[list[Future]] = []
    for x in xs:
        where = (slice(*block.rows), slice(*block.columns))[: x.ndim]
        part, held = _part(x.data[where]) if dask.is_dask_collection(x.data) else (x.data[where], [])
        parts.append(part)
        fillings.append(held)
    return parts, fillings


def _run(
    work: _Work, blocks: tuple[Block, ...], parts: list[list[Any]], fillings: list[list[list[Any]]]
) -> dict[str, State]:
    """One task: a state for each kernel, across all blocks of the run."""
    states = {name: kernel.start() for name, kernel in work.kernels.items()}
    for block, arrays, held in zip(blocks, parts, fillings, strict=True):
        values: Sequence[Any] = [
            part.compute(some) if isinstance(part, _Part) else part for part, some in zip(arrays, held, strict=True)
        ]
        origin = {"image": np.arange(*block.rows)}
        if len(work.dims) > 1:
            origin[work.dims[1]] = np.arange(*block.columns)
        if work.rows is not None:
            taking = work.rows[slice(*block.rows)]
            if not taking.any():
                continue
            if not taking.all():
                values = [v[taking] for v in values]
                origin["image"] = origin["image"][taking]
        if work.prepare is not None:
            values = work.prepare(values, origin)
        for name, kernel in work.kernels.items():
            states[name] = kernel.update(states[name], values, origin)
    return states


def _merge(work: _Work, a: dict[str, State], b: dict[str, State]) -> dict[str, State]:
    # Updates happen in place, and a state that a scheduler still holds must not change under it.
    return {name: kernel.merge(_copy(a[name]), _copy(b[name])) for name, kernel in work.kernels.items()}


def _copy(state: State) -> State:
    return {name: np.array(array) for name, array in state.items()}


def _join(parts: list[dict[str, NDArray[Any]]], feature_dims: int) -> dict[str, NDArray[Any]]:
    """Lay the results of several panels side by side, along the first of the feature dims."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: np.concatenate([part[name] for part in parts], axis=parts[0][name].ndim - feature_dims)
        for name in parts[0]
    }
