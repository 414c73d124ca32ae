"""A Kubernetes of one process, for tests: the API in memory, the real operator of dask-kubernetes, and in place of the
controllers, the network and the nodes a loop that starts the pods' commands as processes of this machine.

Every pod has a loopback address of its own; a Service has that of its pod. Whoever has the token of a service account
may do what the Roles of deploy/kubernetes allow it. There is no admission, no quota and no memory limit. Run as
``python small_cluster.py FOLDER``; FOLDER/ready is there when it is, and then FOLDER/kubeconfig too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonpatch
import kmock
import kopf
import yaml

NAMESPACE = "dneuro"
KINDS = {
    "v1": ["pods", "services", "secrets", "events", "namespaces"],
    "apps/v1": ["deployments"],
    "batch/v1": ["jobs"],
    "apiextensions.k8s.io/v1": ["customresourcedefinitions"],
    "kubernetes.dask.org/v1": ["daskclusters", "daskworkergroups", "daskjobs", "daskautoscalers"],
}
ROLES = Path(__file__).parents[3] / "deploy" / "kubernetes" / "accounts.yaml"
VERBS = {kmock.action.LIST: "list", kmock.action.WATCH: "watch", kmock.action.FETCH: "get",
         kmock.action.CREATE: "create", kmock.action.UPDATE: "patch", kmock.action.DELETE: "delete"}  # fmt: skip
NAMES = {"daskclusters": "DaskCluster", "daskworkergroups": "DaskWorkerGroup", "daskjobs": "DaskJob",
         "daskautoscalers": "DaskAutoscaler", "customresourcedefinitions": "CustomResourceDefinition"}  # fmt: skip
Object = dict[str, Any]


def allowed() -> set[tuple[str, str, str, str]]:
    """Return which account may do what to which resource of which group."""
    found = [one for one in yaml.safe_load_all(ROLES.read_text()) if one]
    rules = {one["metadata"]["name"]: one["rules"] for one in found if one["kind"] == "Role"}
    return {
        (subject["name"], group, resource, verb)
        for one in found
        if one["kind"] == "RoleBinding"
        for subject in one["subjects"]
        for rule in rules[one["roleRef"]["name"]]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class Apiserver(kmock.KubernetesEmulator):
    """What the emulator leaves out: uids, versions, selectors, and kinds in lists."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.versions = itertools.count(1)
        self.rules = allowed()
        for path in ("get /version", "get /version/"):
            self[path] << {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        for version, plurals in KINDS.items():
            for plural in plurals:
                info = self.resources[f"{version}/{plural}"]
                info.kind = NAMES.get(plural, plural[:-1].capitalize())
                info.singular = info.kind.lower()
                info.namespaced = plural not in ("namespaces", "customresourcedefinitions")
                info.verbs = {"get", "list", "watch", "create", "patch", "delete"}
                info.subresources = {"status", "scale"}

    async def _handle(self, request: Any) -> Any:
        account = request.headers.get("Authorization", "").partition("Bearer ")[2]
        if account.startswith("dneuro-") and request.resource is not None and request.action is not None:
            asked = (account, request.resource.group, request.resource.plural, VERBS[request.action])
            if asked not in self.rules:
                raise kmock.KubernetesError(403, "Forbidden", f"{account} may not {asked[3]} {asked[2]}")
        if request.action == kmock.action.CREATE:
            meta = request.data.setdefault("metadata", {})
            meta.setdefault("namespace", request.namespace)
            meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            meta["uid"] = str(uuid.uuid4())
        if request.action == kmock.action.UPDATE and isinstance(request.data, list):  # a JSON patch
            kept = self.objects[request.resource, request.namespace, request.name]
            before = {} if kept.deleted else kept.raw
            object.__setattr__(request, "data", merge_patch(before, jsonpatch.apply_patch(before, request.data)))
        if request.action in (kmock.action.CREATE, kmock.action.UPDATE):
            request.data.setdefault("metadata", {})["resourceVersion"] = str(next(self.versions))
        return await super()._handle(request)

    async def _serve_list(self, request: Any) -> Any:
        found = await super()._serve_list(request)
        group, version = request.resource.group, request.resource.version
        kind = self.resources[request.resource].kind
        items = [{"apiVersion": f"{group}/{version}" if group else version, "kind": kind, **one}
                 for one in found["items"] if chosen(one, request.params)]  # fmt: skip
        return {**found, "items": items, "metadata": {"resourceVersion": str(next(self.versions))}}


def merge_patch(before: Object, after: Object) -> Object:
    """Return the JSON merge patch that makes one of the other."""
    changed = {key: merge_patch(before[key], value)
               if isinstance(value, dict) and isinstance(before.get(key), dict) else value
               for key, value in after.items() if before.get(key) != value}  # fmt: skip
    return {**dict.fromkeys(before.keys() - after.keys()), **changed}


def chosen(one: Object, params: Any) -> bool:
    """Return whether an object is among those that a request asks for."""
    labels = one["metadata"].get("labels") or {}
    wanted = [part for part in params.get("labelSelector", "").split(",") if part]
    fields = [part for part in params.get("fieldSelector", "").split(",") if part]
    return all(labels.get(key) == value for key, _, value in (part.partition("=") for part in wanted)) and all(
        str(dig(one, path)) == value for path, _, value in (part.partition("=") for part in fields)
    )


def dig(one: Any, path: str) -> Any:
    """Return what lies at a dotted path."""
    for key in path.split("."):
        one = one.get(key, {})
    return one


class Node:
    """Controllers, network and kubelet."""

    def __init__(self, url: str, session: aiohttp.ClientSession, folder: Path) -> None:
        self.url, self.session, self.folder = url, session, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses = (f"127.{87 + os.getpid() % 100}.{number // 250}.{number % 250 + 1}"
                          for number in itertools.count(os.getpid() % 5000))  # fmt: skip

    async def run(self) -> None:
        """Look after everything, for ever."""
        while True:
            pods = await self.list("v1/pods")
            deployments, jobs = await self.list("apps/v1/deployments"), await self.list("batch/v1/jobs")
            for job in jobs:
                await self.tend_job(job, [pod for pod in pods if owned(pod, job)])
            for deployment in deployments:
                if not any(owned(pod, deployment) for pod in pods):
                    await self.make_pod(deployment, f"{deployment['metadata']['name']}-{uuid.uuid4().hex[:5]}")
            for service in await self.list("v1/services"):
                await self.route(service, pods)
            for pod in pods:
                await self.tend_pod(pod)
            await self.collect_garbage()
            await asyncio.sleep(0.2)

    async def tend_job(self, job: Object, pods: list[Object]) -> None:
        status, spec, name = job.get("status", {}), job["spec"], job["metadata"]["name"]
        if status.get("conditions"):
            return
        alive = [pod for pod in pods if pod.get("status", {}).get("phase") in (None, "Pending", "Running")]
        if spec.get("suspend"):
            for pod in alive:
                await self.delete("v1/pods", pod)
            return
        codes = [pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
                 for pod in pods if pod not in alive]  # fmt: skip
        final = spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
        if 0 in codes:
            await self.patch("batch/v1/jobs", name, {"status": {"conditions": [condition("Complete")]}})
        elif len(codes) > spec["backoffLimit"] or set(codes) & set(final):
            await self.patch("batch/v1/jobs", name, {"status": {"conditions": [condition("Failed")]}})
        elif not alive:
            labels = {"job-name": name, "batch.kubernetes.io/controller-uid": job["metadata"]["uid"]}
            await self.make_pod(job, f"{name}-{uuid.uuid4().hex[:5]}", labels)

    async def make_pod(self, owner: Object, name: str, labels: Object | None = None) -> None:
        template = owner["spec"]["template"]
        reference = {"kind": owner["kind"], "uid": owner["metadata"]["uid"], "name": owner["metadata"]["name"]}
        metadata = {"name": name, "namespace": NAMESPACE, "ownerReferences": [reference], "finalizers": ["test/node"],
                    "labels": {**template["metadata"].get("labels", {}), **(labels or {})}}  # fmt: skip
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"],
               "status": {"phase": "Pending", "podIP": next(self.addresses)}}  # fmt: skip
        await self.call("POST", "v1/pods", json=pod)

    async def route(self, service: Object, pods: list[Object]) -> None:
        wanted = service["spec"]["selector"].items()
        for pod in pods:
            address = pod["status"]["podIP"]
            if wanted <= pod["metadata"]["labels"].items() and service["spec"].get("clusterIP") != address:
                await self.patch("v1/services", service["metadata"]["name"], {"spec": {"clusterIP": address}})

    async def tend_pod(self, pod: Object) -> None:
        uid, name, status = pod["metadata"]["uid"], pod["metadata"]["name"], pod["status"]
        process = self.processes.get(uid)
        if pod["metadata"].get("deletionTimestamp"):
            if process is None or process.poll() is not None:
                await self.patch("v1/pods", name, {"metadata": {"finalizers": []}})
            elif not status.get("told"):
                process.send_signal(signal.SIGTERM)
                await self.patch("v1/pods", name, {"status": {"told": True}})
        elif status["phase"] == "Pending" and process is None:
            if why := self.why_not(pod):
                if not why.items() <= status.items():
                    await self.patch("v1/pods", name, {"status": why})
                return
            with contextlib.suppress(LookupError):  # a Secret that is not there yet
                self.processes[uid] = await self.start(pod)
                state = {"containerStatuses": [{"name": "main", "restartCount": 0, "state": {"running": {}}}]}
                await self.patch("v1/pods", name, {"status": {"phase": "Running", **state}})
        elif status["phase"] == "Running" and process is not None and process.poll() is not None:
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            ended = {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}}
            before = status["containerStatuses"][0]
            if pod["spec"].get("restartPolicy") == "Never":
                now = {**before, "state": ended}
                phase = "Failed" if code else "Succeeded"
            else:
                try:
                    self.processes[uid] = await self.start(pod)
                except LookupError:  # its cluster is being deleted, Secret and Service first: so will it be
                    return
                now = {**before, "lastState": ended, "restartCount": before["restartCount"] + 1}
                phase = "Running"
            await self.patch("v1/pods", name, {"status": {"phase": phase, "containerStatuses": [now]}})

    def why_not(self, pod: Object) -> Object:
        """Return the status of a pod that no node takes, or whose image is not there."""
        if "nowhere" in pod["spec"].get("nodeSelector", {}):
            message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
            return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                    "message": message}]}  # fmt: skip
        image = pod["spec"]["containers"][0]["image"]
        if "absent" in image:
            waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}
            return {"containerStatuses": [{"name": "main", "restartCount": 0, "state": {"waiting": waiting}}]}
        return {}

    async def start(self, pod: Object) -> subprocess.Popen[bytes]:
        container, address = pod["spec"]["containers"][0], pod["status"]["podIP"]
        home = self.folder / "pods" / pod["metadata"]["name"]
        await self.mount_keys(pod, home / "keys")
        environment = dict(os.environ)
        environment.pop("DASK_INTERNAL_INHERIT_CONFIG", None)
        services = {one["metadata"]["name"]: one["spec"].get("clusterIP", "") for one in await self.list("v1/services")}
        for variable in container["env"]:
            value = variable.get("value")
            if value is None:
                path = variable["valueFrom"]["fieldRef"]["fieldPath"]
                label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
                value = pod["metadata"]["labels"][label[1]] if label else str(dig(pod, path))
            if found := re.match(rf"tls://([^.]+)\.{NAMESPACE}\.svc:", value):
                value = value.replace(f"{found[1]}.{NAMESPACE}.svc", services[found[1]])
            environment[variable["name"]] = value
        # What an image has: the Python of this environment, whether or not it is the first here.
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
        environment["HOME"] = str(home)
        environment["KUBERNETES_SERVICE_HOST"] = "127.0.0.1"
        token = pod["spec"].get("automountServiceAccountToken") and pod["spec"]["serviceAccountName"]
        environment["KUBECONFIG"] = str(home / "kubeconfig")
        if token:
            (home / "kubeconfig").write_text(kubeconfig(self.url, token))
        command = [re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word) for word in container["command"]]
        command = [word.replace("/run/dneuro", str(home / "keys")) for word in command]
        command = [f"{address}{word}" if word == ":8787" else word for word in command]
        if command[0] == "dask":  # in a pod it listens on all addresses, which are the pod's
            command = [*command, "--host", address]
        with (home / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True)

    async def mount_keys(self, pod: Object, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        secrets = {one["metadata"]["name"]: one.get("data", {}) for one in await self.list("v1/secrets")}
        for volume in pod["spec"]["volumes"]:
            for item in volume.get("secret", {}).get("items", []):
                data = secrets[volume["secret"]["secretName"]][item["key"]]
                (place / item["path"]).write_bytes(base64.b64decode(data))

    async def collect_garbage(self) -> None:
        kinds = ["batch/v1/jobs", "kubernetes.dask.org/v1/daskclusters", "kubernetes.dask.org/v1/daskworkergroups",
                 "apps/v1/deployments", "v1/services", "v1/secrets", "v1/pods"]  # fmt: skip
        found = {kind: await self.list(kind) for kind in kinds}
        there = {one["metadata"]["uid"] for objects in found.values() for one in objects}
        for kind, objects in found.items():
            for one in objects:
                owners = one["metadata"].get("ownerReferences", [])
                if owners and not any(owner["uid"] in there for owner in owners):
                    await self.delete(kind, one)

    async def list(self, kind: str) -> list[Object]:
        return list((await self.call("GET", kind))["items"])

    async def patch(self, kind: str, name: str, change: Object) -> None:
        await self.call("PATCH", kind, name, json=change, headers={"Content-Type": "application/merge-patch+json"})

    async def delete(self, kind: str, one: Object) -> None:
        if not one["metadata"].get("deletionTimestamp"):
            await self.call("DELETE", kind, one["metadata"]["name"])

    async def call(self, method: str, kind: str, name: str = "", **options: Any) -> Any:
        version, _, plural = kind.rpartition("/")
        root = "api" if version == "v1" else "apis"
        url = f"{self.url}/{root}/{version}/namespaces/{NAMESPACE}/{plural}{'/' if name else ''}{name}"
        async with self.session.request(method, url, **options) as response:
            if response.status not in (404, 409):
                response.raise_for_status()
            return await response.json()

    def end(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def kubeconfig(url: str, token: str) -> str:
    """Return a kubeconfig for whoever has this token."""
    return yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
    })  # fmt: skip


