"""An existing dask scheduler, whoever started it."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.cluster import processes
from dneuro.cluster.machines import DaskMachines, serves
from dneuro.cluster.security import check_readable
from dneuro.cluster.sizes import WorkerSizes
from dneuro.cluster.versions import check_versions, watched_for_others
from dneuro.engine.workers import coalesces_there, slots_of, workers_of
from dneuro.errors import DneuroError, UsageError
from dneuro.quantities import GiB, format_bytes, format_duration
from dneuro.spec.profile import PoolSpec, ProfileSpec
from dneuro.spec.sites import FILES_HINT, AddressSpec

PATIENCE = 30.0
"""Seconds that a scheduler is given to answer, where ``start_timeout`` is not less."""

ANSWER = 5.0
"""Seconds that it is given when it is asked for a plan that can be made without it."""


class AddressBackend(processes.DriversHere):
    """The workers of a scheduler that others start and end.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: address``.
    """

    kind = "address"

    def __init__(self, profile: ProfileSpec) -> None:
        assert profile.address is not None  # the profile was checked
        self.profile = profile
        self.address = profile.address
        self._told: dict[str, WorkerSizes] = {}

    def sizes(self, pool: str) -> WorkerSizes:
        """Return what the workers of a pool have: what the scheduler says, and no more memory than the profile says.

        Where none is there yet, or nobody answers, the profile's words count if it says how many and how much memory.
        """
        group = self.profile.group(pool)
        if group not in self._told:
            self._told[group] = self._found(group) or self._said(group)
        return self._told[group]

    def _found(self, group: str) -> WorkerSizes | None:
        """Return what the scheduler says; None if that is nothing, and the profile says enough."""
        spec = self.profile.groups[group]
        enough = spec.workers is not None and spec.memory is not None
        if isinstance(self._seen, DneuroError):
            if not enough:
                raise self._seen
            events.emit("note", "", f"pool {group} is as the profile says: {self._seen.message}")
            return None
        if there := self._seen[group]:
            return _as_they_are(there, spec)
        if not enough:
            raise self._nobody(group)
        return None

    def _said(self, group: str) -> WorkerSizes:
        spec = self.profile.groups[group]
        assert spec.workers is not None and spec.memory is not None  # else nobody takes its word
        return WorkerSizes(spec.workers, spec.threads, max(1, (spec.cpus or 1) // spec.threads), spec.memory)

    @functools.cached_property
    def _seen(self) -> dict[str, list[dict[str, Any]]] | DneuroError:
        """The workers of each group, or why nobody says."""
        said = all(spec.workers and spec.memory for spec in self.profile.groups.values())
        try:
            with self._connected(ANSWER if said else PATIENCE) as client:
                return self._by_group(client)
        except DneuroError as error:
            return error

    def _by_group(self, client: Any) -> dict[str, list[dict[str, Any]]]:
        workers = workers_of(client).values()
        return {
            group: [worker for worker in workers if serves(worker, group, pool, "address")]
            for group, pool in self.profile.groups.items()
        }

    @contextlib.contextmanager
    def open(self, *, folder: Path | None = None, name: str = "dneuro") -> Iterator[DaskMachines]:
        """Connect; when the block ends the workers stay.

        Raises
        ------
        DneuroError
            If nobody answers at the address, a pool has no worker within its ``start_timeout``, or versions differ.
        UsageError
            If workers have less memory, or do more at the same time, than what was planned for.
        """
        with self._connected() as client:
            began = time.monotonic()
            while empty := [group for group, workers in self._by_group(client).items() if not workers]:
                late = [group for group in empty if time.monotonic() - began > self.profile.timeout(group)]
                if late:
                    raise self._nobody(late[0])
                time.sleep(0.2)
            for group, workers in self._by_group(client).items():
                self._refuse_less(group, workers)
            check_versions(client)
            with watched_for_others(client):
                yield DaskMachines(client, self.profile)

    @contextlib.contextmanager
    def _connected(self, patience: float = PATIENCE) -> Iterator[Any]:
        timeout = min(patience, self.profile.timeout("extract"))
        with connect_to(self.address, timeout=timeout, tls=self.profile.security.tls) as client:
            yield client

    def _refuse_less(self, group: str, there: list[dict[str, Any]]) -> None:
        """Refuse workers that came after the plan and are not like it: tasks would take memory that nobody has."""
        planned = self._told.get(group)
        if planned is None or not there:
            return
        now = _as_they_are(there, self.profile.groups[group])
        alike = now.coalescing or not planned.coalescing
        if now.threads <= planned.threads and now.memory >= planned.memory and alike:
            return
        why = "" if alike else ", and not all were started by dneuro, as those were: a forward pass takes more in them"
        raise UsageError(
            f"pool {group}: planned were {planned.threads} units at the same time in {format_bytes(planned.memory)}, "
            f"the workers at {self.address.scheduler} do {now.threads} in {format_bytes(now.memory)}{why}",
            hint="the same command again plans for them, now that they are there",
        )

    def _nobody(self, group: str) -> DneuroError:
        pool = self.profile.groups[group]
        which = f" that offers {pool.resource}" if pool.resource else f" named {pool.names}" if pool.names else ""
        return DneuroError(
            f"pool {group}: the scheduler at {self.address.scheduler} has no worker{which} after "
            f"{format_duration(self.profile.timeout(group))}",
            hint=f"dask worker {self.address.scheduler}" + (f" --resources {pool.resource}=1" if pool.resource else ""),
        )


def _as_they_are(there: list[dict[str, Any]], spec: PoolSpec) -> WorkerSizes:
    """Return what the workers of a pool have, as the scheduler describes them: the least memory, the most tasks."""
    resource = spec.resource if spec.names is None else None  # the tasks of workers with names ask for none
    threads = max(1, *(slots_of(worker, resource) for worker in there))
    memory = min(worker["memory_limit"] or spec.memory or GiB for worker in there)
    return WorkerSizes(
        spec.workers or len(there),
        threads,
        max(1, (spec.cpus or 1) // threads),
        memory if spec.memory is None else min(memory, spec.memory),
        coalescing=all(map(coalesces_there, there)),
    )


def connect_to(address: AddressSpec, *, timeout: float, tls: str = "auto") -> Any:
    """Return a synchronous `distributed.Client` of a scheduler, to be closed or used in a ``with`` block.

    One without encryption that is reached from other machines is warned of.

    Parameters
    ----------
    address : AddressSpec
        The scheduler's, and the files that it asks for.
    timeout : float
        Seconds to wait for an answer.
    tls : str
        ``security.tls`` of the profile: where it is ``"required"`` nothing else is used.

    Raises
    ------
    UsageError
        If it is not encrypted and must be, or a file is missing.
    DneuroError
        If nobody answers, or the certificates do not fit.
    """
    import dask
    from distributed import Client

    if not address.scheduler.startswith("tls://"):
        if tls == "required":
            raise UsageError(f"{address.scheduler} is not encrypted", hint="security: {tls: auto}, or tls://…")
        if not is_loopback(address.scheduler):
            events.emit("warning", message=f"{address.scheduler}: whoever reaches it can run code on its workers")
    security, before = _security(address), dask.config.get("scheduler", None)
    try:
        return Client(address.scheduler, security=security, timeout=timeout)
    except (OSError, ValueError) as error:
        dask.config.set(scheduler=before)  # it has said already that everything is computed there
        raise DneuroError(
            f"no connection to the scheduler at {address.scheduler} within {format_duration(timeout)}: {error}",
            hint="is it running, does a firewall lie between, and are ca, cert and key of the same run?",
        ) from error


def is_loopback(address: str) -> bool:
    """Return whether an address such as ``tcp://127.0.0.1:8786`` is reached from its own machine only."""
    host = address.partition("://")[2].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _security(address: AddressSpec) -> Any:
    if not address.scheduler.startswith("tls://"):
        return None
    from distributed import Security

    files = {"ca": address.ca, "cert": address.cert, "key": address.key}
    if address.missing:
        raise UsageError(f"{address.scheduler} needs {', '.join(address.missing)}", hint=FILES_HINT)
    for name, path in files.items():
        check_readable(Path(str(path)), private=name == "key")
    return Security(
        tls_ca_file=address.ca, tls_client_cert=address.cert, tls_client_key=address.key, require_encryption=True
    )
