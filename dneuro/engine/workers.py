"""What a dask scheduler says of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ASKED = 20
"""Times that a client is asked whose answer was lost."""


def workers_of(client: Any) -> dict[str, dict[str, Any]]:
    """Return what the scheduler of a client says of each of its workers, by address.

    Notes
    -----
    A client puts the answer where it puts another one every two seconds, which counts the workers and lists none. Who
    reads that one in place of its own asks again.
    """
    for _ in range(ASKED):
        said = client.scheduler_info(n_workers=-1)
        if len(said["workers"]) >= said.get("n_workers", 0):
            break
    return dict(said["workers"])


def slots_of(worker: Mapping[str, Any], resource: str | None = None) -> int:
    """Return how many tasks a worker, as its scheduler describes it, does at the same time.

    They are as many as it has threads; of tasks that each ask for one of a resource, no more than it offers.
    """
    threads = int(worker["nthreads"])
    return threads if resource is None else min(threads, int(worker.get("resources", {}).get(resource, threads)))


def coalesces_there(worker: Mapping[str, Any]) -> bool:
    """Tell whether a worker, as its scheduler describes it, merges what it frees with its free neighbours at once.

    Those that dneuro starts do, and say so.
    """
    return bool(worker.get("metrics", {}).get("coalesces", False))
