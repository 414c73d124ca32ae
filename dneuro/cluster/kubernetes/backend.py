"""Kubernetes as a backend: the driver in a Job, scheduler and workers made by the operator of dask-kubernetes."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dneuro import events
from dneuro.allocation import is_told
from dneuro.cluster import processes
from dneuro.cluster.backends import DriverRef, DriverState, Folder, NeededFile
from dneuro.cluster.kubernetes import scheduler, waiting
from dneuro.cluster.kubernetes.api import Api, ApiError
from dneuro.cluster.kubernetes.manifests import (
    OWN_JOB,
    OWN_POD,
    OWN_POD_UID,
    OWN_UID,
    Cluster,
    driver_job,
    owner,
    owner_of,
)
from dneuro.cluster.kubernetes.names import CLUSTER, label, slug
from dneuro.cluster.kubernetes.pods import JOB_LABEL, Manifest, section
from dneuro.cluster.machines import DaskMachines
from dneuro.cluster.record import Record, job_folder_of
from dneuro.cluster.security import make_credentials, place_of_keys, remove_keys
from dneuro.cluster.settings import process_variables
from dneuro.cluster.sizes import WorkerSizes
from dneuro.cluster.versions import check_versions
from dneuro.errors import UsageError
from dneuro.quantities import MiB
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.sites import VolumeSpec

NANNY = 192 * MiB
"""Of a pod's memory, what the process takes that watches over the worker (120 MiB measured)."""

POLL = 1.0
"""Seconds between two looks at a driver that was told to stop."""

TROUBLE = 60.0
"""Seconds for which an API that is away is borne where machines are made; where they are awaited, it is as long as for
them."""

ENDING = 15.0
"""Seconds for which a driver that ends tries to delete its machines; told to end by its node, it has a minute."""

_WAY_OUT = "{what}: a path below one of kubernetes.volumes, a volume more there: {{claim: …, path: …}}, or s3://…"


