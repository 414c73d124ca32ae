"""A window of tasks: enough in flight to keep every slot busy, never all of them at once.

The scheduler of a dask cluster blames a lost worker on every task that was assigned to it, and keeps state for
each; with two tasks per slot in flight a dying worker harms nobody, and memory stays flat in the number of tasks.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

from dneuro.engine.executors import Executor, Future
from dneuro.engine.stopping import Stoppable

Key = TypeVar("Key")
Call = tuple[Key, Callable[..., Any], tuple[Any, ...]]
PER_SLOT = 2


class Window(Generic[Key]):
    """Tasks by key: still to come, queued, in flight, done.

    Parameters
    ----------
    executor : Executor
        Where they run.
    calls : iterable of (key, function, arguments)
        Tasks; each is asked for only when there is room for it.
    """

    def __init__(self, executor: Executor, calls: Iterable[Call[Key]] = ()) -> None:
        self._executor = executor
        self._calls = iter(calls)
        self._queue: deque[Call[Key]] = deque()
        self._flying: dict[Future, Key] = {}
        self._token = uuid.uuid4().hex

    def add(self, key: Key, function: Callable[..., Any], *args: Any) -> None:
        """Queue a task, ahead of the calls that are still to come."""
        self._queue.append((key, function, args))

    def __iter__(self) -> Generator[tuple[Key, Future], None, None]:
        """Yield (key, future) as tasks end, also by an error; more may be added meanwhile.

        When the iterator is closed, what is in flight is stopped, and waited for: nothing is at work for this window
        any more. Use `contextlib.closing` where an error may leave the loop early.
        """
        try:
            while self._fill():
                done = self._executor.wait(self._flying.keys())
                ended = deque(future for future in self._flying if future in done)
                del done  # whoever holds a future holds its result
                while ended:
                    future = ended.popleft()
                    key = self._flying.pop(future)
                    yield key, future
                    del future
        finally:
            self._queue.clear()
            if self._flying:
                self._executor.stop(self._token, self._flying)
            self._flying.clear()

    def _fill(self) -> bool:
        """Start tasks while there is room; return whether any are in flight."""
        while len(self._flying) < PER_SLOT * self._executor.slots:
            call = self._queue.popleft() if self._queue else next(self._calls, None)
            if call is None:
                break
            key, function, args = call
            self._flying[self._executor.submit(Stoppable(self._token, function), *args)] = key
        return bool(self._flying)


def each(executor: Executor, calls: Iterable[Call[Key]]) -> Generator[tuple[Key, Future], None, None]:
    """Run independent calls through a window; yield (key, future) as they end. To be closed as a window is."""
    yield from Window(executor, calls)
