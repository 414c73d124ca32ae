"""Persist or stream: whether an array that is read several times had better be read once and kept in memory.

An operation that reads an array more than once asks for it like this::

    plan = …                                        # of one pass, streaming
    with resident(x, executor, passes=7, worker_bytes=plan.worker_bytes, persist=persist, step="svd") as x:
        …                                           # all passes, over what may now be in memory
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import dask
import numpy as np
import xarray as xr

from dneuro import events
from dneuro.engine.blocks import Block, cut
from dneuro.engine.executors import DaskExecutor, Executor, Sizes, ThreadExecutor
from dneuro.engine.parts import Source, compute
from dneuro.engine.window import Call, Window
from dneuro.errors import MemoryLimitError, UsageError
from dneuro.quantities import format_bytes

Persist = Literal["auto"] | bool

SHARE = 0.6
"""Share of the memory that persisted data and a pass may fill together: beyond it dask begins to spill."""

UNEVEN = 1.2
"""Workers do not hold equal shares."""

IN_MEMORY = "values-"
"""Begins the name of a dask array whose chunks are parts of an array in memory."""


def is_resident(x: xr.DataArray) -> bool:
    """Return whether an array is in memory already: NumPy, parts of that, or chunks that a cluster holds.

    Of what is derived all must be: less a mean that was persisted, what is on disk is on disk still.
    """
    return _is_in_memory(x) or Source(x).is_held


def travels(x: xr.DataArray) -> bool:
    """Return whether an array's chunks go to the tasks of a cluster, which would else read or make them."""
    return _is_in_memory(x) or Source(x).travels


def _is_in_memory(x: xr.DataArray) -> bool:
    return not dask.is_dask_collection(x.data) or str(getattr(x.data, "name", "")).startswith(IN_MEMORY)


