"""Why a pod does not come up, in Kubernetes' words; and the log that outlives a driver's pod."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster.backends import DriverRef
from dneuro.cluster.kubernetes import keeping_log, waiting
from dneuro.cluster.kubernetes.backend import KubernetesBackend
from dneuro.cluster.kubernetes.manifests import OWN_JOB, OWN_UID
from dneuro.errors import UsageError
from dneuro.spec.profile import ProfileSpec

Manifest = dict[str, Any]
IMAGE = "registry.example/dneuro@sha256:" + "0" * 64


def pod(phase: str = "Pending", conditions: Any = (), **container: Any) -> Manifest:
    statuses = [{"name": "worker", "restartCount": 0, **container}] if container else []
    return {"metadata": {"name": "w-1"}, "spec": {},
            "status": {"phase": phase, "containerStatuses": statuses, "conditions": list(conditions)}}  # fmt: skip


PULL = pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling\n image x"}})
NOWHERE = pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                           "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}])  # fmt: skip
KILLED = pod("Running", state={"waiting": {"reason": "CrashLoopBackOff"}}, restartCount=3,
             lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}})  # fmt: skip
CONFIG = pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}})
NAME = pod(state={"waiting": {"reason": "InvalidImageName"}})
WELL = pod("Running", state={"running": {}})
CREATING = pod(state={"waiting": {"reason": "ContainerCreating"}})


@pytest.mark.parametrize(
    ("objects", "said", "hopeless"),
    [
        ({"Pod": [PULL]}, "pod w-1: ImagePullBackOff: Back-off pulling image x", False),
        ({"Pod": [NOWHERE]}, "pod w-1: Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", False),
        ({"Pod": [KILLED]}, "pod w-1: OOMKilled (exit code 137); pod w-1: CrashLoopBackOff", True),
        ({"Pod": [CONFIG]}, 'pod w-1: CreateContainerConfigError: secret "s3" not found', False),
        ({"Pod": [NAME]}, "pod w-1: InvalidImageName", True),
        ({"Pod": [WELL]}, "pod w-1 runs, but its worker has not come to the scheduler: kubectl logs w-1", False),
        ({"Pod": [NAME, CREATING]}, "pod w-1: InvalidImageName", False),
        (
            {"Pod": [CREATING], "Event": [
                {"type": "Warning", "involvedObject": {"name": "w-1"}, "reason": "FailedMount", "message": "no claim",
                 "lastTimestamp": "2026-01-02T00:00:00Z"},
                {"type": "Warning", "involvedObject": {"name": "other"}, "reason": "Failed", "message": "not this",
                 "lastTimestamp": "2026-01-03T00:00:00Z"}]},
            "1 pods are Pending; FailedMount: no claim", False,
        ),
        (
            {"Deployment": [{"metadata": {"name": "w"}, "status": {"conditions": [
                {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: dneuro"}]}}]},
            "no pod may be made: exceeded quota: dneuro", False,
        ),
        ({"Deployment": [{"metadata": {"name": "w"}}]}, "there are no pods yet", False),
        ({}, "the operator of dask-kubernetes has made nothing: does it run, and does it watch this namespace?", False),
    ],
)  # fmt: skip
def test_reason__is_said_in_the_words_of_kubernetes(
    answers: Callable[..., Any], objects: Any, said: str, hopeless: bool
) -> None:
    api = answers(**objects)
    assert waiting.why_none(api, {}) == said
    assert waiting.hopeless(api, {}) is hopeless


def test_running__means_that_every_container_runs_and_not_the_phase() -> None:
    assert waiting.is_running(WELL)
    assert not waiting.is_running(KILLED), "its phase is Running"


def job(uid: str = "1", **status: Any) -> Manifest:
    return {"metadata": {"name": "d", "uid": uid}, "status": status}


@pytest.mark.parametrize(
    ("objects", "state"),
    [
        ({}, "gone"),
        ({"Job": [job()]}, "pending"),
        ({"Job": [job()], "Pod": [PULL]}, "pending"),
        ({"Job": [job()], "Pod": [WELL]}, "running"),
        ({"Job": [job(conditions=[{"type": "Complete", "status": "True"}])], "Pod": [WELL]}, "gone"),
        ({"Job": [job(conditions=[{"type": "Failed", "status": "True"}])]}, "gone"),
        ({"Job": [job(conditions=[{"type": "Suspended", "status": "True"}])]}, "pending"),
        ({"Job": [job(uid="another of that name")], "Pod": [WELL]}, "gone"),
    ],
)
def test_driver_state__is_what_its_job_says(
    answers: Callable[..., Any], objects: Any, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = ProfileSpec.model_validate(
        {"backend": "kubernetes", "pools": {"extract": {"memory": "1GiB"}}, "kubernetes": {"image": IMAGE}}
    )
    monkeypatch.setattr(KubernetesBackend, "api", answers(**objects))
    assert KubernetesBackend(profile).driver_state(DriverRef("kubernetes", "d", {"uid": "1"})) == state


class Several:
    """A namespace that several people use: what has these labels is listed, what is deleted is noted."""

    def __init__(self) -> None:
        self.objects: list[Manifest] = []
        self.deleted: list[str] = []

    def create(self, manifest: Manifest) -> Manifest:
        made = {**manifest, "metadata": {**manifest["metadata"], "uid": "1"}}
        self.objects.append(made)
        return made

    def list(self, kind: str, labels: dict[str, str]) -> list[Manifest]:
        return [one for one in self.objects
                if one["kind"] == kind and labels.items() <= one["metadata"]["labels"].items()]  # fmt: skip

    def delete(self, kind: str, name: str) -> bool:
        self.deleted.append(f"{kind}/{name}")
        return True


@pytest.mark.parametrize(
    ("folder", "claim", "his_folder"),
    [
        ("/state/alice/clusters/" + "a" * 60, "scratch", "/state/bob/clusters/" + "a" * 60),
        ("/state/alice/clusters/" + "a" * 60, "home-bob", "/state/alice/clusters/" + "a" * 60),
        ("/state/.dneuro/demo-12345678", "home-bob", "/state/.dneuro/demo-12345678"),
    ],
    ids=["standing cluster, another state", "standing cluster, another volume", "job, another volume"],
)
def test_clean_up__leaves_alone_what_has_the_same_name_elsewhere(
    folder: str, claim: str, his_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(claim: str) -> KubernetesBackend:
        site = {"image": IMAGE, "volumes": [{"claim": claim, "path": "/state"}]}
        profile = ProfileSpec.model_validate({"backend": "kubernetes", "kubernetes": site,
                                              "pools": {"extract": {"memory": "1GiB"}}})  # fmt: skip
        return KubernetesBackend(profile)

    api = Several()
    monkeypatch.setattr(KubernetesBackend, "api", api)
    hers, her_folder, his = backend("scratch"), Path(folder), backend(claim)
    job = hers.start_driver(her_folder, ["python", "-m", "x"], "a").id
    cluster = hers._cluster(her_folder, "a")
    assert hers._cluster(her_folder / "attempts" / "001", "a").job == cluster.job, "as its driver has it"
    api.create(cluster.dask_cluster(None))
    assert len(cluster.job) <= 63
    assert his.clean_up(Path(his_folder)) == api.deleted == []
    assert hers.clean_up("/state/x/.." / her_folder.relative_to("/state")) == [
        f"daskcluster/{cluster.name}", f"job/{job}"
    ], "however its path is written"  # fmt: skip


def test_this_driver__is_the_job_whose_pod_it_is_in(
    answers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = ProfileSpec.model_validate(
        {"backend": "kubernetes", "pools": {"extract": {"memory": "1GiB"}}, "kubernetes": {"image": IMAGE}}
    )
    monkeypatch.setattr(KubernetesBackend, "api", answers(Job=[job()], Pod=[WELL]))
    backend = KubernetesBackend(profile)
    assert backend.this_driver().id == str(os.getpid()), "in a login pod"
    monkeypatch.setenv(OWN_JOB, "d")
    monkeypatch.setenv(OWN_UID, "1")
    assert backend.driver_state(backend.this_driver()) == "running"


def test_package__that_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from dneuro.cluster.kubernetes.api import Api

    monkeypatch.setitem(sys.modules, "kr8s", None)
    with pytest.raises(UsageError, match="needs the package kr8s") as caught:
        Api("dneuro")
    assert caught.value.hint == 'pip install ".[kubernetes]" in the sources of dneuro'


def test_log__has_what_the_driver_printed_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "job" / "driver.log"
    program = "import sys; print('out'); print('bad', file=sys.stderr); sys.exit(3)"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-m", keeping_log.__name__, str(log), sys.executable, "-uc", program],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert (done.returncode, done.stdout) == (3, "out\nbad\n")
    assert log.read_text() == "out\nbad\n" * 2, "what was there is kept"


def test_log__that_cannot_be_written_does_not_stop_the_driver(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "log"
    done = subprocess.run([sys.executable, "-m", keeping_log.__name__, str(log), sys.executable, "-c", "print(1)"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "cannot be written" in done.stderr


def test_signals__reach_the_driver(tmp_path: Path) -> None:
    program = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); "
               "print('ready', flush=True); time.sleep(60)")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", keeping_log.__name__, str(tmp_path / "log"), sys.executable, "-c",
                                program], stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGTERM)
    over = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < over:
        time.sleep(0.05)
    process.stdout.close()
    assert process.returncode == 5
