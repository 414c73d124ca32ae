"""Profiles for Kubernetes, the schemas of what is sent, and what the operator makes of it."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dneuro.spec.profile import ProfileSpec

IMAGE = "registry.example/dneuro@sha256:" + "0" * 64
POOLS = {"extract": {"workers": 2, "memory": "2GiB"}, "memory": {"workers": 1, "memory": "3GiB"}}


@pytest.fixture
def make_profile(tmp_path: Path) -> Callable[..., ProfileSpec]:
    """Return ``make_profile(pools=…, **kubernetes)``: a profile whose volume is the test's folder."""

    def make(pools: dict[str, Any] | None = None, start_timeout: str = "240s", **kubernetes: Any) -> ProfileSpec:
        section = {"image": IMAGE, "volumes": [{"claim": "data", "path": str(tmp_path)}], **kubernetes}
        return ProfileSpec.model_validate({"backend": "kubernetes", "state": str(tmp_path / "state"),
                                           "start_timeout": start_timeout, "pools": pools or POOLS,
                                           "kubernetes": section})  # fmt: skip

    return make


class Answers:
    """An API that has some objects; what is an error is raised."""

    def __init__(self, **objects: list[dict[str, Any]] | Exception) -> None:
        self.objects = objects
        self.asked: dict[str, Any] = {}

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def list(self, kind: str, labels: Any = None) -> list[dict[str, Any]]:
        self.asked[kind] = labels
        found = self.objects.get(kind, [])
        if isinstance(found, Exception):
            raise found
        return found

    def read(self, kind: str, name: str) -> dict[str, Any] | None:
        return next((one for one in self.list(kind) if one["metadata"]["name"] == name), None)


@pytest.fixture
def answers() -> Callable[..., Answers]:
    """Return ``answers(Pod=[…], Event=error)``: an API that has these objects, or raises these errors."""
    return Answers


def _crd(kind: str) -> dict[str, Any]:
    pytest.importorskip("dask_kubernetes", reason="needs the package dask-kubernetes, for its CRDs")
    spec = importlib.util.find_spec("dask_kubernetes")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    crd = yaml.load((folder / f"{kind.lower()}.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _strict(schema: Any) -> Any:
    """Return the schema with no key allowed that it does not name."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="session")
def check_dask_kind() -> Callable[[dict[str, Any]], None]:
    """Return a check of a DaskCluster or DaskWorkerGroup against the operator's CRD, made strict."""
    jsonschema = pytest.importorskip("jsonschema")
    schemas: dict[str, Any] = {}

    def check(manifest: dict[str, Any]) -> None:
        kind = manifest["kind"]
        if kind not in schemas:
            schemas[kind] = jsonschema.Draft7Validator(_strict(_crd(kind)["properties"]["spec"]))
        assert manifest["apiVersion"] == "kubernetes.dask.org/v1"
        schemas[kind].validate(manifest["spec"])

    return check


@pytest.fixture(scope="session")
def check_api_kind() -> Callable[[dict[str, Any]], None]:
    """Return a check of an object against the schemas of the API, as strict as a server."""
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")

    def check(manifest: dict[str, Any]) -> None:
        for version in ("1.32", "1.36"):
            validator.validate(copy.deepcopy(manifest), version, strict=True)

    return check


@pytest.fixture(scope="session")
def operator_made() -> Iterator[Any]:
    """What the operator makes of a DaskCluster and of a group, by its own functions."""
    controller = pytest.importorskip(
        "dask_kubernetes.operator.controller.controller", reason="needs the package dask-kubernetes"
    )

    def scheduler(cluster: dict[str, Any]) -> dict[str, Any]:
        spec = cluster["spec"]["scheduler"]
        found: dict[str, Any] = controller.build_scheduler_deployment_spec(
            cluster["metadata"]["name"], spec["spec"], {}, cluster["metadata"]["labels"] | spec["metadata"]["labels"]
        )
        return found

    def service(cluster: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = controller.build_scheduler_service_spec(
            cluster["metadata"]["name"], cluster["spec"]["scheduler"]["service"], {}, cluster["metadata"]["labels"]
        )
        return found

    def worker(group: dict[str, Any]) -> dict[str, Any]:
        spec = group["spec"]["worker"]
        found: dict[str, Any] = controller.build_worker_deployment_spec(
            group["metadata"]["name"], "dneuro", group["spec"]["cluster"], "0123456789", spec["spec"], {},
            group["metadata"]["labels"] | spec["metadata"]["labels"],
        )  # fmt: skip
        return found

    yield SimpleNamespace(scheduler=scheduler, service=service, worker=worker)
