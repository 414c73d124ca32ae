"""One pass: every chunk is read once, reduced where it was read, and the states merged in a tree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.engine import stopping
from dneuro.engine.blocks import Block, Grid, narrowed, thinned
from dneuro.engine.device import Device, chosen
from dneuro.engine.executors import Executor, one_blas_thread
from dneuro.engine.panel import Panel
from dneuro.engine.parts import Source, compute
from dneuro.engine.place import Place, place_of
from dneuro.engine.plan import Plannable, fit, is_small
from dneuro.engine.window import Call, Window

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
    device: Device | None


_Spot = tuple[tuple[int, int], int, int]
"""Columns, level and place of a state in the tree of its panel."""


def reduce(
    xs: Sequence[xr.DataArray],
    kernels: Mapping[str, Reduction],
    executor: Executor,
    *,
    prepare: Prepare | None = None,
    pooled: bool = False,
    rows: NDArray[np.bool_] | None = None,
    step: str = "",
    every: int = 1,
    sources: Sequence[Source] | None = None,
) -> dict[str, dict[str, NDArray[Any]]]:
    """Run kernels over arrays in one pass and return the results of each.

    Parameters
    ----------
    xs : sequence of DataArray, dims (image, …)
        Arrays that share their images, backed by dask or NumPy. Several at once reach the kernels as
        several blocks; where the kernels want whole rows, they may differ in their features.
    kernels : mapping of str to Kernel
        All of them are fed from the same blocks.
    executor : Executor
        Where the tasks run.
    prepare : callable, optional
        Applied to the blocks of each task before the kernels.
    pooled : bool
        `prepare` makes one number of all positions of a channel.
    rows : array (images,) of bool, optional
        Images that take part; of the others only those are read that share a chunk with one of them.
    step : str
        Name under which progress is reported.
    every : int
        Read only one block of images in so many, evenly spread: a sample.
    sources : sequence of Source, optional
        Of `xs`, where more passes follow: what a task needs of an array is then found out once.

    Returns
    -------
    dict of dict of array
        By kernel and by name; where columns were cut, joined along the last feature dims again.

    Notes
    -----
    On the device of this context (`dneuro.engine.device`), if there is one: blocks are moved there before `prepare`
    sees them; the states of a run come back as NumPy arrays and are merged as such.
    """
    grid, _ = fit(xs, kernels, executor, pooled=pooled)
    if rows is not None:
        grid = narrowed(grid, xs[0], rows)
    grid = thinned(grid, every)
    work = executor.share(_Work(dict(kernels), prepare, tuple(map(str, xs[0].dims)), rows, chosen()))
    panels = {columns: Panel(kernels, len(runs), here=is_small(grid, kernels, len(xs[0])))
              for columns, runs in grid.panels.items()}  # fmt: skip
    window: Window[_Spot] = Window(executor, _leaves(sources or [Source(x) for x in xs], grid, work))
    found: dict[tuple[int, int], dict[str, dict[str, NDArray[Any]]]] = {}
    done = 0
    events.emit("started", step, total=grid.blocks, what="blocks")
    with one_blas_thread(executor), contextlib.closing(iter(window)) as ended:
        for (columns, level, place), future in ended:
            error = future.exception()
            if error is not None:
                try:
                    raise error
                finally:  # else the error, its traceback and this frame, with all that was shared, hold each other
                    del error, future
            if level == 0:
                done += len(grid.panels[columns][place])
                events.emit("progress", step, done=done, total=grid.blocks, what="blocks")
            for to, function, arguments in panels[columns].put(level, place, future):
                window.add((columns, *to), function, work, *arguments)
            if panels[columns].is_complete:
                found[columns] = panels.pop(columns).finalise()
            del future  # whoever holds a future holds its result, and states would pile up on the workers
    events.emit("finished", step, done=done, total=grid.blocks, what="blocks")
    parts = [found[columns] for columns in sorted(found)]
    return {name: _join([part[name] for part in parts], 1 if pooled else xs[0].ndim - 1) for name in kernels}


def _leaves(sources: Sequence[Source], grid: Grid, work: Any) -> Iterator[Call[_Spot]]:
    """Yield one task per run."""
    whole = len(grid.panels) == 1
    for columns, runs in grid.panels.items():
        for place, run in enumerate(runs):
            packed = [[source.part(block, whole_rows=whole) for source in sources] for block in run]
            parts = [[part for part, _ in block] for block in packed]
            fillings = [[held for _, held in block] for block in packed]
            yield (columns, 0, place), _run, (work, run, parts, fillings)


def _run(
    work: _Work, blocks: tuple[Block, ...], parts: list[list[Any]], fillings: list[list[list[Any]]]
) -> dict[str, State]:
    """One task: a state for each kernel, across all blocks of the run, on the device that was asked for."""
    place = place_of(work.device)
    with place.computing():
        states = _reduced(work, place, blocks, parts, fillings)
        return {name: place.fetch(state) for name, state in states.items()}


def _reduced(
    work: _Work, place: Place, blocks: tuple[Block, ...], parts: list[list[Any]], fillings: list[list[list[Any]]]
) -> dict[str, State]:
    states = {name: kernel.start() for name, kernel in work.kernels.items()}
    for block, arrays, held in zip(blocks, parts, fillings, strict=True):
        stopping.check()
        taking = None if work.rows is None else work.rows[slice(*block.rows)]
        if taking is not None and not taking.any():
            continue
        values: Sequence[Any] = [compute(part, some) for part, some in zip(arrays, held, strict=True)]
        origin = {"image": np.arange(*block.rows)}
        if len(work.dims) > 1:
            origin[work.dims[1]] = np.arange(*block.columns)
        if taking is not None and not taking.all():
            values = [v[taking] for v in values]
            origin["image"] = origin["image"][taking]
        values = [place.put(v) for v in values]
        if work.prepare is not None:
            values = work.prepare(values, origin)
        for name, kernel in work.kernels.items():
            states[name] = kernel.update(states[name], values, origin)
        del values  # before the next block is there
    return states


def _join(parts: list[dict[str, NDArray[Any]]], feature_dims: int) -> dict[str, NDArray[Any]]:
    """Lay the results of several panels side by side, along the first of the feature dims."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: np.concatenate([part[name] for part in parts], axis=parts[0][name].ndim - feature_dims)
        for name in parts[0]
    }
