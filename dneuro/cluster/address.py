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
from dneuro.errors import DneuroError, UsageError
from dneuro.quantities import GiB, format_duration
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.sites import FILES_HINT, AddressSpec


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

    def sizes(self, pool: str) -> WorkerSizes:
        """Return what the workers of a pool have: what the profile says, else what the scheduler says of them."""
        group = self.profile.group(pool)
        spec = self.profile.groups[group]
        if spec.workers and spec.memory:
            return WorkerSizes(spec.workers, spec.threads, max(1, (spec.cpus or 1) // spec.threads), spec.memory)
        found = self._seen[group]
        if not found:
            raise self._nobody(group)
        threads = min(worker["nthreads"] for worker in found)
        memory = spec.memory or min(worker["memory_limit"] or GiB for worker in found)
        return WorkerSizes(spec.workers or len(found), threads, max(1, (spec.cpus or 1) // threads), memory)

    @functools.cached_property
    def _seen(self) -> dict[str, list[dict[str, Any]]]:
        with self._connected() as client:
            return self._by_group(client)

    def _by_group(self, client: Any) -> dict[str, list[dict[str, Any]]]:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
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
        """
        with self._connected() as client:
            began = time.monotonic()
            while empty := [group for group, workers in self._by_group(client).items() if not workers]:
                late = [group for group in empty if time.monotonic() - began > self.profile.timeout(group)]
                if late:
                    raise self._nobody(late[0])
                time.sleep(0.2)
            check_versions(client)
            with watched_for_others(client):
                yield DaskMachines(client, self.profile)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        timeout = min(30.0, self.profile.timeout("extract"))
        with connect_to(self.address, timeout=timeout, tls=self.profile.security.tls) as client:
            yield client

    def _nobody(self, group: str) -> DneuroError:
        pool = self.profile.groups[group]
        which = f" that offers {pool.resource}" if pool.resource else f" named {pool.names}" if pool.names else ""
        return DneuroError(
            f"pool {group}: the scheduler at {self.address.scheduler} has no worker{which} after "
            f"{format_duration(self.profile.timeout(group))}",
            hint=f"dask worker {self.address.scheduler}" + (f" --resources {pool.resource}=1" if pool.resource else ""),
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