def owned(one: Object, by: Object) -> bool:
    return any(owner["uid"] == by["metadata"]["uid"] for owner in one["metadata"].get("ownerReferences", []))


def condition(kind: str) -> Object:
    return {"type": kind, "status": "True"}


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Node]:
    async with Apiserver() as api, kmock.Server(api) as server, aiohttp.ClientSession() as session:
        url = str(server.url).rstrip("/")
        api.objects["v1/namespaces", None, NAMESPACE] = {"metadata": {"name": NAMESPACE}}
        os.environ["KUBECONFIG"] = str(folder / "operator.kubeconfig")
        (folder / "operator.kubeconfig").write_text(kubeconfig(url, "operator"))
        (folder / "kubeconfig").write_text(kubeconfig(url, "dneuro-login"))
        (folder / "admin.kubeconfig").write_text(kubeconfig(url, "admin"))
        node = Node(url, session, folder)
        try:
            yield node
        finally:
            node.end()


async def main(folder: Path) -> None:
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with cluster(folder) as node:
        from dask_kubernetes.operator.controller import controller  # registers its handlers

        async def address(service_name: str, namespace: str, port_name: str = "tcp-comm", **_: Any) -> str:
            found = await node.call("GET", "v1/services", service_name)  # as there are no names here
            port = next(one["port"] for one in found["spec"]["ports"] if one["name"] == port_name)
            return f"tcp://{found['spec']['clusterIP']}:{port}"

        controller.get_scheduler_address = address

        ready = asyncio.Event()
        tasks = [asyncio.create_task(node.run()),
                 asyncio.create_task(kopf.operator(standalone=True, clusterwide=True, ready_flag=ready))]  # fmt: skip
        await ready.wait()
        (folder / "ready").touch()
        waiting = asyncio.create_task(over.wait())
        await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, waiting):
            if task.done() and not task.cancelled() and (error := task.exception()):
                logging.error("ended", exc_info=error)
            task.cancel()
        await asyncio.wait(tasks, timeout=5)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    asyncio.run(main(Path(sys.argv[1])))
