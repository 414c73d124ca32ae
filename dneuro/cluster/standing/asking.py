"""Where a cluster stands, and a client of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dneuro.cluster.address import connect_to
from dneuro.cluster.backends import DriverState, backend_of
from dneuro.cluster.profiles import profile_folders
from dneuro.cluster.standing.folder import (
    CLUSTER,
    Target,
    find_started,
    folder_started,
    kept_driver,
    none_stands,
    profile_at,
    read,
)
from dneuro.engine.workers import workers_of
from dneuro.errors import DneuroError
from dneuro.spec.sites import AddressSpec


@dataclass(frozen=True)
class StandingCluster:
    """A cluster that was started by `up`.

    Parameters
    ----------
    name : str
        The profile's.
    state : str
        Of the process that holds the scheduler: ``pending``, ``running``, ``ending``, ``gone`` or ``unknown``, also
        where it may have been started, and whoever started it was told nothing of it.
    address : str
        The scheduler's; empty until it listens.
    credentials : str
        Folder with ``ca.pem``, ``client.pem`` and ``client.key``, readable by its owner only.
    dashboard : str
        URL on the scheduler's machine; empty if there is none.
    folder : str
        Logs and records.
    workers : dict of str to int
        Workers there are, by pool; empty where it was not asked.
    note : str
        Why it is ``pending``, as far as anybody says.
    """

    name: str
    state: DriverState
    address: str
    credentials: str
    dashboard: str
    folder: str
    workers: dict[str, int]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def status(profile: Target) -> StandingCluster:
    """Return where a cluster stands, and how many workers its pools have.

    Raises
    ------
    UsageError
        If none was started from this profile.
    """
    path, spec, folder = find_started(profile)
    ref, said = kept_driver(folder), read(folder / CLUSTER)
    state: DriverState = "unknown" if ref is None else backend_of(spec).driver_state(ref)
    workers: dict[str, int] = {}
    if state == "running" and said:
        with connect_to(_address(said), timeout=10) as client:
            there = workers_of(client).values()
        for group in spec.groups:
            workers[group] = sum(group in worker.get("resources", {}) for worker in there)
    here = said if state == "running" else {}
    note = backend_of(spec).why_waiting(ref) if state == "pending" and ref is not None else ""
    return StandingCluster(path.stem, state, here.get("address", ""), here.get("credentials", ""),
                           here.get("dashboard", ""), str(folder), workers, note)  # fmt: skip


def connect(cluster: Target, *, credentials: Target | None = None, timeout: float = 30.0) -> Any:
    """Return a plain dask client of a cluster that stands.

    Parameters
    ----------
    cluster : str or path
        The address that ``dneuro cluster up`` printed, or the profile it was started from, or one with
        ``backend: address``.
    credentials : str or path, optional
        Folder with ``ca.pem``, ``client.pem`` and ``client.key``; found by itself for a cluster that was started from
        one of the profiles here.
    timeout : float
        Seconds to wait for an answer.

    Returns
    -------
    distributed.Client

    Raises
    ------
    UsageError
        If there is no such cluster, no credentials for it, or its profile asks for encryption and it has none.
    DneuroError
        If it does not answer.
    """
    text = os.fspath(cluster)
    if "://" in text:
        said = {"address": text, "credentials": os.fspath(credentials) if credentials else _known(text)}
        return connect_to(_address(said), timeout=timeout)
    path, spec = profile_at(cluster)
    if spec.address is not None:
        return connect_to(spec.address, timeout=timeout, tls=spec.security.tls)
    folder = folder_started(path, spec)
    said = read(folder / CLUSTER) if folder else {}
    if not said:
        raise none_stands(cluster, path, spec, "no cluster of the profile {} stands")
    return connect_to(_address(said | ({"credentials": os.fspath(credentials)} if credentials else {})),
                      timeout=timeout)  # fmt: skip


def _address(said: dict[str, Any]) -> AddressSpec:
    folder = said.get("credentials")
    files = {"ca": f"{folder}/ca.pem", "cert": f"{folder}/client.pem", "key": f"{folder}/client.key"} if folder else {}
    return AddressSpec(scheduler=said["address"], **files)


def _known(address: str) -> str | None:
    """Return the credentials for an address, if a cluster of one of the profiles here has it."""
    for folder in _folders():
        said = read(folder / CLUSTER)
        if said and said["address"] == address:
            return str(said["credentials"])
    return None


def _folders() -> Iterator[Path]:
    for place in profile_folders():
        for path in sorted(place.glob("*.yaml")):
            with contextlib.suppress(DneuroError):
                if folder := folder_started(*profile_at(path)):
                    yield folder