class KubernetesBackend:
    """Pods, one for each worker, around a scheduler in a pod of its own.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: kubernetes``.
    """

    def __init__(self, profile: ProfileSpec) -> None:
        self.profile = profile
        self.site = section(profile)

    @functools.cached_property
    def api(self) -> Api:
        """The namespace; nothing is sent before it is used."""
        return Api(self.site.namespace, self.site.context)

    def sizes(self, pool: str) -> WorkerSizes:
        """Return what the workers of a pool have: what the profile says."""
        spec = self.profile.groups[self.profile.group(pool)]
        assert spec.memory is not None  # the profile was checked
        if spec.memory <= 2 * NANNY:
            raise UsageError(f"{spec.memory} bytes are too few for a worker", hint=f"memory: at least {4 * NANNY}")
        cpus = max(1, (spec.cpus or spec.threads) // spec.threads)
        driver = self.profile.driver.memory  # of its pod, wherever it is sent from
        coalescing = is_told(process_variables(cpus, spec.env))
        memory = spec.memory - NANNY
        return WorkerSizes(spec.workers or 1, spec.threads, cpus, memory, spec.gpus, driver, coalescing=coalescing)

    def check_files(self, files: Iterable[NeededFile]) -> None:
        """Refuse a job with a file that is on no volume, and so in no pod, or gone with the pod that wrote it.

        Raises
        ------
        UsageError
            Names the first.
        """
        for file in files:
            if why := self._unseen(file.path, file.written, below=file.written):
                raise UsageError(f"{file.key}: {file.path} {why}", hint=_WAY_OUT.format(what=file.key))

    @contextlib.contextmanager
    def open(self, *, folder: Path | None = None, name: str = "dneuro") -> Iterator[DaskMachines]:
        """Have a scheduler and the workers of all pools made; they end with the block, or with this pod's Job.

        Everything is encrypted and needs a certificate of this run.

        Raises
        ------
        UsageError
            If this process is not in a pod: it would not reach the scheduler.
        ApiError
            If Kubernetes refuses something.
        SchedulerLostError
            From the block, if the scheduler's pod ends under it.
        DneuroError
            If a pool has no worker within its ``start_timeout``, with the pods' reason; or versions differ.
        """
        if OWN_POD not in os.environ:
            raise UsageError(
                "workers in Kubernetes are reached from its pods only, and this process is in none",
                hint="dneuro submit JOB --cluster PROFILE; or the same command in the login pod: "
                f"kubectl exec -it -n {self.site.namespace} deploy/dneuro-login -- dneuro run …",
            )
        with contextlib.ExitStack() as stack:
            if folder is not None:
                remove_keys(job_folder_of(folder) or folder)  # of an attempt whose driver was killed
            place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dneuro-")))
            keys = make_credentials(place_of_keys(place, self.profile.security.folder))
            stack.callback(shutil.rmtree, keys, ignore_errors=True)  # worth nothing any more
            cluster = self._cluster(folder, name)
            with self.api:
                # Of an attempt whose driver was killed.
                waiting.patiently(lambda: self._end_clusters(cluster.job), TROUBLE)
            if folder is not None:
                Record(folder).write(kind="kubernetes", namespace=self.site.namespace, name=cluster.name)
            stack.callback(self._end_own, cluster.name)
            began = time.monotonic()
            with self.api:
                self._make(cluster, keys)
                client = stack.enter_context(scheduler.connect(self.api, cluster, keys, began))
                stack.enter_context(scheduler.noticed_when_lost(client))
                scheduler.wait_for_workers(self.api, cluster, client, began)
            check_versions(client)
            yield DaskMachines(client, self.profile)

    def start_driver(self, job_folder: Folder, command: Sequence[str], name: str) -> DriverRef:
        """Have a Job made whose pod runs the driver.

        Raises
        ------
        UsageError
            If the job's folder is on no volume that the pod has.
        ApiError
            If Kubernetes refuses it.
        """
        self._check_folder(job_folder)
        unique = f"{slug(name, CLUSTER)}-{secrets.token_hex(3)}"
        made = self.api.create(self._driver(job_folder, command, unique))
        details = {"namespace": self.site.namespace, "uid": made["metadata"]["uid"]}
        if self.site.context:
            details["context"] = self.site.context
        return DriverRef("kubernetes", unique, details)

    def this_driver(self) -> DriverRef:
        """Return the Job whose pod this process is in; else the process, as in a login pod."""
        name, uid = os.environ.get(OWN_JOB), os.environ.get(OWN_UID)
        if not (name and uid):
            return processes.this_process("local")
        return DriverRef("kubernetes", name, {"namespace": self.site.namespace, "uid": uid})

    def driver_state(self, ref: DriverRef) -> DriverState:
        """Return what Kubernetes says of the driver's Job; ``"unknown"`` where the API does not answer."""
        try:
            with self.api:
                job = self.api.read("Job", ref.id)
                if job is None or job["metadata"]["uid"] != ref.details["uid"] or _is_over(job):
                    return "gone"
                pods = self.api.list("Pod", {"job-name": ref.id})
        except ApiError:
            return "unknown"
        return "running" if any(pod.get("status", {}).get("phase") == "Running" for pod in pods) else "pending"

    def why_waiting(self, ref: DriverRef) -> str:
        """Return what Kubernetes says of the driver's pod, or of why there is none; nothing if it does not answer."""
        try:
            with self.api:
                job = self.api.read("Job", ref.id)
                if job is None or job["metadata"]["uid"] != ref.details["uid"] or _is_over(job):
                    return ""
                if job.get("spec", {}).get("suspend"):
                    return f"Job {ref.id} is suspended"
                return waiting.why_not_begun(self.api, ref.id)
        except ApiError:
            return ""

    def stop_driver(self, ref: DriverRef, *, grace: float) -> None:
        """Tell the driver to stop and wait for it; after `grace` seconds end its pod for certain."""
        job = self.api.read("Job", ref.id)
        if job is None or job["metadata"]["uid"] != ref.details["uid"]:
            return
        # Suspended, its pod is told to end and no other one made, and what it owns lives until it is deleted.
        self.api.patch("Job", ref.id, {"spec": {"suspend": True}})
        over = time.monotonic() + grace
        while (alive := self._pods_of(ref.id)) and time.monotonic() < over:
            time.sleep(min(POLL, grace))
        for pod in alive:
            self.api.delete("Pod", pod, at_once=True)
        self.api.delete("Job", ref.id)

    def clean_up(self, job_folder: Folder) -> list[str]:
        """Delete every Job and cluster of a job, with their pods and keys; return their names."""
        job = self._label(job_folder)
        ended = self._end_clusters(job)
        for one in self.api.list("Job", {JOB_LABEL: job}):
            name = one["metadata"]["name"]
            if name != os.environ.get(OWN_JOB) and self.api.delete("Job", name) and not _is_over(one):
                ended.append(f"job/{name}")
        if isinstance(job_folder, Path):
            remove_keys(job_folder)
        return ended

    def preview(self, job_folder: Folder, command: Sequence[str], name: str) -> str:
        """Return the manifests: the Job that is sent from here, and what its driver sends."""
        self._check_folder(job_folder)
        job, unique = self._label(job_folder), f"{slug(name, CLUSTER)}-000000"
        cluster = Cluster(self.profile, unique, job, {group: self.sizes(group) for group in self.profile.groups})
        mine = owner("batch/v1", "Job", unique, "00000000-0000-0000-0000-000000000000")
        files = dict.fromkeys(("ca.pem", "scheduler.pem", "scheduler.key", "worker.pem", "worker.key"), b"of each run")
        above = owner("kubernetes.dask.org/v1", "DaskCluster", unique, mine["uid"])
        parts = {
            "sent by `dneuro submit`; the digits at the end of names differ each time":
                [self._driver(job_folder, command, unique)],
            "sent by the driver, with the uid of its Job, and keys made for the run":
                [cluster.secret(files, mine), cluster.dask_cluster(mine),
                 *(cluster.worker_group(pool, above) for pool in self.profile.groups)],
        }  # fmt: skip
        return "".join(f"# {title}\n" + "".join(f"---\n{_as_yaml(one)}" for one in manifests)
                       for title, manifests in parts.items())  # fmt: skip

    def _driver(self, job_folder: Folder, command: Sequence[str], unique: str) -> Manifest:
        log = None if "://" in str(job_folder) else str(Path(str(job_folder)) / processes.LOG)
        return driver_job(self.profile, command, unique, self._label(job_folder), log)

    def _label(self, folder: Folder) -> str:
        """Return the label of what belongs to a job's folder, or a standing cluster's."""
        over = self._volumes_over(Path(str(folder)))
        return label(str(folder), over[-1].claim if over else "")

    def _check_folder(self, job_folder: Folder) -> None:
        """Refuse a folder that the driver's pod would not find."""
        place = str(job_folder)
        if "://" not in place and (why := self._unseen(Path(place), True)):
            raise UsageError(f"the job's folder {place} {why}", hint=_WAY_OUT.format(what="state"))

    def _unseen(self, path: Path, written: bool, *, below: bool = False) -> str:
        """Return why the pods would not find a path, or could not write there; nothing if they do.

        With `below` it may not be a volume itself, since something is written beside it, too.
        """
        over = self._volumes_over(path)
        if not over:
            fit = [volume.path for volume in self.site.volumes if not (written and volume.read_only)]
            return "is on no volume that the pods can " + ("write to" if written else "read") + (
                f" ({', '.join(fit)})" if fit else "; the profile names none")
        nearest = over[-1]
        if written and nearest.read_only:
            return f"is on the volume {nearest.path}, which is mounted read-only"
        if below and path == Path(nearest.path):
            return "is a volume itself, and what is written beside it would be on none"
        return ""

    def _volumes_over(self, path: Path) -> list[VolumeSpec]:
        """Return the volumes that a path is below, the nearest last."""
        over = [volume for volume in self.site.volumes if path.is_relative_to(volume.path)]
        return sorted(over, key=lambda volume: len(Path(volume.path).parts))

    def _cluster(self, folder: Path | None, name: str) -> Cluster:
        unique = f"{slug(name, CLUSTER - 7)}-{secrets.token_hex(3)}"
        sizes = {group: self.sizes(group) for group in self.profile.groups}
        job = unique if folder is None else self._label(job_folder_of(folder) or folder)
        return Cluster(self.profile, unique, job, sizes)

    def _make(self, cluster: Cluster, keys: Path) -> None:
        mine = _own()
        files = {path.name: path.read_bytes() for path in keys.iterdir() if not path.name.startswith("client")}
        self._create(cluster.secret(files, mine))
        above = owner_of(self._create(cluster.dask_cluster(mine)))
        for pool in self.profile.groups:
            self._create(cluster.worker_group(pool, above))

    def _create(self, manifest: Manifest) -> Manifest:
        """Make an object of a name that nothing has; made by a request that got no answer, it is there already."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]

        def create() -> Manifest:
            try:
                return self.api.create(manifest)
            except ApiError as error:
                if error.code != 409 or "already exists" not in error.message:
                    raise
                if kind == "Secret":  # a driver may not read them, and nothing belongs to one
                    return manifest
                made = self.api.read(kind, name)
                if made is None:  # somebody has deleted it since
                    raise
                return made

        return waiting.patiently(create, TROUBLE)

    def _end_clusters(self, job: str) -> list[str]:
        """Delete the clusters of a job; return their names."""
        names = [one["metadata"]["name"] for one in self.api.list("DaskCluster", {JOB_LABEL: job})]
        return [f"daskcluster/{name}" for name in names if self._end(name)]

    def _end_own(self, name: str) -> None:
        """Delete this process's cluster; say so where that fails: what the process has done is done all the same."""
        try:
            waiting.patiently(lambda: self._end(name), ENDING)
        except ApiError as error:
            stay = f"stay as long as this driver's {_own()['kind']}"
            command = f"kubectl delete daskcluster {name} -n {self.site.namespace}"
            events.emit("warning", message=f"the machines {name} {stay}: {error.message}; {command}")

    def _end(self, name: str) -> bool:
        """Delete a cluster: what it owns, its workers, goes with it; its keys lie beside it."""
        there = self.api.delete("DaskCluster", name)
        self.api.delete("Secret", name)
        return there

    def _pods_of(self, job: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.api.list("Pod", {"job-name": job})
                if pod.get("status", {}).get("phase") in (None, "Pending", "Running")]  # fmt: skip


def _own() -> Manifest:
    """Return the owner of what this process makes: the driver's Job, else the pod itself."""
    known = os.environ
    if known.get(OWN_JOB) and known.get(OWN_UID):
        return owner("batch/v1", "Job", known[OWN_JOB], known[OWN_UID])
    return owner("v1", "Pod", known[OWN_POD], known[OWN_POD_UID])


def _is_over(job: Manifest) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)


def _as_yaml(manifest: Manifest) -> str:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(manifest, Dumper=Plain, sort_keys=False, width=110)
