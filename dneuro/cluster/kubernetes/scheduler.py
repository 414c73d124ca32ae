"""The scheduler's pod as its driver sees it: until it answers, until it has workers, and when it is lost."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dneuro.cluster.address import connect_to
from dneuro.cluster.kubernetes import waiting
from dneuro.cluster.kubernetes.api import Api
from dneuro.cluster.kubernetes.manifests import Cluster
from dneuro.cluster.kubernetes.pods import SCHEDULER_PORT
from dneuro.engine.workers import workers_of
from dneuro.errors import DneuroError, SchedulerLostError, UsageError
from dneuro.quantities import format_duration
from dneuro.spec.sites import AddressSpec

POLL = 1.0
"""Seconds between two looks at the pods."""

ANSWER = 10.0
"""Seconds within which a scheduler that is there says who it is."""


def connect(api: Api, cluster: Cluster, keys: Path, began: float) -> Any:
    """Return a client, once the scheduler's pod runs and answers.

    Parameters
    ----------
    api : Api
        Of the cluster's namespace.
    cluster : Cluster
        That was sent.
    keys : Path
        Folder with the certificates of the run.
    began : float
        When it was sent, by `time.monotonic`; the longest ``start_timeout`` counts from then.

    Raises
    ------
    DneuroError
        If it does not come up, with its pod's reason.
    """
    timeout = max(map(cluster.profile.timeout, cluster.profile.groups))
    its = waiting.scheduler_labels(cluster.name)
    where: str | None = None
    while True:
        runs = hopeless = False
        with waiting.bearing():
            runs = any(waiting.is_running(pod) for pod in api.list("Pod", its))
            hopeless = not runs and waiting.hopeless(api, its)
            where = where or (_address(api, cluster) if runs else None)
        if runs and where is not None:
            address = AddressSpec(scheduler=where, ca=str(keys / "ca.pem"), cert=str(keys / "client.pem"),
                                  key=str(keys / "client.key"))  # fmt: skip
            try:
                return connect_to(address, timeout=5)
            except UsageError:
                raise
            except DneuroError:
                pass  # it runs, and does not listen yet
        if time.monotonic() - began > timeout or hopeless:
            raise DneuroError(
                f"the scheduler did not come up within {format_duration(timeout)}: {waiting.why_none(api, its)}",
                hint=f"kubectl describe pods -n {api.namespace} -l dask.org/cluster-name={cluster.name}",
            )
        time.sleep(POLL)


def wait_for_workers(api: Api, cluster: Cluster, client: Any, began: float) -> None:
    """Wait until each pool has a worker; the arguments are those of `connect`.

    Raises
    ------
    DneuroError
        If one has none within its ``start_timeout``, with its pods' reason.
    """
    missing = {pool: cluster.profile.timeout(pool) for pool in cluster.profile.groups}
    looked = began
    while missing:
        there = workers_of(client).values()
        missing = {pool: timeout for pool, timeout in missing.items()
                   if not any(pool in worker.get("resources", {}) for worker in there)}  # fmt: skip
        now = time.monotonic()
        for pool, timeout in missing.items():
            its = waiting.group_labels(cluster.groups[pool])
            hopeless = False
            if now - looked > POLL:
                with waiting.bearing():
                    hopeless = waiting.hopeless(api, its)
            if now - began > timeout or hopeless:
                raise DneuroError(
                    f"pool {pool} has no worker after {format_duration(now - began)}: {waiting.why_none(api, its)}",
                    hint=f"memory, cpus, gpus, node_selector of pools.{pool} and kubernetes.image in the profile; "
                    "a longer start_timeout where nodes are started on demand",
                )
        if now - looked > POLL:
            looked = now
        time.sleep(0.1)


@contextlib.contextmanager
def noticed_when_lost(client: Any) -> Iterator[None]:
    """Give whatever goes wrong in the block because the scheduler is lost one name: in dask it has a dozen.

    Its pod may end by itself, or with its node; another one then takes its place and knows nothing of the run.

    Raises
    ------
    SchedulerLostError
        In place of such errors; others are left as they are.
    """
    known, address = _identity(client), client.scheduler.address
    try:
        yield
    except Exception as error:
        on_purpose = isinstance(error, DneuroError) and type(error) is not DneuroError
        cancelled = isinstance(error, concurrent.futures.CancelledError)
        if on_purpose or (not cancelled and known is not None and _identity(client) == known):
            raise
        raise SchedulerLostError(
            f"the dask scheduler at {address} has ended, or was restarted",
            hint="the same command again: what is done stays done",
        ) from error


def _identity(client: Any) -> str | None:
    """Return what tells the scheduler that a client is connected to from every other; None if there is none."""
    try:
        return str(client.sync(client.scheduler.identity, n_workers=0, callback_timeout=ANSWER)["id"])
    except Exception:  # a client that is closing, closed, or without an answer says so in as many ways
        return None


def _address(api: Api, cluster: Cluster) -> str:
    # A name that was asked for before it was there is not found for another half a minute: clients remember that.
    service = api.read("Service", cluster.service) or {}
    number = service.get("spec", {}).get("clusterIP")
    if number in (None, "", "None"):
        return cluster.address
    return f"tls://{f'[{number}]' if ':' in number else number}:{SCHEDULER_PORT}"
