"""Which workers do which step: those of its pool, where there are several."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from dneuro.engine.executors import Executor, Sizes, get_executor

EXTRACT = "extract"
"""The pool that trains and extracts where a job does not say otherwise."""

SizesOf = Callable[[str], Sizes]
ExecutorOf = Callable[[str], Executor]


def sizes_of(where: Sizes | SizesOf) -> SizesOf:
    """Return what the workers of each pool have; `where` says it, or is all there is."""
    return cache(where) if callable(where) else lambda pool: where


def executors_of(client: Any) -> ExecutorOf:
    """Return where the tasks of each pool run: by pool on opened machines, else all on a dask client or on threads."""
    if hasattr(client, "executor"):
        return cache(client.executor)
    executor = get_executor(client)
    return lambda pool: executor
