"""Tasks that nobody waits for any more: they end at their next block, and the pass that has failed ends after them.

A thread cannot be ended from outside, neither here nor on a dask worker, and one that goes on would write into a store
that its caller takes for closed. So tasks carry the token of their window; whoever stops the window leaves the token in
every process that may be at work for it, and asks until none is.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask.utils import funcname

_lock = threading.Lock()
_stopped: set[str] = set()
_running: Counter[str] = Counter()
_own = threading.local()


class Stopped(BaseException):
    """Ends a task that was stopped; no error, so nothing that handles errors is to take it for one."""


@dataclass(frozen=True)
class Stoppable:
    """A task's function that can be stopped; it then gives None, which nobody looks at.

    Parameters
    ----------
    token : str
        Of its window.
    function : callable
        What it does; calls `check` where it can be left.
    """

    token: str
    function: Callable[..., Any]

    @property
    def __name__(self) -> str:
        """Name that a dashboard shows."""
        return str(funcname(self.function))

    def __call__(self, *args: Any) -> Any:
        """Run the task, unless it was stopped before it began."""
        with _lock:
            if self.token in _stopped:
                return None
            _running[self.token] += 1
        before, _own.token = getattr(_own, "token", ""), self.token
        try:
            return self.function(*args)
        except Stopped:
            return None
        finally:
            _own.token = before
            with _lock:
                _running[self.token] -= 1
                if not _running[self.token]:
                    del _running[self.token]


def check() -> None:
    """End the task that runs here if it was stopped; to be called where nothing is half written."""
    if getattr(_own, "token", "") in _stopped:
        raise Stopped


def stop(token: str) -> int:
    """Stop the tasks of a window in this process, for good; return how many are still at work."""
    with _lock:
        _stopped.add(token)
        return _running[token]
