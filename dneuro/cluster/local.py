"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from dneuro.errors import DneuroError
from dneuro.quantities import MiB, format_bytes
from dneuro.spec.profile import PoolSpec, ProfileSpec

SHARE = 0.8
"""Share of the free memory that the workers get together, where the profile does not say."""

LEAST = 1664 * MiB
"""Memory below which another worker is not worth having, where the profile does not say how many."""


@dataclass(frozen=True)
class WorkerSizes:
    """What each worker has.

    Parameters
    ----------
    workers : int
        Processes.
    threads : int
        Tasks per process.
    cpus : int
        Threads that torch and BLAS may use per task.
    memory : int
        Bytes per process.
    """

    workers: int
    threads: int
    cpus: int
    memory: int

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        return self.workers * self.threads

    @property
    def slots_per_process(self) -> int:
        """Tasks that share a process."""
        return self.threads


def worker_sizes(profile: ProfileSpec) -> WorkerSizes:
    """Return what the workers of a local profile have, defaults filled in from this machine."""
    pool = profile.pools.get("extract") or profile.pools.get("memory") or PoolSpec()
    cores = len(psutil.Process().cpu_affinity() or [0])
    free = math.floor(psutil.virtual_memory().available * SHARE)
    # One worker per core, but none with less memory than torch and a small network take.
    workers = pool.workers or max(1, min(cores // (pool.cpus or 1), free // (pool.memory or LEAST)))
    memory = pool.memory or free // workers
    cpus = pool.cpus or max(1, cores // (workers * pool.threads))
    return WorkerSizes(workers, pool.threads, cpus, memory)


@contextlib.contextmanager
def open_local(profile: ProfileSpec) -> Iterator[Any]:
    """Start worker processes and yield a dask client; they end with the ``with`` block.

    Everything listens on loopback only, the dashboard on a port that is free.

    Raises
    ------
    DneuroError
        If no worker comes up within the profile's ``start_timeout``.
    """
    import dask
    from distributed import Client, LocalCluster  # fills in dask.config, too

    sizes = worker_sizes(profile)
    threads = str(sizes.cpus)
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = {
        "distributed.scheduler.allowed-failures": 20,
        "distributed.worker.preload": [*dask.config.get("distributed.worker.preload"), "dneuro.cluster.workers"],
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": 0.95,
        "distributed.worker.memory.terminate": 0.99,
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(variables, threads),
        "distributed.comm.timeouts.connect": f"{profile.start_timeout}s",
    }
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dneuro-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set(settings))
        try:
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=sizes.workers,
                    threads_per_worker=sizes.threads,
                    memory_limit=sizes.memory,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    local_directory=folder,
                    silence_logs=50,
                )
            )
            client = stack.enter_context(Client(cluster))
            client.wait_for_workers(1, timeout=profile.start_timeout)
        except (TimeoutError, OSError, RuntimeError) as error:
            raise DneuroError(
                f"no worker came up within {profile.start_timeout:g} s ({sizes.workers} workers of "
                f"{format_bytes(sizes.memory)} asked for): {error}",
                hint="fewer workers in the profile's pools, or a longer start_timeout; in a script of your own, put "
                "the call below `if __name__ == \"__main__\":`, for workers import the script too",
            ) from error
        yield client
