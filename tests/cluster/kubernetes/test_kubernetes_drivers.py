"""Why a driver's pod does not come: `pending` alone would be for ever, and nobody would know what to mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dneuro.cluster.backends import DriverRef
from dneuro.cluster.kubernetes.api import ApiError
from dneuro.cluster.kubernetes.backend import KubernetesBackend
from dneuro.spec.profile import ProfileSpec

Manifest = dict[str, Any]
MakeProfile = Callable[..., ProfileSpec]

JOB = {"metadata": {"name": "d", "uid": "1"}, "spec": {}, "status": {}}
OVER = {**JOB, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}


def pod(made: str, state: Manifest | None = None, **status: Any) -> Manifest:
    statuses = [{"name": "driver", "restartCount": 0, "state": state}] if state else []
    return {"metadata": {"name": f"d-{made}", "creationTimestamp": f"2026-01-01T00:00:0{made}Z"},
            "status": {"phase": "Pending", "containerStatuses": statuses, **status}}  # fmt: skip


def warning(about: str, reason: str, message: str) -> Manifest:
    return {"type": "Warning", "involvedObject": {"name": about}, "reason": reason, "message": message,
            "lastTimestamp": "2026-01-02T00:00:00Z"}  # fmt: skip


PULL = pod("2", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}})
KILLED = pod("1", {"terminated": {"reason": "OOMKilled", "exitCode": 137}}, phase="Failed")
NOWHERE = pod("1", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                "message": "0/3 nodes are available"}])  # fmt: skip
QUOTA = warning("d", "FailedCreate", 'Error creating: pods "d-x" is forbidden: exceeded quota: dneuro')


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({"Job": [JOB], "Pod": [PULL]}, "pod d-2: ImagePullBackOff: Back-off pulling image x"),
        ({"Job": [JOB], "Pod": [NOWHERE]}, "pod d-1: Unschedulable: 0/3 nodes are available"),
        ({"Job": [JOB], "Pod": [KILLED]}, "pod d-1: OOMKilled (exit code 137)"),
        ({"Job": [JOB], "Pod": [PULL, KILLED]}, "pod d-2: ImagePullBackOff: Back-off pulling image x"),
        ({"Job": [JOB], "Event": [QUOTA]},
         'FailedCreate: Error creating: pods "d-x" is forbidden: exceeded quota: dneuro'),
        ({"Job": [JOB], "Pod": [pod("1")], "Event": [warning("d-1", "FailedMount", "no claim"),
                                                     warning("other", "Failed", "not this")]}, "FailedMount: no claim"),
        ({"Job": [JOB], "Event": ApiError("refused", code=403)}, ""),
        ({"Job": [{**JOB, "spec": {"suspend": True}}]}, "Job d is suspended"),
        ({"Job": [JOB]}, ""),
        ({"Job": [OVER], "Pod": [KILLED]}, ""),
        ({"Job": [{**JOB, "metadata": {"name": "d", "uid": "another of that name"}}], "Pod": [PULL]}, ""),
        ({}, ""),
        ({"Job": ApiError("away")}, ""),
        ({"Job": [JOB], "Pod": ApiError("away")}, ""),
    ],
)  # fmt: skip
def test_driver__that_waits_does_so_for_the_reason_that_kubernetes_gives(
    make_profile: MakeProfile, answers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, objects: Any, said: str
) -> None:
    api = answers(**objects)
    monkeypatch.setattr(KubernetesBackend, "api", api)
    ref = DriverRef("kubernetes", "d", {"uid": "1"})
    assert KubernetesBackend(make_profile()).why_waiting(ref) == said
    assert api.asked.get("Pod") in (None, {"job-name": "d"})
