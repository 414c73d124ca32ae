"""The process that holds a cluster that stands: what it ends with, and why it is not there yet."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dneuro import events
from dneuro.cluster import DriverRef, standing
from dneuro.cluster.local import LocalBackend
from dneuro.cluster.standing import StandingCluster, holding
from dneuro.errors import DneuroError
from dneuro.spec.profile import ProfileSpec

IMAGE = "registry.example/dneuro@sha256:" + "0" * 64


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("backend", "code"), [("kubernetes", 143), ("local", 0)])
def test_holder__whose_node_is_emptied_is_to_be_started_again_where_nobody_but_down_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, code: int
) -> None:
    section = {"kubernetes": {"image": IMAGE}, "pools": {"extract": {"memory": "1GiB"}}}
    spec = ProfileSpec.model_validate({"backend": backend, **(section if backend == "kubernetes" else {})})
    (tmp_path / "profile.json").write_text(spec.model_dump_json())
    said = tmp_path / "cluster.json"
    said.write_text('{"address": "tls://where-it-was-before-it-was-killed:1"}')
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("ca.pem", "client.pem", "client.key"):
        (keys / name).touch()
    client = SimpleNamespace(security=SimpleNamespace(tls_client_key=str(keys / "client.key")),
                             scheduler=SimpleNamespace(address="tls://here:1"), dashboard_link="")  # fmt: skip
    opened: list[str] = []

    @contextlib.contextmanager
    def open_machines(folder: Path, name: str) -> Iterator[Any]:
        assert not said.exists(), "it is not there any more"
        teller.start()
        yield SimpleNamespace(client=client)
        opened.append("and ended")

    def end() -> None:
        over = time.monotonic() + 60
        while not said.exists() and time.monotonic() < over:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(holding, "backend_of", lambda spec: SimpleNamespace(open=open_machines))
    teller = threading.Thread(target=end)
    assert holding.hold(tmp_path) == code
    teller.join()
    assert (opened, said.exists()) == (["and ended"], False)


def test_up__says_why_the_cluster_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both while it waits, and when it has waited long enough."""
    path = tmp_path / "queued.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\nstart_timeout: 0.5s\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(LocalBackend, "start_driver", lambda *of: DriverRef("queue", "1"))
    monkeypatch.setattr(LocalBackend, "driver_state", lambda *of: "pending")
    monkeypatch.setattr(LocalBackend, "why_waiting", lambda *of: "pod d-1: ImagePullBackOff")
    noted: list[str] = []
    noticed: list[StandingCluster] = []

    def stop(self: LocalBackend, ref: DriverRef, *, grace: float) -> None:
        noticed.append(standing.status(path))

    monkeypatch.setattr(LocalBackend, "stop_driver", stop)
    with (
        events.listening(lambda event: noted.append(event.message)),
        pytest.raises(DneuroError, match=r"did not come up: pending after 0\.5 s, pod d-1: ImagePullBackOff; log "),
    ):
        standing.up(path)
    assert noted == ["its process waits to be started: pod d-1: ImagePullBackOff"]
    assert [(one.state, one.note) for one in noticed] == [("pending", "pod d-1: ImagePullBackOff")]
