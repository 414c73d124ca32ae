"""One candidate, measured in a process of its own: seconds, memory of the whole family, and how it died if it did."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

PERIOD = 0.05
"""Seconds between two looks at the memory."""
GROWN = 1.02
"""The proportional set size, which stops a process for milliseconds, is looked at when its resident size has grown."""
LEFT = 1 << 30
"""A candidate that leaves the machine less free memory than this is ended."""


@dataclass(frozen=True)
class Measured:
    """What one run of a candidate took.

    Parameters
    ----------
    seconds : float
        Of the timed part; imports, workers and preparation do not count.
    reading : float
        Of them, getting the array into memory, where the candidate needs it there.
    cpu : float
        Seconds that all its processes computed meanwhile, sampled: steadier than `seconds` on a shared machine.
    peak : int
        Bytes of the process and all its children together (proportional set size: shared pages count once).
    worker : int
        Bytes of the largest child at its own peak (resident); 0 without children.
    value : object
        What the candidate found.
    failure : str
        How it ended otherwise; empty if it did not.
    planned, planned_worker : int
        What dneuro foretold of `peak` and of `worker`; 0 where nobody did.
    """

    seconds: float = float("nan")
    reading: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    worker: int = 0
    value: Any = None
    failure: str = ""
    planned: int = 0
    planned_worker: int = 0


@dataclass
class Clock:
    """What a candidate uses to say which part of its time was reading, and what memory it was planned to take.

    Parameters
    ----------
    reading : float
        Seconds of reading.
    planned, planned_worker : int
        Bytes of all processes together, and of a worker.
    """

    reading: float = 0.0
    planned: int = 0
    planned_worker: int = 0

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Count the time inside as reading."""
        began = time.perf_counter()
        yield
        self.reading += time.perf_counter() - began


def measure(
    task: Callable[..., Any], *args: Any, patience: float = 1800, variables: Mapping[str, str] | None = None
) -> Measured:
    """Run ``task(clock, started, *args)`` in a fresh process, with `variables` in its environment, and watch it.

    The task prepares, calls ``started()`` with what is to be timed, and returns what is left of its value.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, task, args))
    with _environment(variables or {}):
        process.start()
    send.close()
    watch = _Watch(process.pid or 0, patience)
    watch.start()
    found: dict[str, Any] = {}
    try:
        while "end" not in found:
            kind, content = receive.recv()
            found[kind] = content
            watch.on = kind == "start"
    except EOFError:
        found.setdefault("failure", watch.why or "killed")
    watch.stop.set()
    watch.join()
    process.join()
    return Measured(
        found.get("seconds", float("nan")), found.get("reading", 0.0), watch.cpu, watch.peak, watch.worker,
        found.get("value"), watch.why or found.get("failure", ""), *found.get("planned", ()),
    )  # fmt: skip


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _child(send: Connection, task: Callable[..., Any], args: tuple[Any, ...]) -> None:
    clock = Clock()

    def timed(work: Callable[[], Any]) -> Any:
        send.send(("planned", (clock.planned, clock.planned_worker)))
        send.send(("start", None))
        began = time.perf_counter()
        value = work()
        send.send(("seconds", time.perf_counter() - began))
        return value

    try:
        value = task(clock, timed, *args)
        send.send(("reading", clock.reading))
        send.send(("value", value))
    except BaseException as error:  # a peer that dies is a line in the table
        send.send(("failure", type(error).__name__))
    send.send(("end", None))


class _Watch(threading.Thread):
    """Looks at the memory of a process and its children, and ends them where they take all or too long."""

    def __init__(self, pid: int, patience: float) -> None:
        super().__init__(daemon=True)
        self.pid, self.patience, self.deadline = pid, patience, time.monotonic() + patience
        self.on, self.stop = False, threading.Event()
        self.peak, self.worker, self.why = 0, 0, ""
        self.cpu, self._before, self._resident = 0.0, -1.0, 0

    def run(self) -> None:
        while not self.stop.wait(PERIOD):
            with contextlib.suppress(psutil.NoSuchProcess):
                children = [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
                if self.on:
                    family = [self.pid, *children]
                    resident = sum(_kilobytes(pid, "status", "VmRSS:") for pid in family)
                    if resident > GROWN * self._resident:
                        self._resident = resident
                        self.peak = max(self.peak, sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in family))
                    spent = sum(_computed(pid) for pid in family)
                    self._before = spent if self._before < 0 else self._before
                    self.cpu = spent - self._before
                    self.worker = max([self.worker, *(_kilobytes(pid, "status", "VmHWM:") for pid in children)])
                if psutil.virtual_memory().available < LEFT:
                    self._end("MemoryError (the machine was full)", children)
                elif time.monotonic() > self.deadline:
                    self._end(f"longer than {self.patience:.0f} s", children)

    def _end(self, why: str, children: list[int]) -> None:
        self.why = why
        for pid in [*children, self.pid]:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


def _computed(pid: int) -> float:
    """Return the seconds that a process has computed, in all its threads."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _kilobytes(pid: int, file: str, line: str) -> int:
    """Return a number of the kernel's files about a process, in bytes."""
    with contextlib.suppress(OSError):
        for row in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if row.startswith(line):
                return 1024 * int(row.split()[1])
    return 0


def free_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
