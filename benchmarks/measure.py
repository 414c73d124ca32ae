"""One candidate, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

PERIOD = 0.02
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Measured:
    """Seconds, peak bytes above the bare process, and what the candidate returned."""

    seconds: float
    peak: int
    value: Any


def measure(candidate: Callable[..., Any], *args: Any) -> Measured:
    """Run ``candidate(*args)`` in a fresh process; it returns (seconds, value).

    The candidate takes its own time, so that imports and preparation do not count. The peak is that of the
    resident memory of the process and all its children together.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, candidate, args))
    process.start()
    peak = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(PERIOD):
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds, value = receive.recv()
    finally:
        stop.set()
        watcher.join()
        process.join()
    return Measured(seconds, peak, value)


def _child(send: Any, candidate: Callable[..., Any], args: tuple[Any, ...]) -> None:
    send.send(candidate(*args))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return (seconds, what `function` returned)."""
    began = time.perf_counter()
    value = function()
    return time.perf_counter() - began, value
