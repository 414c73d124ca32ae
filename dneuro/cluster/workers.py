"""What a worker process of ours does before its first task; dask runs it as a preload."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

from dneuro.allocation import coalesces, keep_memory


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver, and keep memory between batches.

    A terminal sends it to every process of the run. The driver ends the workers in order; a worker that took it for
    itself would print a traceback.
    """
    keep_memory()  # dask's own setting gives back every tensor at once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker.metrics["peak_memory"] = _peak_memory
    worker.metrics["coalesces"] = lambda _worker: coalesces()


def _peak_memory(worker: Any) -> int:
    """Return the most bytes that the process has held; it travels with each heartbeat."""
    with contextlib.suppress(OSError, ValueError):  # not everywhere is Linux
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0
