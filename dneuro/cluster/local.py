"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from dneuro import events
from dneuro.allocation import can_coalesce, is_told
from dneuro.cluster import processes
from dneuro.cluster.machines import DaskMachines
from dneuro.cluster.record import job_folder_of
from dneuro.cluster.security import make_credentials, place_of_keys, read_credentials, remove_keys
from dneuro.cluster.settings import process_variables, scheduler_settings, worker_settings
from dneuro.cluster.sizes import WorkerSizes
from dneuro.engine.memory import available, installed
from dneuro.errors import DneuroError
from dneuro.quantities import MiB, format_bytes
from dneuro.spec.profile import PoolSpec, ProfileSpec

SHARE = 0.8
"""Share of the free memory that the workers get together, where the profile does not say."""

KEPT = "1000 days"
"""How long a lost worker may be away: for good, since its nanny starts it again. dask's own cluster looks once, 15
seconds after a loss, and closes the nanny of a worker that is not there just then, be it about to come."""

LEAST = 1664 * MiB
"""Memory below which another worker is not worth having, where the profile does not say how many."""


class LocalBackend(processes.DriversHere):
    """Worker processes on this machine, reachable over loopback only.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: local``.
    """

    kind = "local"

    def __init__(self, profile: ProfileSpec) -> None:
        self.profile = profile

    def sizes(self, pool: str) -> WorkerSizes:
        """Return what the workers of a pool have, defaults filled in from this machine."""
        return self._all_sizes[self.profile.group(pool)]

    @cached_property
    def _all_sizes(self) -> dict[str, WorkerSizes]:
        """Found out once: what is free changes, and pools that are the same processes have the same."""
        cores = len(psutil.Process().cpu_affinity() or [0])
        there = available()
        free = math.floor(there * SHARE)
        groups = self.profile.groups
        # What no pool says is its own is shared out equally.
        said = {name: pool.workers * pool.memory for name, pool in groups.items() if pool.workers and pool.memory}
        share = max(LEAST, (free - sum(said.values())) // max(1, len(groups) - len(said)))
        cards, each = _cards(groups), max(1, cores // len(groups))
        found = {
            name: _pool_sizes(pool, cards.get(name, []), each, share if len(groups) > 1 else free)
            for name, pool in groups.items()
        }
        # Results are held beside the workers; the profile may give those more than there is, and they not take it.
        asked, whole = sum(size.workers * size.memory for size in found.values()), installed()
        if asked > whole:
            given = f"the workers are given {format_bytes(asked)} together, and this machine has {format_bytes(whole)}"
            events.emit("warning", message=f"{given}: what is planned for them may not fit")
        driver = max(there - free, there - asked)
        return {name: replace(size, driver=driver) for name, size in found.items()}

    @contextlib.contextmanager
    def open(self, *, folder: Path | None = None, name: str = "dneuro") -> Iterator[DaskMachines]:
        """Start worker processes; they end with the block.

        Everything listens on loopback only, the dashboard on a port that is free.

        Raises
        ------
        DneuroError
            If a pool has no worker within its ``start_timeout``.
        """
        import dask
        from distributed import Client, Scheduler, SpecCluster  # fills in dask.config, too

        from dneuro.cluster.nannies import PoolNanny

        sizes = self._all_sizes
        timeout = max(self.profile.timeout(group) for group in sizes)
        settings = {
            **scheduler_settings(timeout),
            **worker_settings(),
            "distributed.comm.timeouts.connect": f"{timeout}s",
            "distributed.deploy.lost-worker-timeout": KEPT,
        }
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="dneuro-", ignore_cleanup_errors=True))
            stack.enter_context(dask.config.set(settings))
            security = None
            if folder is not None:
                remove_keys(job_folder_of(folder) or folder)  # of an attempt whose driver was killed
            if self.profile.security.tls == "required":
                keys = make_credentials(place_of_keys(folder or Path(scratch), self.profile.security.folder))
                stack.callback(shutil.rmtree, keys, ignore_errors=True)
                security = read_credentials(keys)
            workers = {
                f"{group}-{number}": {"cls": PoolNanny, "options": options}
                for group, size in sizes.items()
                for number, options in enumerate(self._workers(group, size, scratch, security))
            }
            scheduler = {"host": "127.0.0.1", "port": 0, "dashboard": self.profile.security.dashboard is not False,
                         "dashboard_address": "127.0.0.1:0", "security": security,
                         "protocol": "tls://" if security else "tcp://"}  # fmt: skip
            try:
                cluster = stack.enter_context(
                    SpecCluster(workers, {"cls": Scheduler, "options": scheduler}, name=name, security=security,
                                silence_logs=50)
                )  # fmt: skip
                client = stack.enter_context(Client(cluster, security=security))
                client.wait_for_workers(len(workers), timeout=timeout)
            except (TimeoutError, OSError, RuntimeError) as error:
                asked = ", ".join(f"pool {group}: {size.workers} workers of {format_bytes(size.memory)}"
                                  for group, size in sizes.items())  # fmt: skip
                raise DneuroError(
                    f"not all workers came up within {timeout:g} s ({asked} asked for): {_cause(error)}",
                    hint="fewer workers in the profile's pools, or a longer start_timeout; in a script of your own, "
                    "put the call below `if __name__ == \"__main__\":`, for workers import the script too",
                ) from error
            yield DaskMachines(client, self.profile)

    def _workers(self, group: str, size: WorkerSizes, scratch: str, security: Any) -> Iterator[dict[str, Any]]:
        pool = self.profile.groups[group]
        for number in range(size.workers):
            yield {
                "nthreads": size.threads,
                "memory_limit": size.memory,
                "host": "127.0.0.1",
                "dashboard": False,
                "local_directory": scratch,
                "silence_logs": 50,
                "resources": {group: size.threads},
                "security": security,
                "patience": self.profile.timeout(group),
                "pre_spawn": {**self._visible(group, number),
                              **process_variables(size.cpus, pool.env, inherited=os.environ)},
            }  # fmt: skip

    def _visible(self, group: str, number: int) -> dict[str, str]:
        """Give each worker its own GPU, so that no two load their network into the same one, and others none."""
        if not any(other.gpus for other in self.profile.groups.values()):
            return {}
        pool = self.profile.groups[group]
        return {"CUDA_VISIBLE_DEVICES": _cards(self.profile.groups)[group][number] if pool.gpus else ""}


