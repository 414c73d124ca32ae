"""The real operator, against an API in memory, makes pods of what we send; started as processes, they do the job.

``make test-kubernetes`` runs them, which takes minutes; ``DNEURO_TEST_KUBERNETES=demo`` has jobs/demo.yaml run whole in
the place of a small job.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from dneuro.cluster import backend_of, standing
from dneuro.cluster.backends import DriverRef
from dneuro.cluster.kubernetes.api import Api, ApiError
from dneuro.cluster.kubernetes.backend import KubernetesBackend
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, DneuroError, UsageError
from dneuro.jobs.asking import Asking, drivers
from dneuro.jobs.driver import run_job
from dneuro.jobs.ending import cancel
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import holder
from dneuro.jobs.submitting import submit
from dneuro.jobs.watching import status
from dneuro.spec import read_job
from dneuro.spec.profile import ProfileSpec

for package in ("kr8s", "kopf", "kmock", "dask_kubernetes"):
    pytest.importorskip(package, reason=f"needs the package {package}: pip install '.[test]'")

MakeProfile = Callable[..., ProfileSpec]

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
WHOLE_DEMO = os.environ.get("DNEURO_TEST_KUBERNETES") == "demo"
PATIENCE = 240.0

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "DNEURO_TEST_KUBERNETES" not in os.environ,
        reason="takes minutes: make test-kubernetes, or DNEURO_TEST_KUBERNETES=1 in the environment",
    ),
]


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small cluster; its folder, with a kubeconfig of whoever submits, and ``pods/NAME/log``."""
    folder = tmp_path_factory.mktemp("kubernetes")
    command = [sys.executable, str(HERE / "small_cluster.py"), str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: (folder / "ready").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield folder
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(autouse=True)
def submits(kubernetes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubernetes / "kubeconfig"))


@pytest.fixture
def admin(kubernetes: Path) -> Api:
    """All objects, whoever may see them."""
    return Api("dneuro", kubeconfig=str(kubernetes / "admin.kubeconfig"))


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    over = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < over, "it did not come about in time"
        time.sleep(0.3)
    return found


def names(api: Api, *kinds: str) -> list[str]:
    return [f"{kind}/{one['metadata']['name']}" for kind in kinds for one in api.list(kind)]


LEFT = ("DaskCluster", "DaskWorkerGroup", "Secret", "Deployment", "Service")


@pytest.fixture
def start(
    tmp_path: Path, make_profile: MakeProfile, kubernetes: Path
) -> Callable[..., tuple[KubernetesBackend, DriverRef, Path]]:
    """Return ``start(command, …)``, which has a driver started; PROFILE in its command stands for a profile file."""

    def run(*command: str, **settings: Any) -> tuple[KubernetesBackend, DriverRef, Path]:
        profile = make_profile(**settings)
        file = tmp_path / "profile.yaml"
        file.write_text(yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True)))
        backend = backend_of(profile)
        assert isinstance(backend, KubernetesBackend)
        folder = tmp_path / "state" / "jobs" / f"small-{tmp_path.name[-20:]}"
        words = [str(file) if word == "PROFILE" else word for word in command]
        return backend, backend.start_driver(folder, [sys.executable, *words], "small"), folder

    return run


def output(kubernetes: Path, folder: Path) -> str:
    """What a driver and its pods have printed, for messages."""
    logs = [folder / "driver.log", *kubernetes.glob("pods/*/log")]
    return "\n".join(f"--- {log}\n{log.read_text()[-1500:]}" for log in logs if log.exists())


