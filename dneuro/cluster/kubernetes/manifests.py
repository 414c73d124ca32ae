"""What is sent to Kubernetes: the driver's Job; and what the driver sends: keys, a DaskCluster, worker groups."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dneuro.cluster.kubernetes.names import group_names
from dneuro.cluster.kubernetes.pods import (
    KEYS,
    NANNY_PORT,
    REFUSING_PORT,
    ROLE_LABEL,
    SCHEDULER_PORT,
    WORKER_PORT,
    Container,
    Manifest,
    labels,
    pod_spec,
    section,
)
from dneuro.cluster.settings import process_variables, scheduler_settings, worker_settings
from dneuro.cluster.sizes import WorkerSizes
from dneuro.cluster.versions import versions
from dneuro.errors import CancelledError, DneuroError, FingerprintError, PartialError, UsageError
from dneuro.spec.profile import ProfileSpec

KEPT = 600
"""Seconds that the Job of a driver that has ended stays, with its pod's log, and with the machines of one that was
killed: they are the Job's, the scheduler's pod does not end by itself, and nobody else gets its workers' GPUs."""

GRACE = 60
"""Seconds that a driver is given to end in order when its node is emptied."""

DEATH_TIMEOUT = 120
"""Seconds without a scheduler after which a worker ends itself, to be started again."""

FINAL = [kind.exit_code for kind in (UsageError, PartialError, DneuroError, CancelledError, FingerprintError)]
"""Exit codes of a driver that said why it ended: to start it again would end the same way. One that was killed, or told
to stop by its node, or that has lost its scheduler, is started again."""

OWN_JOB, OWN_UID, OWN_POD, OWN_POD_UID = "DNEURO_JOB", "DNEURO_JOB_UID", "DNEURO_POD", "DNEURO_POD_UID"
"""Variables that tell a driver who it is; what it makes is owned by its Job, and ends with that."""


@dataclass(frozen=True)
class Cluster:
    """The machines of one attempt at a job.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: kubernetes``.
    name : str
        Of the DaskCluster, of the Secret with its keys, and the beginning of all other names.
    job : str
        Label that all objects of the job have.
    sizes : dict of str to WorkerSizes
        Of each pool.
    """

    profile: ProfileSpec
    name: str
    job: str
    sizes: Mapping[str, WorkerSizes]

    @property
    def groups(self) -> dict[str, str]:
        """The name of the worker group of each pool."""
        return group_names(self.name, self.profile.groups)

    @property
    def service(self) -> str:
        """The scheduler's name, for which the operator makes the Service."""
        return f"{self.name}-scheduler"

    @property
    def address(self) -> str:
        """The scheduler's address inside the cluster."""
        return f"tls://{self.service}.{section(self.profile).namespace}.svc:{SCHEDULER_PORT}"

    def secret(self, files: Mapping[str, bytes], owner: Manifest | None) -> Manifest:
        """Return the Secret with the certificates and keys of the run."""
        data = {name: base64.b64encode(content).decode() for name, content in files.items()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": self._metadata(self.name, "keys", owner),
                "type": "Opaque", "immutable": True, "data": data}  # fmt: skip

    def dask_cluster(self, owner: Manifest | None) -> Manifest:
        """Return the DaskCluster: the scheduler, and no workers, for those are in a group for each pool."""
        first = next(iter(self.groups))
        ports = {"tcp-comm": SCHEDULER_PORT}
        # The operator looks for a port of this name before it takes a worker away, whether anybody listens or not.
        services = {**ports, "http-dashboard": REFUSING_PORT}
        return {
            "apiVersion": "kubernetes.dask.org/v1",
            "kind": "DaskCluster",
            "metadata": self._metadata(self.name, "cluster", owner),
            "spec": {
                "idleTimeout": 0,
                "scheduler": {
                    "metadata": {"labels": {ROLE_LABEL: "scheduler"}},
                    "spec": pod_spec(self.profile, self._scheduler(), keys=(self.name, "scheduler")),
                    "service": {
                        "type": "ClusterIP",
                        "selector": {"dask.org/cluster-name": self.name, "dask.org/component": "scheduler"},
                        "ports": [{"name": name, "protocol": "TCP", "port": port, "targetPort": name}
                                  for name, port in services.items()],
                    },
                },
                "worker": {**self._workers(first), "replicas": 0},
            },
        }  # fmt: skip

    def worker_group(self, pool: str, owner: Manifest | None) -> Manifest:
        """Return the DaskWorkerGroup of a pool."""
        return {
            "apiVersion": "kubernetes.dask.org/v1",
            "kind": "DaskWorkerGroup",
            "metadata": self._metadata(self.groups[pool], "pool", owner),
            "spec": {"cluster": self.name, "worker": {**self._workers(pool), "replicas": self.sizes[pool].workers}},
        }

    def _metadata(self, name: str, role: str, owner: Manifest | None) -> Manifest:
        found: Manifest = {"name": name, "namespace": section(self.profile).namespace, "labels": labels(self.job, role)}
        return found | ({"ownerReferences": [owner]} if owner else {})

    def _scheduler(self) -> Container:
        site = section(self.profile)
        http = f":{REFUSING_PORT}" if site.scale_down else "127.0.0.1:0"
        command = ["dask", "scheduler", "--protocol", "tls", "--port", str(SCHEDULER_PORT), *_tls("scheduler"),
                   "--no-dashboard", "--no-show", "--dashboard-address", http]  # fmt: skip
        # No page of HTTP at all: what dask serves there by default, it serves to everybody.
        patience = max(map(self.profile.timeout, self.profile.groups))
        settings = {**scheduler_settings(patience), "distributed.scheduler.http.routes": []}
        ports = {"tcp-comm": SCHEDULER_PORT, "http-dashboard": REFUSING_PORT}
        return Container("scheduler", command, site.scheduler.cpus, site.scheduler.memory,
                         environment=_as_variables(settings), ports=ports)  # fmt: skip

    def _workers(self, pool: str) -> Manifest:
        spec, size = self.profile.groups[pool], self.sizes[pool]
        assert spec.memory is not None  # the profile was checked
        command = [
            "dask", "worker", "--protocol", "tls", "--nworkers", "1", "--nthreads", str(size.threads),
            "--memory-limit", str(size.memory), "--worker-port", str(WORKER_PORT), "--nanny-port", str(NANNY_PORT),
            "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--local-directory", "/tmp",
            "--death-timeout", str(DEATH_TIMEOUT), "--resources", f"{pool}={size.threads}",
            "--name", "$(DASK_WORKER_NAME)", *_tls("worker"),
        ]  # fmt: skip
        variables = process_variables(size.cpus, spec.env)
        settings = {
            **worker_settings(),
            "distributed.nanny.preload": ["dneuro.cluster.versions"],
            "distributed.nanny.pre-spawn-environ": variables,  # the nanny sets threads to 1 unless it is told otherwise
            "dneuro.versions": versions(),
        }
        # The operator would write tcp:// where it finds no address.
        environment = {**variables, **_as_variables(settings), "DASK_SCHEDULER_ADDRESS": self.address}
        container = Container("worker", command, spec.cpus or spec.threads, spec.memory, spec.gpus, environment,
                              ports={"worker": WORKER_PORT, "nanny": NANNY_PORT})  # fmt: skip
        return {"metadata": {"labels": {ROLE_LABEL: "worker"}},
                "spec": pod_spec(self.profile, container, keys=(self.name, "worker"), pool=spec)}  # fmt: skip