def share_of(x: xr.DataArray, executor: Sizes) -> int:
    """Return the bytes of each process that the array would take, persisted: a chunk is held by one of them."""
    processes = max(1, executor.slots // executor.slots_per_process)
    if processes == 1:
        return int(x.nbytes)
    even = int(x.nbytes * UNEVEN) // processes
    if x.chunks is None:
        return even
    chunk = x.dtype.itemsize * math.prod(max(lengths, default=0) for lengths in x.chunks)
    return max(even, min(int(x.nbytes), chunk * -(-math.prod(map(len, x.chunks)) // processes)))


def check_persist(persist: object) -> None:
    """Refuse what is neither ``"auto"`` nor True nor False.

    Raises
    ------
    UsageError
        With the choices.
    """
    if not isinstance(persist, bool) and not (isinstance(persist, str) and persist == "auto"):
        raise UsageError(f"persist={persist!r} is unknown", hint="persist='auto', True or False")


def decide(x: xr.DataArray, executor: Sizes, *, passes: float, worker_bytes: int, persist: Persist = "auto") -> bool:
    """Return whether to persist an array.

    Parameters
    ----------
    x : DataArray
        The array.
    executor : Sizes
        Where it would be kept.
    passes : float
        Times that it will be read.
    worker_bytes : int
        Peak of a worker process in these passes, as planned.
    persist : {"auto", True, False}
        ``"auto"`` persists what is read more than once and fits with the pass into 60 % of each worker's memory.

    Raises
    ------
    MemoryLimitError
        If it is to be persisted and would not fit at all.
    UsageError
        If `persist` is none of the three.
    """
    check_persist(persist)
    if persist is False or is_resident(x):
        return False
    wanted = worker_bytes + share_of(x, executor)
    if persist == "auto":
        return passes > 1 and wanted <= SHARE * executor.memory
    if wanted > executor.memory:
        raise MemoryLimitError(
            f"persist=True needs {format_bytes(wanted)} per worker ({format_bytes(x.nbytes)} in all), the limit is "
            f"{format_bytes(executor.memory)}; nothing was started",
            hint="persist='auto', which streams what does not fit, or more workers",
        )
    return True


def kept_bytes(
    xs: Sequence[xr.DataArray], executor: Sizes, *, passes: float, worker_bytes: int, persist: Persist = "auto"
) -> int:
    """Return the bytes of each process that arrays will take which are read together, 0 if they will be streamed.

    All of them are persisted or none is; see `decide`.
    """
    shares = [0 if is_resident(x) else share_of(x, executor) for x in xs]
    wanted = [
        decide(x, executor, passes=passes, worker_bytes=worker_bytes + sum(shares) - share, persist=persist)
        for x, share in zip(xs, shares, strict=True)
    ]
    return sum(shares) if any(wanted) else 0


@contextlib.contextmanager
def residents(
    xs: Sequence[xr.DataArray], executor: Executor, *, passes: float, worker_bytes: int, persist: Persist = "auto",
    step: str = "",
) -> Iterator[list[xr.DataArray]]:  # fmt: skip
    """Yield arrays that are read together, all of them in memory or none; see `resident`."""
    shares = [0 if is_resident(x) else share_of(x, executor) for x in xs]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                resident(x, executor, passes=passes, worker_bytes=worker_bytes + sum(shares) - share,
                         persist=persist, step=step)
            )
            for x, share in zip(xs, shares, strict=True)
        ]  # fmt: skip


@contextlib.contextmanager
def resident(
    x: xr.DataArray,
    executor: Executor,
    *,
    passes: float,
    worker_bytes: int,
    persist: Persist = "auto",
    step: str = "",
) -> Iterator[xr.DataArray]:
    """Yield the array, in memory if `decide` says so, and say which; it is let go at the end.

    Chunks stay as they are, so the results are the same bit for bit. A cluster keeps the chunks on its workers; threads
    share one copy.
    """
    if is_resident(x):
        yield x
        return
    kept = isinstance(executor, ThreadExecutor | DaskExecutor)  # nobody else says how
    kept = kept and decide(x, executor, passes=passes, worker_bytes=worker_bytes, persist=persist)
    say(x, executor, passes=passes, step=step, persisted=kept)
    if not kept:
        yield x
        return
    if isinstance(executor, DaskExecutor):
        held = executor.persist(x.data)
        try:
            executor.finish(held)
            yield x.copy(data=held)
        finally:
            del held  # the workers let go of chunks that nobody names
    else:
        yield x.copy(data=in_chunks(_loaded(x, executor), x.chunks))


def say(x: xr.DataArray, executor: Sizes, *, passes: float, step: str, persisted: bool) -> None:
    """Tell in a note whether an array that is read several times is kept."""
    said = f"{format_bytes(x.nbytes)} read {passes:.3g} times"
    if persisted:
        events.emit("note", step, f"persisting {said}, {format_bytes(share_of(x, executor))} per worker",
                    data={"persisted": True})  # fmt: skip
    elif passes > 1:
        events.emit("note", step, f"streaming {said}: not persisted", data={"persisted": False})


def in_chunks(values: Any, chunks: Any) -> Any:
    """Return a dask array whose chunks are views of an array in memory.

    ``dask.array.from_array`` would copy the array, so that what its caller changes later does not show.

    Parameters
    ----------
    values : array
        Not to be changed for as long as the dask array is in use.
    chunks : tuple
        As dask takes them.
    """
    return of_parts(values.shape, chunks, values.dtype, values.__getitem__)


def of_parts(shape: tuple[int, ...], chunks: Any, dtype: Any, part: Callable[[tuple[slice, ...]], Any]) -> Any:
    """Return a dask array whose chunks come from an array in memory, as `is_resident` knows.

    Parameters
    ----------
    shape, chunks, dtype
        The dask array's; chunks as dask takes them.
    part : callable
        Returns what stands for a chunk in the graph, by its slices: a view, or a task that makes a copy.
    """
    import dask.array as da  # not at the top: workers load this package too, and it brings SciPy

    lengths = da.core.normalize_chunks(chunks, shape, dtype=dtype)
    name = f"{IN_MEMORY}{uuid.uuid4().hex}"
    graph = {
        (name, *place): part(where)
        for place, where in zip(np.ndindex(*map(len, lengths)), da.core.slices_from_chunks(lengths), strict=True)
    }
    return da.Array(graph, name, lengths, dtype=dtype)


def _loaded(x: xr.DataArray, executor: Executor) -> Any:
    """Return the values, each chunk computed on the executor's threads."""
    values = np.empty(x.shape, dtype=x.dtype)
    source = Source(x)

    def load(part: Any, block: Block) -> None:
        values[(slice(*block.rows), slice(*block.columns))[: values.ndim]] = compute(part, ())

    grid = cut([x], whole_rows=False)
    blocks = [block for run in grid.runs for block in run]
    calls: Iterator[Call[int]] = (
        (number, load, (source.part(block)[0], block)) for number, block in enumerate(blocks)
    )
    with contextlib.closing(iter(Window(executor, calls))) as ended:
        for _, future in ended:
            future.result()
    return values
