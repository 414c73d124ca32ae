"""A window of tasks: enough in flight to keep every slot busy, never all of them at once.

The scheduler of a dask cluster blames a lost worker on every task that was assigned to it, and keeps state for
each; with two tasks per slot in flight a dying worker harms nobody, and memory stays flat in the number of tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from dneuro.engine.executors import Executor, Future

Key = TypeVar("Key")
PER_SLOT = 2


class Window(Generic[Key]):
    """Tasks by key: queued, in flight, done.

    Parameters
    ----------
    executor : Executor
        Where they run.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._queue: deque[tuple[Key, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._flying: dict[Future, Key] = {}

    def add(self, key: Key, function: Callable[..., Any], *args: Any, first: bool = False) -> None:
        """Queue a task; `first` puts it ahead of the others."""
        (self._queue.appendleft if first else self._queue.append)((key, function, args))

    def __iter__(self) -> Iterator[tuple[Key, Future]]:
        """Yield (key, future) as tasks end, also by an error; more may be added meanwhile."""
        try:
            while self._queue or self._flying:
                while self._queue and len(self._flying) < PER_SLOT * self._executor.slots:
                    key, function, args = self._queue.popleft()
                    self._flying[self._executor.submit(function, *args)] = key
                done = self._executor.wait(self._flying.keys())
                for future in sorted(done, key=lambda f: list(self._flying).index(f)):
                    yield self._flying.pop(future), future
        finally:
            for future in self._flying:
                future.cancel()
            self._flying.clear()
            self._queue.clear()


def each(
    executor: Executor, calls: Iterable[tuple[Key, Callable[..., Any], tuple[Any, ...]]]
) -> Iterator[tuple[Key, Future]]:
    """Run independent calls through a window; yield (key, future) as they end."""
    window: Window[Key] = Window(executor)
    for key, function, args in calls:
        window.add(key, function, *args)
    yield from window
