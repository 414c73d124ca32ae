"""What tests of several folders need: small jobs, small pictures, threads that end with the test, an object store, what
pods may do."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from dneuro.cluster.local import LocalBackend
from dneuro.engine.executors import ThreadExecutor
from dneuro.spec import JobSpec, parse_job

CONVNET = {"name": "dneuro:convnet", "weights": "none"}


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection of garbage: each run of a job ends with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that keeps what was measured, for the table of docs/reliability.md."""

    def keep(**found: Any) -> None:
        for name, value in found.items():
            record_property(name, value)

    return keep


@pytest.fixture
def threads() -> Iterator[ThreadExecutor]:
    """Two threads; no task outlives the test."""
    executor = ThreadExecutor(2)
    yield executor
    executor._pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def threads_as_machines(monkeypatch: pytest.MonkeyPatch, threads: ThreadExecutor) -> ThreadExecutor:
    """What `LocalBackend.open` gives are threads of this process; test_cluster_local.py has real workers."""

    class Machines:
        client: Any = threads

        def executor(self, pool: str) -> ThreadExecutor:
            return threads

    @contextlib.contextmanager
    def open_threads(self: LocalBackend, **settings: Any) -> Iterator[Machines]:
        yield Machines()

    threads.run = lambda call: {"worker": call()}  # type: ignore[attr-defined]
    monkeypatch.setattr(LocalBackend, "open", open_threads)
    return threads


def job_dict(store: Path, *steps: Any, **settings: Any) -> dict[str, Any]:
    """A job over 40 digits in 3 units; `settings` are the job's, and those of its extract step."""
    own = {key: settings.pop(key) for key in ("name", "images", "network") if key in settings}
    extract = {"layers": ["relu1", "fc"], "images_per_unit": 16, "top_k": 5, **settings}
    before = [step for step in steps if isinstance(step, dict) and "train" in step]
    after = [step for step in steps if step not in before]
    return {
        "name": "small",
        "images": {"source": "digits", "sample": 40},
        "network": CONVNET,
        **own,
        "store": str(store),
        "steps": [*before, {"extract": extract}, *after],
    }


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., JobSpec]:
    """Return ``make_job(*steps, store="acts.zarr", **settings)``; see `job_dict`."""

    def make(*steps: Any, store: str = "acts.zarr", **settings: Any) -> JobSpec:
        return parse_job(json.dumps(job_dict(tmp_path / store, *steps, **settings)))

    return make


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Return ``write_job(*steps, **settings)``, which writes a job file; see `job_dict`."""

    def write(*steps: Any, store: str = "acts.zarr", **settings: Any) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps(job_dict(tmp_path / store, *steps, **settings)))
        return path

    return write


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return ``make_photos(count, broken=[…])``: the images and network parts of a job over grey files."""

    def make(count: int = 24, broken: Any = (), side: int = 28, root: str = "photos") -> dict[str, Any]:
        rng = np.random.default_rng(count)
        for number in range(count):
            path = tmp_path / root / ("cat" if number < count // 2 else "dog") / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(path)
            if number in broken:
                path.write_bytes(b"no picture")
        network = {**CONVNET, "classes": 2, "preprocessing": {"color": "grey"}}
        return {"images": {"source": "folder", "root": str(tmp_path / root)}, "network": network}

    return make


def contents(store: Path) -> dict[str, str]:
    """Checksum of every file of a store."""
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(store))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def same_store() -> Callable[[Path, Path], None]:
    """Return a function that asserts that two stores hold the same, file by file."""

    def compare(one: Path, other: Path) -> None:
        a, b = contents(one), contents(other)
        assert a.keys() == b.keys()
        assert [name for name in a if a[name] != b[name]] == []

    return compare


class Counted:
    """An array that counts how often each part of it is read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.reads: Counter[tuple[tuple[int, int], ...]] = Counter()
        self._lock = threading.Lock()

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        place = tuple(some.indices(length)[:2] for some, length in zip(where, self.shape, strict=True))
        if all(start < stop for start, stop in place):  # dask asks for nothing, to see the type
            with self._lock:
                self.reads[place] += 1
        return self.values[where]


@pytest.fixture
def counted() -> Any:
    """Return a function that makes a DataArray of values, and the `Counter` of the reads of its chunks."""

    def make(values: np.ndarray, chunks: Any, dims: tuple[str, ...] = ("image", "channel", "y", "x")) -> Any:
        array = Counted(values)
        lazy = da.from_array(array, chunks=chunks, name=False, fancy=False)
        return xr.DataArray(lazy, dims=dims[: values.ndim]), array.reads

    return make


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 server on loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def forget_connections() -> Iterator[Callable[[], None]]:
    """Return a function that closes all connections to object stores: the next are made with the environment then."""
    import fsspec.asyn
    import zarr.core.sync

    from dneuro.store import remote

    s3fs = pytest.importorskip("s3fs")

    def forget() -> None:
        remote._system.cache_clear()
        for files in list(s3fs.S3FileSystem._cache.values()):
            if files._s3 is not None:
                closing = files._s3.close()
                if files.asynchronous:
                    zarr.core.sync.sync(closing)
                else:
                    fsspec.asyn.sync(fsspec.asyn.get_loop(), lambda closing=closing: closing)
        s3fs.S3FileSystem.clear_instance_cache()

    forget()
    yield forget
    forget()


@pytest.fixture
def bucket(s3_server: str, forget_connections: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket, and the usual environment that says where it is and who asks."""
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")).close()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.mkdir("dneuro-test")
    return files


def _restricted(pod: dict[str, Any]) -> list[str]:
    own = pod.get("securityContext", {})
    wrong = [f"pod: {key}" for key in ("hostNetwork", "hostPID", "hostIPC", "ephemeralContainers") if pod.get(key)]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context, name = container.get("securityContext", {}), container["name"]
        seccomp = context.get("seccompProfile", own.get("seccompProfile", {})).get("type")
        foreign = {"procMount", "seLinuxOptions", "appArmorProfile", "windowsOptions", "sysctls"}
        checks = {
            "may gain privileges": context.get("allowPrivilegeEscalation") is not False,
            "is privileged": bool(context.get("privileged")),
            "keeps capabilities": context.get("capabilities") != {"drop": ["ALL"]},
            "may be root": not context.get("runAsNonRoot", own.get("runAsNonRoot")),
            "is root": context.get("runAsUser", own.get("runAsUser")) in (None, 0),
            "has no seccomp profile": seccomp != "RuntimeDefault",
            "changes what the node does": bool(foreign & (set(context) | set(own))),
            "has a port of the node": any("hostPort" in port for port in container.get("ports", [])),
            # Beyond the level:
            "can write to its image": context.get("readOnlyRootFilesystem") is not True,
            "has no limits": set(container["resources"]["limits"]) < {"cpu", "memory"},
            "has no /tmp": "/tmp" not in [mount["mountPath"] for mount in container["volumeMounts"]],
            "has no home": {"name": "HOME", "value": "/tmp"} not in container["env"],
        }
        wrong += [f"{name} {what}" for what, is_so in checks.items() if is_so]
    kinds = {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
    wrong += [f"volume {volume['name']}" for volume in pod["volumes"] if not set(volume) - {"name"} <= kinds]
    if pod.get("automountServiceAccountToken") is not False and not pod.get("serviceAccountName"):
        wrong.append("pod: has a token it does not need")
    return wrong


@pytest.fixture(scope="session")
def violations() -> Callable[[dict[str, Any]], list[str]]:
    """Return what in a PodSpec the ``restricted`` level of pod security, and we, do not allow."""
    return _restricted
