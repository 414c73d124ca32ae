"""What surrounds a task where it runs: memory that is kept from one to the next, and the threads of BLAS."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dneuro.allocation import keep_memory, make_room_for, release_memory
from dneuro.engine import stopping
from dneuro.quantities import MiB

KEPT_SHARE = 0.68
"""A worker of dask that takes up more of its memory than this gives back what it keeps for its next task."""

WORTH = 1 / 16
"""Share of its memory by which a worker has to grow after a task gave something back, before the same task does so
again: what it takes anew then comes page by page, zeroed."""

WORTH_AT_MOST = 256 * MiB
"""The same in bytes, for workers with much memory."""

REST = 0.1
"""Seconds without a task after which a worker begins with as little memory as it can."""


def same(thing: Any) -> Any:
    """Return a thing: as a task, which is done where the thing is to be."""
    return thing


def fetched(thing: Any) -> None:
    """Do nothing with a thing: as a task, which has it fetched to where it is done."""


def run_task(function: Callable[..., Any], *args: Any) -> Any:
    """Run a task on a worker that keeps the memory of one block for the next, as long as it has enough.

    The kept memory counts for dask, which pauses a worker that seems to be full; and for the user, to whom a plan was
    shown.
    """
    make_room_for(function.function if isinstance(function, stopping.Stoppable) else function)
    if _AT_WORK.begin():
        release_memory()  # what the last step kept, this one need not find of use
    keep_memory(blocks=16 * MiB, kept=64 * MiB)
    try:
        return function(*args)
    finally:
        give_back_if_full()
        _AT_WORK.end()


def give_back_if_full(*, at_work: bool = False) -> None:
    """Give back what this worker keeps, if that and what it holds is more than it may keep.

    To be called wherever a long task goes on to its next block: blocks of many sizes leave gaps behind, 180 MiB within
    one task of a hundred. Not on a worker of dask, nothing is given back.

    Parameters
    ----------
    at_work : bool
        Within a task: not if the worker has hardly grown since it gave back last.
    """
    if not _AT_WORK.busy or not (limit := _limit()):
        return
    held = psutil.Process().memory_info().rss
    _AT_WORK.left = min(_AT_WORK.left, held)
    has_grown = held > _AT_WORK.left + min(WORTH * limit, WORTH_AT_MOST)
    if held > KEPT_SHARE * limit and (has_grown or not at_work):
        release_memory()
        _AT_WORK.left = psutil.Process().memory_info().rss


class _AtWork:
    """Whether this worker is in the middle of something, or had a rest before it begins a task."""

    def __init__(self) -> None:
        self._lock, self._tasks, self._ended = threading.Lock(), 0, time.monotonic()
        self.left = 0
        """Least bytes that the process held since something was given back."""

    @property
    def busy(self) -> bool:
        """Whether a task is at work."""
        return self._tasks > 0

    def begin(self) -> bool:
        """Count a task that begins; return whether for a moment there was none."""
        with self._lock:
            self._tasks += 1
            return self._tasks == 1 and time.monotonic() - self._ended > REST

    def end(self) -> None:
        """Count a task that has ended."""
        with self._lock:
            self._tasks -= 1
            self._ended = time.monotonic()


_AT_WORK = _AtWork()


def _limit() -> int | None:
    """Return the bytes that this worker may use; None if it may use all there is."""
    from distributed import get_worker

    limit: int | None = get_worker().memory_manager.memory_limit
    return limit


class _OneThread:
    """BLAS on one thread for as long as anybody is in here; the last to leave puts back what the first has found.

    The limit is that of the process, and whoever asks may do so inside another, or at the same time in threads of its
    own: each of them setting and restoring it for itself would restore the limit of another.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._limits = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limits.enter_context(threadpool_limits(1, user_api="blas"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limits.close()


ONE_BLAS_THREAD = _OneThread()
