"""Waiting for pods, and saying why they do not come: Kubernetes knows, but in many places."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from dneuro.cluster.kubernetes.api import Api, ApiError
from dneuro.cluster.kubernetes.pods import Manifest

HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
"""Reasons that no waiting mends."""

RESTARTS = 3
"""Ends of a container in a row after which its pod counts as one that will not come up."""

PAUSE = 1.0
"""Seconds before a request that failed is made again."""

_Answer = TypeVar("_Answer")


def patiently(request: Callable[[], _Answer], seconds: float) -> _Answer:
    """Return the answer to a request; while the API is away it is made again, for `seconds`.

    Raises
    ------
    ApiError
        If it is refused, or the API is away for longer.
    """
    over = time.monotonic() + seconds
    while True:
        try:
            return request()
        except ApiError as error:
            if not error.passes or time.monotonic() + PAUSE > over:
                raise
        time.sleep(PAUSE)


@contextlib.contextmanager
def bearing() -> Iterator[None]:
    """Go on where the API is away: whoever waits will look again, and has a time after which they wait no more.

    Raises
    ------
    ApiError
        If it refuses what was asked.
    """
    try:
        yield
    except ApiError as error:
        if not error.passes:
            raise


def scheduler_labels(cluster: str) -> dict[str, str]:
    """Return the labels that the operator gives to the scheduler of a cluster."""
    return {"dask.org/cluster-name": cluster, "dask.org/component": "scheduler"}


def group_labels(group: str) -> dict[str, str]:
    """Return the labels that the operator gives to the workers of a group."""
    return {"dask.org/workergroup-name": group, "dask.org/component": "worker"}


def is_running(pod: Manifest) -> bool:
    """Return whether the containers of a pod run."""
    status = pod.get("status", {})
    states = [one.get("state", {}) for one in status.get("containerStatuses", [])]
    return status.get("phase") == "Running" and all("running" in state for state in states)


def reasons(pod: Manifest) -> Iterator[str]:
    """Yield why a pod does not run, or did not the last time, in Kubernetes' own words."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    for one in status.get("containerStatuses", []):
        state, last = one.get("state", {}), one.get("lastState", {}).get("terminated")
        for end in (state.get("terminated"), last):
            if end and end.get("exitCode"):
                yield f"pod {name}: {end.get('reason', 'Error')} (exit code {end['exitCode']}" + _said(end) + ")"
        waiting = state.get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            yield f"pod {name}: {waiting['reason']}" + _said(waiting)
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"pod {name}: {condition.get('reason', 'Unschedulable')}" + _said(condition)
    if status.get("phase") == "Failed" and status.get("reason"):
        yield f"pod {name}: {status['reason']}" + _said(status)


def is_hopeless(pod: Manifest) -> bool:
    """Return whether waiting longer for a pod is in vain."""
    for one in pod.get("status", {}).get("containerStatuses", []):
        if one.get("state", {}).get("waiting", {}).get("reason") in HOPELESS:
            return True
        if one.get("restartCount", 0) >= RESTARTS and "running" not in one.get("state", {}):
            return True
    return False


def why_none(api: Api, labels: Mapping[str, str]) -> str:
    """Return why no pod with these labels runs: what its pods say, else its Deployments, else who should make them.

    Where the API does not say, that is returned.
    """
    try:
        return _why_none(api, labels)
    except ApiError as error:
        return error.message


def _why_none(api: Api, labels: Mapping[str, str]) -> str:
    pods = api.list("Pod", labels)
    if said := list(dict.fromkeys(reason for pod in pods for reason in reasons(pod))):
        return "; ".join(said)
    running = [pod["metadata"]["name"] for pod in pods if is_running(pod)]
    if running:
        return f"pod {running[0]} runs, but its worker has not come to the scheduler: kubectl logs {running[0]}"
    if pods:
        phases = sorted({str(pod.get("status", {}).get("phase", "Pending")) for pod in pods})
        events = _events(api, {pod["metadata"]["name"] for pod in pods})
        return f"{len(pods)} pods are {', '.join(phases)}" + (f"; {events}" if events else "")
    deployments = api.list("Deployment", labels)
    for deployment in deployments:
        for condition in deployment.get("status", {}).get("conditions", []):
            if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
                return f"no pod may be made: {condition.get('message', condition.get('reason'))}"
    if deployments:
        return "there are no pods yet"
    return "the operator of dask-kubernetes has made nothing: does it run, and does it watch this namespace?"


def why_not_begun(api: Api, job: str) -> str:
    """Return why no pod of a Job runs: what the newest one says, else the last warning about it or about the Job."""
    pods = sorted(api.list("Pod", {"job-name": job}), key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    if said := list(dict.fromkeys(reasons(pods[-1]))) if pods else []:
        return "; ".join(said)
    with contextlib.suppress(ApiError):  # not everybody who may see Jobs may see events
        return _events(api, {job, *(pod["metadata"]["name"] for pod in pods[-1:])})
    return ""


def hopeless(api: Api, labels: Mapping[str, str]) -> bool:
    """Return whether there are pods with these labels, and none of them will run."""
    pods = api.list("Pod", labels)
    return bool(pods) and all(is_hopeless(pod) for pod in pods)


def _events(api: Api, names: set[str]) -> str:
    """Return the last warning about one of these objects, such as a volume that is not there, or a quota used up."""
    about: Callable[[Manifest], Any] = lambda event: event.get("involvedObject", {}).get("name") in names  # noqa: E731
    warnings = [event for event in api.list("Event") if event.get("type") == "Warning" and about(event)]
    if not warnings:
        return ""
    last = max(warnings, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return f"{last.get('reason', '')}: {last.get('message', '')}"


def _said(state: Manifest) -> str:
    message = " ".join(str(state.get("message", "")).split())
    return f": {message[:300]}" if message else ""
