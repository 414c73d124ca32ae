"""The pods: what all of them have in common, which is what the ``restricted`` level of pod security asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dneuro.cluster.kubernetes.names import check_selector, check_tolerations, quantity
from dneuro.spec.profile import PoolSpec, ProfileSpec
from dneuro.spec.sites import KubernetesSpec

Manifest = dict[str, Any]

KEYS = "/run/dneuro"
"""Where certificates are mounted."""

SCHEDULER_PORT, WORKER_PORT, NANNY_PORT, REFUSING_PORT = 8786, 8788, 8789, 8787
"""Fixed, so that a NetworkPolicy can name them. The last answers HTTP, with 404 to everything."""

APP = {"app.kubernetes.io/name": "dneuro", "app.kubernetes.io/part-of": "dneuro"}
JOB_LABEL, ROLE_LABEL = "dneuro.org/job", "app.kubernetes.io/component"


@dataclass(frozen=True)
class Container:
    """What a pod runs.

    Parameters
    ----------
    name : str
        Of the container.
    command : sequence of str
        Program and arguments; ``$(NAME)`` stands for an environment variable.
    cpus, memory, gpus : int
        Cores, bytes and GPUs: asked for and not to be exceeded.
    environment : mapping of str to str
        Variables.
    fields : mapping of str to str
        Variables with what the pod says of itself, such as ``metadata.uid``.
    ports : mapping of str to int
        Ports that it listens on.
    """

    name: str
    command: Sequence[str]
    cpus: int
    memory: int
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


def labels(job: str, role: str) -> dict[str, str]:
    """Return the labels of what belongs to a job."""
    return {**APP, JOB_LABEL: job, ROLE_LABEL: role}


def pod_spec(
    profile: ProfileSpec, container: Container, *, keys: tuple[str, str] | None = None, pool: PoolSpec | None = None
) -> Manifest:
    """Return the PodSpec of one container.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: kubernetes``.
    container : Container
        What it runs.
    keys : (str, str), optional
        Name of the Secret with the run's certificates, and the role whose key is mounted; no other's is.
    pool : PoolSpec, optional
        For the nodes it may run on.
    """
    site = section(profile)
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": site.user,
            "runAsGroup": site.user,
            "fsGroup": site.user,
            "fsGroupChangePolicy": "OnRootMismatch",  # else every start walks through the whole volume
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(site, container, keys)],
        "volumes": list(_volumes(site, keys)),
    }
    if site.image_pull_secret:
        spec["imagePullSecrets"] = [{"name": site.image_pull_secret}]
    if pool is not None and pool.node_selector:
        check_selector(pool.node_selector, "node_selector")
        spec["nodeSelector"] = dict(pool.node_selector)
    if pool is not None and pool.tolerations:
        check_tolerations(pool.tolerations, "tolerations")
        spec["tolerations"] = [dict(toleration) for toleration in pool.tolerations]
    return spec


def section(profile: ProfileSpec) -> KubernetesSpec:
    """Return the profile's section on Kubernetes."""
    assert profile.kubernetes is not None  # the profile was checked
    return profile.kubernetes


def _container(site: KubernetesSpec, container: Container, keys: tuple[str, str] | None) -> Manifest:
    resources = {"cpu": str(container.cpus), "memory": quantity(container.memory)}
    if container.gpus:
        resources[site.gpu_resource] = str(container.gpus)
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    if keys:
        mounts.append({"name": "keys", "mountPath": KEYS, "readOnly": True})
    mounts += [{"name": name, "mountPath": volume.path, "readOnly": volume.read_only}
               for name, volume in zip(_names(site), site.volumes, strict=True)]  # fmt: skip
    made: Manifest = {
        "name": container.name,
        "image": site.image,
        "imagePullPolicy": "IfNotPresent",  # a digest never means another image
        "command": list(container.command),
        "env": [
            {"name": "HOME", "value": "/tmp"},
            *({"name": name, "value": value} for name, value in container.environment.items()),
            *({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
              for name, path in container.fields.items()),
        ],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }  # fmt: skip
    if container.ports:
        made["ports"] = [{"name": name, "containerPort": port, "protocol": "TCP"}
                         for name, port in container.ports.items()]  # fmt: skip
    if site.environment_secret:
        made["envFrom"] = [{"secretRef": {"name": site.environment_secret}}]
    return made


def _volumes(site: KubernetesSpec, keys: tuple[str, str] | None) -> Iterable[Manifest]:
    yield {"name": "tmp", "emptyDir": {"sizeLimit": quantity(site.scratch)}}
    if keys:
        secret, role = keys
        items = [{"key": name, "path": name} for name in ("ca.pem", f"{role}.pem", f"{role}.key")]
        # Root's files, readable for the group of the pod's user, which only that user is in.
        yield {"name": "keys", "secret": {"secretName": secret, "defaultMode": 0o440, "items": items}}
    for name, volume in zip(_names(site), site.volumes, strict=True):
        yield {"name": name, "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only}}


def _names(site: KubernetesSpec) -> list[str]:
    return [f"volume-{number}" for number, _ in enumerate(site.volumes)]
