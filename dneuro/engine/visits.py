"""Tasks that read some columns from the first image to the last, band by band, as often as they need to.

The second verb of the engine, for what is quadratic in the features: the state of a task is a part of the result,
complete when the task ends, so nothing is merged and no state outlives its task.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.engine import stopping
from dneuro.engine.at_work import give_back_if_full
from dneuro.engine.blocks import Block
from dneuro.engine.device import Device, chosen
from dneuro.engine.executors import Executor, one_blas_thread
from dneuro.engine.parts import PART_BYTES, Bundle, Source, compute
from dneuro.engine.passes import Prepare
from dneuro.engine.place import Place, place_of
from dneuro.engine.window import Call, Window

Span = tuple[int, int]
"""A range along a dim, its end exclusive."""


@dataclass(frozen=True)
class Visit:
    """One task.

    Parameters
    ----------
    spans : tuple of (int, int)
        The columns (along the second dim) that it reads.
    args : tuple
        What its function gets besides the reader.
    weight : int
        What it counts for in the progress.
    """

    spans: tuple[Span, ...]
    args: tuple[Any, ...]
    weight: int = 1


@dataclass(frozen=True)
class _Shared:
    """What every task needs to know, sent to each worker once."""

    function: Callable[..., Any]
    prepare: Prepare | None
    dims: tuple[str, ...]
    taking: NDArray[np.bool_] | None
    bands: tuple[Span, ...]
    device: Device | None


class Reader:
    """What a task reads: bands of images × spans of columns, each computed when it is asked for.

    Blocks are given on the device that was asked for; what a task returns is to be NumPy.
    """

    def __init__(
        self, shared: _Shared, place: Place, spans: tuple[Span, ...], parts: list[Any], fillings: list[Any]
    ) -> None:
        self._shared, self._place, self.spans = shared, place, spans
        self._parts, self._fillings = parts, fillings

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self._shared.bands)

    def read(self, band: int, span: int) -> Sequence[Any] | None:
        """Return the blocks (images, features…) of one band and span; None if none of its images takes part.

        A task that was stopped ends here.
        """
        stopping.check()
        give_back_if_full(at_work=True)
        rows, taking = self._shared.bands[band], None
        if self._shared.taking is not None:
            taking = self._shared.taking[slice(*rows)]
            if not taking.any():
                return None
        values: Sequence[Any] = [
            compute(part, held)
            for part, held in zip(self._parts[span][band], self._fillings[span][band], strict=True)
        ]
        origin = {"image": np.arange(*rows), self._shared.dims[1]: np.arange(*self.spans[span])}
        if taking is not None and not taking.all():
            values = [v[taking] for v in values]
            origin["image"] = origin["image"][taking]
        values = [self._place.put(v) for v in values]
        return values if self._shared.prepare is None else self._shared.prepare(values, origin)


def visit(
    xs: Sequence[xr.DataArray],
    function: Callable[..., Any],
    visits: Sequence[Visit],
    executor: Executor,
    *,
    bands: Iterable[Span],
    prepare: Prepare | None = None,
    rows: NDArray[np.bool_] | None = None,
    step: str = "",
    what: str = "tiles",
) -> Generator[Any, None, None]:
    """Run ``function(reader, *args)`` for every visit and yield the results as they come.

    Parameters
    ----------
    xs : sequence of DataArray, dims (image, features…)
        Arrays that share their images and their second dim, backed by dask or NumPy.
    function : callable
        Sent to each worker once.
    visits : sequence of Visit
        The tasks; those that take long had better come first.
    executor : Executor
        Where they run.
    bands : iterable of (int, int)
        Images that are read at a time.
    prepare, rows : optional
        As in `dneuro.engine.passes.reduce`.
    step, what : str
        Name under which progress is reported, and what is counted.

    Notes
    -----
    Where a task fails, or the caller closes the generator, all tasks have ended before the error, or the call, comes
    back: those at work end at the next block they read.

    Besides what `function` holds, a task needs a block twice (as its chunks and as it is joined). Chunks that a
    cluster holds already, and arrays in memory, travel with the task and stay until it ends.
    """
    shared = _Shared(function, prepare, tuple(map(str, xs[0].dims)), rows, tuple(bands), chosen())
    total, done = sum(some.weight for some in visits), 0
    events.emit("started", step, total=total, what=what)
    window: Window[int] = Window(executor, _calls(xs, visits, shared, executor.share(shared)))
    with one_blas_thread(executor), contextlib.closing(iter(window)) as ended:
        for number, future in ended:
            error = future.exception()
            if error is not None:
                try:
                    raise error
                finally:  # else the error, its traceback and this frame, with all that was shared, hold each other
                    del error, future
            result = future.result()
            del future  # whoever holds a future holds its result, on the worker
            yield result
            del result
            done += visits[number].weight
            events.emit("progress", step, done=done, total=total, what=what)
    events.emit("finished", step, done=done, total=total, what=what)


def parts_bytes(
    x: xr.DataArray, tasks: Sequence[Sequence[Span]], bands: Sequence[Span], in_flight: int
) -> int:
    """Return the most that the parts of an array take in the process that asks.

    Parameters
    ----------
    x : DataArray, dims (image, …)
        The array.
    tasks : sequence of sequence of (int, int)
        The spans that each of the visits reads, in their order.
    bands : sequence of (int, int)
        Images that are read at a time.
    in_flight : int
        Tasks that have been sent and are not done.
    """
    if x.chunks is None:
        return 0
    edges = list(itertools.accumulate(x.chunks[1], initial=0))
    each = (len(x.chunks[0]) + len(bands)) * math.prod(map(len, x.chunks[2:]))  # bands may cut chunks
    waiting = Counter(span for spans in tasks for span in spans)
    sizes = {
        (start, stop): each * (bisect.bisect_left(edges, stop) - bisect.bisect_right(edges, start) + 1)
        for start, stop in waiting
    }
    held: set[Span] = set()
    now = most = largest = 0
    for spans in tasks:
        now += sum(sizes[span] for span in {*spans} - held)
        held.update(spans)
        most, largest = max(most, now), max(largest, sum(sizes[span] for span in spans))
        waiting.subtract(spans)
        done = {span for span in spans if not waiting[span]}
        now -= sum(sizes[span] for span in done)
        held -= done
    return PART_BYTES * (most + in_flight * largest)


def _calls(
    xs: Sequence[xr.DataArray], visits: Sequence[Visit], shared: _Shared, sent: Any
) -> Iterator[Call[int]]:
    sources = [Source(x) for x in xs]
    waiting = Counter(span for some in visits for span in some.spans)  # many tasks may read the same columns
    for number, some in enumerate(visits):
        taken = [
            [[source.part(Block(band, span)) for source in sources] for band in shared.bands] for span in some.spans
        ]
        parts = [[[part for part, _ in band] for band in span] for span in taken]
        fillings = [[[held for _, held in band] for band in span] for span in taken]
        for span in some.spans:
            waiting[span] -= 1
            if not waiting[span]:
                for source, band in itertools.product(sources, shared.bands):
                    source.forget(Block(band, span))
        del taken
        yield number, _visit, (sent, some.spans, Bundle(parts), fillings, *some.args)


def _visit(shared: _Shared, spans: tuple[Span, ...], parts: Bundle, fillings: list[Any], *args: Any) -> Any:
    place = place_of(shared.device)
    with place.computing():
        return shared.function(Reader(shared, place, spans, parts.parts, fillings), *args)
