"""An API that does not answer for a moment costs a job nothing; one that stays away is said to, and nothing is lost."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dneuro import events
from dneuro.cluster.kubernetes import api as api_module
from dneuro.cluster.kubernetes import backend as backend_module
from dneuro.cluster.kubernetes import scheduler, waiting
from dneuro.cluster.kubernetes.api import ApiError
from dneuro.cluster.kubernetes.backend import KubernetesBackend
from dneuro.cluster.security import make_credentials
from dneuro.errors import DneuroError, PartialError
from dneuro.spec.profile import ProfileSpec

Manifest = dict[str, Any]
MakeProfile = Callable[..., ProfileSpec]

AWAY = ApiError("the API of Kubernetes cannot be reached")
BUSY = ApiError("503 Service Unavailable", code=503)
REFUSED = ApiError("Kubernetes refuses", code=403)


class Api:
    """It has what it was told to make. Its next answers are `troubles`, None for one as it should be."""

    namespace = "dneuro"

    def __init__(self) -> None:
        self.there: dict[tuple[str, str], Manifest] = {}
        self.troubles: list[ApiError | None] = []
        self.always: ApiError | None = None

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def answer(self) -> None:
        if self.troubles:
            if trouble := self.troubles.pop(0):
                raise trouble
        elif self.always:
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


RUNS = {"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]}
RUNNING = {"kind": "Pod", "metadata": {"name": "p-1"}, "spec": {}, "status": RUNS}


@pytest.fixture
def waits(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    """The same, with a pod that runs, and looked at all the time."""
    api.there["Pod", "p-1"] = RUNNING
    monkeypatch.setattr(scheduler, "POLL", 0.0)
    monkeypatch.setattr(scheduler, "connect_to", lambda address, timeout: address.scheduler)
    return api


def cluster_of(profile: ProfileSpec) -> Any:
    return KubernetesBackend(profile)._cluster(None, "small")


def test_scheduler__is_waited_for_though_the_api_is_away_for_a_moment(
    waits: Api, make_profile: MakeProfile, tmp_path: Path
) -> None:
    cluster = cluster_of(make_profile())
    for troubles in ([AWAY], [None, BUSY], [AWAY, None, AWAY]):  # whichever request it is that gets no answer
        waits.troubles = list(troubles)
        assert scheduler.connect(waits, cluster, tmp_path, time.monotonic()) == cluster.address
        assert waits.troubles == []
    waits.troubles = [REFUSED]
    with pytest.raises(ApiError, match="refuses"):
        scheduler.connect(waits, cluster, tmp_path, time.monotonic())


def test_scheduler__that_nobody_can_tell_of_is_waited_for_as_long_as_for_any(
    waits: Api, make_profile: MakeProfile, tmp_path: Path
) -> None:
    waits.always = AWAY
    with pytest.raises(DneuroError, match=r"did not come up within 0\.2 s: the API of Kubernetes cannot") as caught:
        scheduler.connect(waits, cluster_of(make_profile(start_timeout="0.2s")), tmp_path, time.monotonic())
    assert not isinstance(caught.value, ApiError)


def test_workers__are_waited_for_though_the_api_is_away_for_a_moment(waits: Api, make_profile: MakeProfile) -> None:
    cluster = cluster_of(make_profile())
    looks = iter(range(4))

    def workers(n_workers: int) -> Any:
        there = {"a": {"resources": {"extract": 1}}, "b": {"resources": {"memory": 1}}}
        return {"workers": {} if next(looks) < 3 else there}

    waits.troubles = [AWAY, BUSY, AWAY]
    scheduler.wait_for_workers(waits, cluster, SimpleNamespace(scheduler_info=workers), time.monotonic() - 1)
    assert waits.troubles == []


@pytest.mark.usefixtures("machines")
def test_machines__are_made_though_the_api_is_away_for_a_moment(
    api: Api, make_profile: MakeProfile, tmp_path: Path
) -> None:
    api.troubles = [AWAY, BUSY]
    with KubernetesBackend(make_profile()).open(folder=tmp_path / "state" / "x", name="small"):
        assert api.kinds == CLUSTER
        assert api.troubles == []


@pytest.mark.usefixtures("machines")
def test_machines__that_were_made_by_a_request_without_an_answer_are_not_made_twice(
    api: Api, make_profile: MakeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: set[tuple[str, str]] = set()

    def create(self: Api, manifest: Manifest) -> Manifest:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if (kind, name) in self.there:
            raise ApiError(f'Kubernetes refuses to make the {kind} {name}: "{name}" already exists', code=409)
        made = honest(self, manifest)
        if (kind, name) not in answered:
            answered.add((kind, name))
            raise AWAY
        return made

    honest = Api.create
    monkeypatch.setattr(Api, "create", create)
    with KubernetesBackend(make_profile()).open(folder=tmp_path / "state" / "x", name="small"):
        assert api.kinds == CLUSTER
        groups = [one for (kind, _), one in api.there.items() if kind == "DaskWorkerGroup"]
        assert {one["metadata"]["ownerReferences"][0]["uid"] for one in groups} == {"1"}


@pytest.mark.usefixtures("machines")
def test_machines__that_are_deleted_while_they_are_made_are_refused(
    api: Api, make_profile: MakeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(self: Api, manifest: Manifest) -> Manifest:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "DaskCluster":
            raise ApiError(f'Kubernetes refuses to make the {kind} {name}: "{name}" already exists', code=409)
        return honest(self, manifest)

    honest = Api.create
    monkeypatch.setattr(Api, "create", create)
    with (
        pytest.raises(ApiError, match="already exists"),
        KubernetesBackend(make_profile()).open(folder=tmp_path / "state" / "x", name="small"),
    ):
        raise AssertionError("there are no machines")
    assert api.kinds == []


@pytest.fixture
def distrusted(tmp_path: Path) -> Iterator[str]:
    """The address of a server whose certificate nobody here has signed."""
    keys = make_credentials(tmp_path / "keys")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "scheduler.pem", keys / "scheduler.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    asked, _ = server.accept()
                except OSError:  # the test is over
                    return
                with contextlib.suppress(OSError), asked, context.wrap_socket(asked, server_side=True):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_trouble__of_a_wrong_configuration_does_not_pass(distrusted: str, tmp_path: Path) -> None:
    pytest.importorskip("kr8s")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"https://127.0.0.1:{free.getsockname()[1]}"

    def passes(server: str, context: str | None = None) -> bool:
        config = tmp_path / f"config-{server.rpartition(':')[2]}"
        config.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "here",
            "clusters": [{"name": "one", "cluster": {"server": server}}],
            "users": [{"name": "me", "user": {"token": "x"}}],
            "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        }))  # fmt: skip
        with pytest.raises(ApiError) as caught:
            api_module.Api("dneuro", context, str(config)).read("Job", "x")
        assert caught.value.code is None
        return caught.value.passes

    assert passes(nobody)
    assert not passes(nobody, "elsewhere"), "there is no such context"
    assert not passes(distrusted)


def test_trouble__is_what_another_try_may_do_without() -> None:
    assert [ApiError("x", code=code).passes for code in (None, 429, 500, 503, 504)] == [True] * 5
    assert [ApiError("x", code=code).passes for code in (400, 401, 403, 404, 409, 422)] == [False] * 6
