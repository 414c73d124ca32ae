"""An API that does not answer for a moment costs a job nothing; one that stays away is said to, and nothing is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dneuro import events
from dneuro.cluster.kubernetes import backend as backend_module
from dneuro.cluster.kubernetes import scheduler, waiting
from dneuro.cluster.kubernetes.api import ApiError
from dneuro.cluster.kubernetes.backend import KubernetesBackend
from dneuro.errors import PartialError
from dneuro.spec.profile import ProfileSpec

Manifest = dict[str, Any]
MakeProfile = Callable[..., ProfileSpec]

AWAY = ApiError("the API of Kubernetes cannot be reached")
BUSY = ApiError("503 Service Unavailable", code=503)
REFUSED = ApiError("Kubernetes refuses", code=403)


class Api:
    """What it was told to make and to delete it has; its next answers are `troubles`, one after the other."""

    namespace = "dneuro"

    def __init__(self) -> None:
        self.there: dict[tuple[str, str], Manifest] = {}
        self.troubles: list[ApiError] = []
        self.always: ApiError | None = None

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def answer(self) -> None:
        if self.troubles:
            raise self.troubles.pop(0)
        if self.always:
            raise self.always

    def create(self, manifest: Manifest) -> Manifest:
        self.answer()
        made = {**manifest, "metadata": {**manifest["metadata"], "uid": "1"}}
        self.there[manifest["kind"], manifest["metadata"]["name"]] = made
        return made

    def read(self, kind: str, name: str) -> Manifest | None:
        self.answer()
        return self.there.get((kind, name))

    def list(self, kind: str, labels: Any = None) -> list[Manifest]:
        self.answer()
        return [one for (its, _), one in self.there.items() if its == kind]

    def delete(self, kind: str, name: str, *, at_once: bool = False) -> bool:
        self.answer()
        return self.there.pop((kind, name), None) is not None

    @property
    def kinds(self) -> list[str]:
        return sorted(kind for kind, _ in self.there)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    """Of a pod; nobody waits for long."""
    api = Api()
    monkeypatch.setattr(KubernetesBackend, "api", api)
    monkeypatch.setenv("DNEURO_POD", "login")
    monkeypatch.setenv("DNEURO_POD_UID", "2")
    monkeypatch.setattr(waiting, "PAUSE", 0.01)
    monkeypatch.setattr(backend_module, "ENDING", 0.1)
    return api


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler and its workers come up at once."""
    monkeypatch.setattr(scheduler, "connect", lambda *of: contextlib.nullcontext(SimpleNamespace()))
    monkeypatch.setattr(scheduler, "noticed_when_lost", contextlib.nullcontext)
    monkeypatch.setattr(scheduler, "wait_for_workers", lambda *of: None)
    monkeypatch.setattr(backend_module, "check_versions", lambda client: None)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []

    def take(event: events.Event) -> None:
        if event.kind == "warning":
            said.append(event.message)

    with events.listening(take):
        yield said


CLUSTER = ["DaskCluster", "DaskWorkerGroup", "DaskWorkerGroup", "Secret"]
GROUPS = ["DaskWorkerGroup", "DaskWorkerGroup"]  # the DaskCluster owns them, and they go with it


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("troubles", [[], [BUSY], [AWAY, BUSY, BUSY]], ids=["none", "one", "three"])
def test_machines__are_ended_though_the_api_is_away_for_a_moment(
    api: Api, make_profile: MakeProfile, tmp_path: Path, warnings: list[str], troubles: list[ApiError]
) -> None:
    with KubernetesBackend(make_profile()).open(folder=tmp_path / "state" / "x", name="small"):
        assert api.kinds == CLUSTER
        api.troubles = list(troubles)
    assert api.kinds == GROUPS
    assert warnings == []


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("trouble", [AWAY, BUSY, REFUSED])
def test_machines__that_cannot_be_ended_are_named_and_what_was_done_stays_done(
    api: Api, make_profile: MakeProfile, tmp_path: Path, warnings: list[str], trouble: ApiError
) -> None:
    with KubernetesBackend(make_profile()).open(folder=tmp_path / "state" / "x", name="small"):
        api.always = trouble
    (said,) = warnings
    name = next(name for kind, name in api.there if kind == "DaskCluster")
    assert said.startswith(f"the machines {name} stay as long as this driver's Pod: {trouble.message}")
    assert said.endswith(f"kubectl delete daskcluster {name} -n dneuro")
    api.always = None
    with (
        pytest.raises(PartialError, match="two units"),
        KubernetesBackend(make_profile()).open(folder=tmp_path / "state" / "x", name="small"),
    ):
        api.always = trouble
        raise PartialError("two units failed")