def test_job__submitted_to_kubernetes_ends_as_it_does_here(
    kubernetes: Path, make_profile: MakeProfile, admin: Api, tmp_path: Path, threads: ThreadExecutor,
    write_job: Callable[..., Path], same_store: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    steps: list[Any] = [{"moments": None}, {"svd": {"rank": 2, "layer": "fc"}}]
    job = ROOT / "jobs" / "demo.yaml" if WHOLE_DEMO else write_job(*steps)
    # Whoever submits may not make clusters, a driver may not make Jobs: each of their requests has to be allowed.
    folder, _ = submit(read_job(job, [f"store={tmp_path / 'there.zarr'}"]), make_profile())
    until(lambda: len(names(admin, "DaskWorkerGroup")) == 3)
    with standing_still(kubernetes):  # lest the job is done, and its pods gone, while they are looked at
        groups = [one for one in admin.list("DaskWorkerGroup") if one["spec"]["worker"]["replicas"]]
        sizes = {one["metadata"]["name"].rpartition("-")[2]: one["spec"]["worker"]["replicas"] for one in groups}
        assert sizes == {"extract": 2, "memory": 1}
        until(lambda: len(names(admin, "Deployment")) == 4)
        until(lambda: len([pod for pod in admin.list("Pod") if pod["status"]["phase"] == "Running"]) == 5)
        nothing_answers_without_a_key(admin)
    try:
        until(lambda: status(folder).is_over)
        assert status(folder).state == "done"
    except AssertionError:
        raise AssertionError(output(kubernetes, Path(str(folder.path)))) from None
    here = run_job(read_job(job, [f"store={tmp_path / 'here.zarr'}"]), threads)
    if WHOLE_DEMO:  # it trains a network, whose last digits depend on the number of threads
        same_files(tmp_path / "there.zarr", Path(str(here.store)))
    else:
        same_store(tmp_path / "there.zarr", Path(str(here.store)))
    until(lambda: no_driver(folder, make_profile()))
    until(lambda: names(admin, *LEFT) == [], 30)
    assert cancel(folder).ended == [], "it has ended in order"
    until(lambda: names(admin, "Job", "Pod") == [], 30)


def no_driver(folder: JobFolder, profile: ProfileSpec) -> bool:
    """All drivers that a job has had are gone."""
    refs = drivers(folder, holder(folder.attempts))
    return set(Asking().states(refs, backend_of(profile))) == {"gone"}


def same_files(one: Path, other: Path) -> None:
    """Two stores have the same files, whatever is in them."""
    found = [{path.relative_to(store) for path in store.rglob("*") if path.is_file()} for store in (one, other)]
    assert found[0] == found[1] != set()


def nothing_answers_without_a_key(admin: Api) -> None:
    """Every port that the pods' processes listen on wants a certificate."""
    role = "app.kubernetes.io/component"
    pods = {pod["status"]["podIP"]: pod["metadata"]["labels"][role] for pod in admin.list("Pod")}
    until(lambda: len([1 for ip, port in listening() if ip in pods and port == 8788]) == 3)
    ports = {(pods[ip], port) for ip, port in listening() if ip in pods}
    assert ports == {("scheduler", 8786), ("worker", 8788), ("worker", 8789)}
    for address, port in sorted(listening()):
        if address not in pods:
            assert address in ("127.0.0.1", "::1"), f"{address}:{port}"
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection((address, port), 10) as plain:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with context.wrap_socket(plain) as wrapped:  # TLS 1.3 says that a certificate is missing when we read
                    wrapped.send(b"hello")
                    if wrapped.recv(1) == b"":
                        raise ConnectionError("closed")


def nothing_is_said_by_http(admin: Api) -> None:
    """The port that was asked for, so that the operator may take workers away, answers 404 to everything."""
    addresses = {pod["status"]["podIP"] for pod in admin.list("Pod")}
    ((address, port),) = [(ip, port) for ip, port in listening() if ip in addresses and port == 8787]
    for path in ("/", "/health", "/metrics", "/info/main/workers.html", "/api/v1/retire_workers", "/status"):
        connection = http.client.HTTPConnection(address, port, timeout=10)
        connection.request("POST" if "api" in path else "GET", path)
        assert connection.getresponse().status == 404, path
        connection.close()


def listening() -> set[tuple[str, int]]:
    """Where the processes of pods listen."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "DNEURO_POD" in process.environ() or "DASK_WORKER_NAME" in process.environ() or (
                "scheduler" in process.cmdline()
            ):
                found |= {(one.laddr.ip, one.laddr.port) for one in process.net_connections("inet")
                          if one.status == psutil.CONN_LISTEN}  # fmt: skip
    return found


UNITS = 40


def test_scheduler__that_is_lost_has_the_driver_started_again_and_the_job_done(
    kubernetes: Path, make_profile: MakeProfile, admin: Api, tmp_path: Path, threads: ThreadExecutor,
    write_job: Callable[..., Path], same_store: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    job = write_job({"moments": None}, images={"source": "digits", "sample": 16 * UNITS}, batch=1)
    one_pool = make_profile({"extract": {"workers": 1, "memory": "2GiB"}})
    folder, _ = submit(read_job(job, [f"store={tmp_path / 'there.zarr'}"]), one_pool)
    until(lambda: len(list(tmp_path.glob("there.zarr.units/extract/fc/*.done"))) >= 3)
    (scheduler,) = [one for one in in_pods(kubernetes, "-scheduler-") if "scheduler" in one.cmdline()]
    scheduler.kill()
    try:
        until(lambda: status(folder).is_over)
        assert status(folder).state == "done"
    except AssertionError:
        raise AssertionError(output(kubernetes, Path(str(folder.path)))) from None
    assert status(folder).found["attempt"] == 2
    first = Path(str(folder.path)) / "attempts" / "001" / "events.jsonl"
    assert "has ended, or was restarted" in json.loads(first.read_text().splitlines()[-1])["message"]
    redone = [json.loads(line) for line in (first.parents[1] / "002" / "events.jsonl").read_text().splitlines()]
    before = next(one for one in redone if (one["kind"], one.get("step")) == ("started", "extract"))
    assert 3 <= before["data"]["units"]["done"] < UNITS, "what was done stays done"
    run_job(read_job(job, [f"store={tmp_path / 'here.zarr'}"]), threads)
    same_store(tmp_path / "there.zarr", tmp_path / "here.zarr")
    until(lambda: no_driver(folder, one_pool))
    assert cancel(folder).ended == []
    until(lambda: names(admin, *LEFT, "Job", "Pod") == [], 60)


@contextlib.contextmanager
def standing_still(kubernetes: Path) -> Iterator[None]:
    """Have the driver wait, and its machines with it."""
    drivers = [process for process in in_pods(kubernetes, "") if "drive" in process.cmdline()]
    assert drivers
    for driver in drivers:
        driver.suspend()
    try:
        yield
    finally:
        for driver in drivers:
            driver.resume()


def in_pods(kubernetes: Path, name: str) -> list[psutil.Process]:
    """Processes of the pods that have this in their names."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            home = Path(process.environ().get("HOME", "/"))
            if home.parent == kubernetes / "pods" and name in home.name:
                found.append(process)
    return found


def test_cluster__that_stands_serves_whoever_has_its_credentials_and_ends(
    kubernetes: Path, make_profile: MakeProfile, admin: Api, tmp_path: Path
) -> None:
    file = tmp_path / "standing.yaml"
    profile = make_profile({"extract": {"workers": 1, "memory": "1GiB"}})
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True)))
    cluster = standing.up(file)
    assert (cluster.state, cluster.workers) == ("running", {"extract": 1})
    assert cluster.address.startswith("tls://127.")
    with standing.connect(file) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    with pytest.raises(BusyError, match="stands already"):
        standing.up(file)
    assert standing.down(file) == []
    until(lambda: names(admin, *LEFT, "Job", "Pod") == [], 60)


