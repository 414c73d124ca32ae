"""Workers that stand still: dask lets one whose memory is full begin nothing more, and says so in its log only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from dneuro import events
from dneuro.errors import DneuroError
from dneuro.quantities import format_bytes, format_duration

NOTICED = 10.0
"""Seconds after which a worker that stands still is spoken of; one that is full for a moment soon goes on."""

AT_WORK = ("executing", "long-running")
"""States of the tasks that a paused worker goes on with."""


class Standstill:
    """Watches for workers that are paused and have nothing in hand whose end could free their memory.

    Parameters
    ----------
    of_pool : str
        Such as `` of pool extract``, for messages.
    patience : float
        Seconds for which all workers may stand still.
    """

    def __init__(self, of_pool: str, patience: float) -> None:
        self._of_pool, self._patience = of_pool, patience
        self._since: dict[str, float] = {}
        self._said: set[str] = set()

    def clear(self) -> None:
        """Note that something was done: from here on it is counted anew."""
        self._since = {}

    def look(self, workers: Iterable[Mapping[str, Any]]) -> None:
        """Warn of a worker that stands still, once until it goes on.

        Parameters
        ----------
        workers : iterable of mapping
            As the scheduler describes them, with their ``address``.

        Raises
        ------
        DneuroError
            If all of them have stood still for longer than `patience`.
        """
        now, there = time.monotonic(), list(workers)
        still = {str(worker["address"]): worker for worker in there if stands_still(worker)}
        self._since = {address: self._since.get(address, now) for address in still}
        self._said &= still.keys()
        for address, since in self._since.items():
            if now - since >= NOTICED and address not in self._said:
                self._said.add(address)
                events.emit("warning", message=f"{_described(still[address])}; {_WAY_OUT}")
        if there and len(still) == len(there) and now - max(self._since.values()) > self._patience:
            raise DneuroError(
                f"every worker{self._of_pool} has stood still for {format_duration(self._patience)}: "
                + "; ".join(_described(worker) for worker in still.values()),
                hint=f"{_WAY_OUT}; then the same command again: what is done stays done",
            )


_WAY_OUT = "restart it (client.restart_workers([address])), or start it with a larger --memory-limit"


def stands_still(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker, as the scheduler describes it, is paused and does nothing."""
    counts = worker.get("metrics", {}).get("task_counts", {})
    return worker.get("status") == "paused" and not any(counts.get(state) for state in AT_WORK)


def _described(worker: Mapping[str, Any]) -> str:
    held, limit = int(worker.get("metrics", {}).get("memory", 0)), worker.get("memory_limit")
    full = f"it holds {format_bytes(held)}" + (f" of {format_bytes(int(limit))}" if limit else "")
    return f"worker {worker['address']} is paused and begins nothing more, for its memory is full: {full}"