def _cause(error: BaseException) -> BaseException:
    """Return what an error comes from: dask says of the first one only that a nanny has failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _cards(groups: Mapping[str, PoolSpec]) -> dict[str, list[str]]:
    """Return the GPUs of each pool that asks for some: no two pools have the same.

    Raises
    ------
    DneuroError
        If there are too few.
    """
    pools = {name: pool for name, pool in groups.items() if pool.gpus}
    if not pools:
        return {}
    there = gpus()
    asked = sum(pool.workers or 1 for pool in pools.values())
    if asked > len(there):
        raise DneuroError(
            f"{asked} workers with a GPU each are asked for, this machine has {len(there)}",
            hint="gpus: 0, or workers: as many as there are"
            + ("; a pool left empty has the workers of the other" if len(pools) > 1 else ""),
        )
    # Those that no pool has asked for by number are shared out among the pools that leave it open.
    spare, left = len(there) - asked, sum(pool.workers is None for pool in pools.values())
    found = {}
    for name, pool in pools.items():
        more = 0
        if pool.workers is None:
            more, left = -(-spare // left), left - 1
            spare -= more
        count = (pool.workers or 1) + more
        found[name], there = there[:count], there[count:]
    return found


def _pool_sizes(pool: PoolSpec, devices: list[str], cores: int, free: int) -> WorkerSizes:
    # One worker per core, but none with less memory than torch and a small network take.
    usual = len(devices) or max(1, min(cores // (pool.cpus or 1), free // (pool.memory or LEAST)))
    workers = pool.workers or usual
    cpus = max(1, (pool.cpus or cores // workers) // pool.threads)
    memory = pool.memory or free // workers
    coalescing = can_coalesce() and is_told(process_variables(cpus, pool.env))
    return WorkerSizes(workers, pool.threads, cpus, memory, pool.gpus, coalescing=coalescing)


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    found = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number, _ in enumerate(sorted(found.iterdir()))] if found.is_dir() else []
