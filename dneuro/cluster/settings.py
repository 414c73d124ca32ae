"""dask settings that a scheduler and workers of ours need, wherever they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dneuro.allocation import TUNABLES, tunables

PRELOAD = "dneuro.cluster.workers"
"""What a worker runs before its first task."""

ALLOWED_FAILURES = 20
"""How many workers a unit may lose before the scheduler gives it up; a unit that kills its worker is refused by the
worker long before, so that the count is of machines that were lost under it."""

PROFILED = "100ms"
"""How often the profile on the dashboard looks at a task; dask's own ten times as often cost a sixth of what a worker
does for small units."""

SLACK = 60.0
"""Seconds between the moment when somebody should have noticed that workers are missing, and dask's own giving up."""


def scheduler_settings(patience: float) -> dict[str, Any]:
    """Return the settings of a scheduler.

    Parameters
    ----------
    patience : float
        Seconds that workers may take to come. A task that no worker can take fails `SLACK` after that; by itself
        dask waits for ever.
    """
    return {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.scheduler.no-workers-timeout": f"{patience + SLACK:g}s",
    }


def worker_settings() -> dict[str, Any]:
    """Return the settings of a worker: no spilling, for what it holds was planned; our preload beside the user's."""
    import dask
    import distributed  # noqa: F401 - fills in dask.config

    return {
        "distributed.worker.preload": [*dask.config.get("distributed.worker.preload"), PRELOAD],
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": 0.95,
        "distributed.worker.memory.terminate": 0.99,
        "distributed.worker.profile.interval": PROFILED,
    }


def process_variables(
    threads: int, own: Mapping[str, object] | None = None, *, inherited: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a process that computes: so many threads for torch and BLAS; dask's own is one.

    All its threads share one pool of freed memory, in which free neighbours become one at once. In the second one that
    glibc would begin, blocks that end a heap of 64 MiB are given back as they are freed: SqueezeNet took a tenth more
    time.

    Parameters
    ----------
    threads : int
        For each task.
    own : mapping of str, optional
        What its pool says, which is the last word.
    inherited : mapping of str, optional
        What it would find in its environment anyway.
    """
    threading = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    ours = {**threading, "MALLOC_ARENA_MAX": "1", TUNABLES: tunables(inherited or {})}
    return ours | {name: str(value) for name, value in (own or {}).items()}