def driver_job(profile: ProfileSpec, command: Sequence[str], name: str, job: str, log: str | None) -> Manifest:
    """Return the Job of a driver: started again when it is lost, not when it has said why it ended.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: kubernetes``.
    command : sequence of str
        What drives the job; its first word is replaced by the image's Python.
    name : str
        Of the Job.
    job : str
        Label of everything that belongs to the job.
    log : str, optional
        File on a mounted volume to which the output is added.
    """
    site, driver = section(profile), profile.driver
    run = ["python", *command[1:]]
    if log is not None:
        run = ["python", "-m", "dneuro.cluster.kubernetes.keeping_log", log, *run]
    # The next pod of a Job is made when the last one has ended: by these its driver knows, and need not wait.
    lives = {"DNEURO_DRIVER_LIFE": "metadata.uid"}
    fields = {OWN_POD: "metadata.name", OWN_POD_UID: "metadata.uid", **lives,
              OWN_UID: "metadata.labels['batch.kubernetes.io/controller-uid']"}  # fmt: skip
    environment = {OWN_JOB: name, "DNEURO_DRIVER": name, **process_variables(driver.cpus)}
    container = Container("driver", run, driver.cpus, driver.memory, fields=fields, environment=environment)
    spec = pod_spec(profile, container) | {
        "restartPolicy": "Never",
        "serviceAccountName": site.service_account,
        "automountServiceAccountToken": True,
        "terminationGracePeriodSeconds": GRACE,
    }
    if driver.walltime is not None:
        spec["activeDeadlineSeconds"] = int(driver.walltime)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": site.namespace, "labels": labels(job, "driver")},
        "spec": {
            "backoffLimit": driver.max_restarts,
            "ttlSecondsAfterFinished": KEPT,
            # A second driver of a job beside the first would only be refused.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "FailJob",
                     "onExitCodes": {"containerName": "driver", "operator": "In", "values": sorted(FINAL)}},
                ]
            },
            "template": {"metadata": {"labels": labels(job, "driver")}, "spec": spec},
        },
    }  # fmt: skip


def owner_of(manifest: Mapping[str, Any]) -> Manifest:
    """Return what an object says of the one it belongs to, and is deleted with."""
    return owner(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"], manifest["metadata"]["uid"])


def owner(version: str, kind: str, name: str, uid: str) -> Manifest:
    """Return an owner reference."""
    return {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True,
            "blockOwnerDeletion": False}  # fmt: skip


def _tls(role: str) -> list[str]:
    return ["--tls-ca-file", f"{KEYS}/ca.pem", "--tls-cert", f"{KEYS}/{role}.pem", "--tls-key", f"{KEYS}/{role}.key"]


def _as_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return dask's settings as the environment variables that dask reads them from."""
    return {"DASK_" + name.replace(".", "__").replace("-", "_").upper(): str(value)
            for name, value in settings.items()}  # fmt: skip