HOLD = """
import sys, time
from pathlib import Path
from dneuro.cluster import backend_of
from dneuro.spec import read_profile
with backend_of(read_profile(Path(sys.argv[1]))).open(folder=Path(sys.argv[2]), name="small") as machines:
    Path(sys.argv[3]).write_text(machines.client.scheduler.address)
    time.sleep(600)
"""


def test_driver__killed_starts_again_with_new_machines_and_ends_when_told_to(
    kubernetes: Path, start: Any, admin: Api, tmp_path: Path
) -> None:
    at, own = tmp_path / "at", tmp_path / "state" / "jobs" / f"small-{tmp_path.name[-20:]}"
    backend, ref, folder = start("-c", HOLD, "PROFILE", str(own / "attempts" / "001"), str(at),
                                 pools={"extract": {"workers": 2, "memory": "1GiB"}}, scale_down=True)  # fmt: skip
    until(at.exists)
    first = names(admin, "DaskCluster")
    group = next(one["metadata"]["name"] for one in admin.list("DaskWorkerGroup") if one["spec"]["worker"]["replicas"])
    nothing_is_said_by_http(admin)
    workers = lambda: [one for one in admin.list("Deployment") if "-worker-" in one["metadata"]["name"]]  # noqa: E731
    for count in (3, 1):  # as `kubectl scale` does
        admin.patch("DaskWorkerGroup", group, {"spec": {"worker": {"replicas": count}}})
        until(lambda count=count: len(workers()) == count, 60)
    at.unlink()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("DNEURO_JOB") == ref.id and str(at) in process.cmdline():
                process.send_signal(signal.SIGKILL)
    until(at.exists)
    assert backend.driver_state(ref) == "running"
    second = until(lambda: len(names(admin, "DaskCluster")) == 1 and names(admin, "DaskCluster"))
    assert second != first, output(kubernetes, folder)
    backend.stop_driver(ref, grace=15)
    assert backend.driver_state(ref) == "gone"
    backend.clean_up(folder)
    until(lambda: names(admin, *LEFT, "Job", "Pod") == [], 60)
    recorded = [json.loads(line) for line in (own / "attempts" / "001" / "machines.jsonl").read_text().splitlines()]
    assert [f"DaskCluster/{one['name']}" for one in recorded] == first + second


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the login pod; one that is gone, so that what it makes is cleared away."""
    monkeypatch.setenv("DNEURO_POD", "login")


@pytest.fixture
def opened(in_a_pod: None, monkeypatch: pytest.MonkeyPatch, admin: Api) -> Iterator[None]:
    """Own what is made by an object that is there."""
    made = admin.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": "dneuro"}})
    monkeypatch.setenv("DNEURO_POD_UID", made["metadata"]["uid"])
    yield
    admin.delete("Secret", "login")


def test_workers__that_no_node_takes_are_reported_with_the_reason(
    opened: None, make_profile: MakeProfile, admin: Api
) -> None:
    pools = {"extract": {"memory": "1GiB"}, "memory": {"memory": "1GiB", "node_selector": {"nowhere": "yes"},
                                                       "start_timeout": "60s"}}  # fmt: skip
    with (
        pytest.raises(DneuroError, match=r"pool memory has no worker after .* Unschedulable: 0/1 nodes") as caught,
        backend_of(make_profile(pools, "180s")).open(name="nowhere"),
    ):
        raise AssertionError("there can be no worker")
    assert "node_selector" in str(caught.value.hint)
    until(lambda: [name for name in names(admin, *LEFT) if "login" not in name] == [], 30)


def test_image__that_is_not_there_is_reported_with_the_reason(
    opened: None, make_profile: MakeProfile, admin: Api
) -> None:
    profile = make_profile(start_timeout="60s", image="absent.example/dneuro@sha256:" + "0" * 64)
    with (
        pytest.raises(DneuroError, match=r"scheduler did not come up within .*: .* ImagePullBackOff: Back-off"),
        backend_of(profile).open(name="absent"),
    ):
        raise AssertionError("there can be no worker")


def test_open__outside_of_a_pod_says_where_to_do_it(make_profile: MakeProfile) -> None:
    with pytest.raises(UsageError, match="reached from its pods only") as caught, backend_of(make_profile()).open():
        raise AssertionError("it cannot be reached")
    assert "dneuro submit" in str(caught.value.hint)


def test_rights__of_whoever_submits_do_not_reach_the_keys(make_profile: MakeProfile) -> None:
    backend = backend_of(make_profile())
    assert isinstance(backend, KubernetesBackend)
    with pytest.raises(ApiError, match=r"refuses to list the Secrets.*may not list secrets") as caught:
        backend.api.list("Secret")
    assert caught.value.code == 403


def test_api__that_cannot_be_reached_says_so(
    make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    backend = backend_of(make_profile(context="elsewhere"))
    assert backend.driver_state(DriverRef("kubernetes", "x", {"uid": "1"})) == "unknown"
    with pytest.raises(ApiError, match="cannot be reached"):
        backend.clean_up(tmp_path / "x")
