"""Zarr's work done by the thread that asks for it, instead of by threads of Zarr's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def can_run_here() -> bool:
    """Return whether this thread is free to: in a notebook's first one a loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def run_here(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine of Zarr's returns, with all that it hands to threads done here, one after the other.

    Zarr has a loop on one thread and codecs on others, several per core. Where every core computes already, each of
    them takes its time and its cache from the rest. Only for stores on a disk: those of a network have loops of their
    own.

    Parameters
    ----------
    work : coroutine
        Such as ``array.async_array.getitem(…)``.
    """
    loop = asyncio.new_event_loop()
    try:
        loop.set_default_executor(_Here(1))
        return loop.run_until_complete(work)
    finally:
        left = asyncio.all_tasks(loop)  # after an error there may be some
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


class _Here(ThreadPoolExecutor):
    """Does at once what it is given; has no thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except BaseException as error:  # whoever waits gets it
            done.set_exception(error)
        return done
