"""The manifests of deploy/kubernetes: valid, hardened, nothing for the whole cluster, and at one with the profile."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dneuro.cluster.kubernetes import pods
from dneuro.spec import read_profile

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def objects() -> list[dict[str, Any]]:
    found = [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())]
    return [one for one in found if one]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in objects() if one["kind"] == kind}


LOGIN = named("Deployment")["dneuro-login"]["spec"]["template"]


@pytest.mark.parametrize("one", objects(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_objects__fit_the_schemas_of_the_api(one: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    validator.validate(one, "1.36", strict=True)


def test_files__are_all_part_of_it() -> None:
    assert set(KUSTOMIZATION["resources"]) == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert KUSTOMIZATION["namespace"] in named("Namespace")


def test_rights__end_at_the_namespace_and_name_everything() -> None:
    assert not [one for one in objects() if one["kind"].startswith("Cluster")]
    for role in named("Role").values():
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if "secrets" in rule["resources"]:
                assert set(rule["verbs"]) <= {"create", "delete"}, "keys are written and never read"


def test_namespace__enforces_the_restricted_level() -> None:
    labels = named("Namespace")["dneuro"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods__satisfy_the_restricted_level(violations: Callable[[dict[str, Any]], list[str]]) -> None:
    workloads = [one for one in objects() if "template" in one.get("spec", {})]
    assert [one["metadata"]["name"] for one in workloads] == ["dneuro-login"]
    assert [violations(one["spec"]["template"]["spec"]) for one in workloads] == [[]]
    assert not named("Pod")


@pytest.mark.parametrize(
    ("where", "change", "why"),
    [
        ("pod", {"hostNetwork": True}, "pod: hostNetwork"),
        ("pod", {"securityContext": {"runAsUser": 1000}}, "login has no seccomp profile"),
        ("container", {"ports": [{"containerPort": 8786, "hostPort": 8786}]}, "login has a port of the node"),
        ("container", {"securityContext": {"procMount": "Unmasked"}}, "login changes what the node does"),
        ("container", {"securityContext": {"privileged": True}}, "login is privileged"),
        ("pod", {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}, "volume node"),
    ],
)
def test_restricted_level__refuses_what_it_should(
    violations: Callable[[dict[str, Any]], list[str]], where: str, change: dict[str, Any], why: str
) -> None:
    spoilt = copy.deepcopy(LOGIN["spec"])
    if where == "container":
        spoilt["containers"][0].update(change)
    else:
        spoilt["containers"][0]["securityContext"].pop("seccompProfile")
        spoilt.update(change)
    assert why in violations(spoilt)


def test_login__is_as_hardened_as_the_pods_of_a_job() -> None:
    pod, container = LOGIN["spec"], LOGIN["spec"]["containers"][0]
    made = pods.pod_spec(profile(), pods.Container("login", [], 1, 1))
    assert pod["securityContext"] == made["securityContext"]
    assert container["securityContext"] == made["containers"][0]["securityContext"]
    assert {"name": "HOME", "value": "/tmp"} in container["env"]
    assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def profile() -> Any:
    return read_profile(FOLDER / "profiles" / "kubernetes.yaml")


def test_profile__names_what_is_there() -> None:
    found = profile()
    site = pods.section(found)
    assert site.namespace == KUSTOMIZATION["namespace"]
    assert site.service_account in named("ServiceAccount")
    assert {volume.claim for volume in site.volumes} == set(named("PersistentVolumeClaim"))
    image = KUSTOMIZATION["images"][0]
    assert site.image == f"{image['newName']}@{image['digest']}"
    shipped = read_profile(FOLDER.parents[1] / "cluster" / "kubernetes.yaml")
    assert shipped == found


def test_login__sees_the_volumes_where_the_pods_of_a_job_do() -> None:
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName")
              for volume in LOGIN["spec"]["volumes"]}  # fmt: skip
    mounts = {claims[mount["name"]]: (mount["mountPath"], mount.get("readOnly", False))
              for mount in LOGIN["spec"]["containers"][0]["volumeMounts"] if claims[mount["name"]]}  # fmt: skip
    assert mounts == {volume.claim: (volume.path, volume.read_only) for volume in pods.section(profile()).volumes}


def test_network__allows_the_ports_of_dask_and_starts_from_nothing() -> None:
    policies = named("NetworkPolicy")
    assert policies["nobody"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    allowed = {port["port"] for port in policies["dask-in"]["spec"]["ingress"][0]["ports"]}
    assert allowed == {pods.SCHEDULER_PORT, pods.WORKER_PORT, pods.NANNY_PORT}
    assert policies["operator-in"]["spec"]["ingress"][0]["ports"][0]["port"] == pods.REFUSING_PORT
    (peers,) = policies["dask-in"]["spec"]["ingress"][0]["from"]
    role = policies["dask-in"]["spec"]["podSelector"]["matchExpressions"][0]
    for component in role["values"]:
        assert peers["podSelector"]["matchLabels"].items() <= pods.labels("any", component).items()
    assert role["key"] == pods.ROLE_LABEL


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which renders without a cluster")
def test_kustomize__renders_it() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one]
    assert len(found) == len(objects()) + 1, "and the profile"
    login = next(one for one in found if one["kind"] == "Deployment")
    assert "@sha256:" in login["spec"]["template"]["spec"]["containers"][0]["image"]
    assert {one["metadata"].get("namespace") for one in found} == {None, "dneuro"}
