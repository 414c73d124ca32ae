"""Worker processes on this machine: reachable from nowhere else, and the same as threads; faults/ kills them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import dneuro as dn
from dneuro import events
from dneuro.allocation import coalesces
from dneuro.cluster import WorkerSizes, backend_of, profile_folders
from dneuro.cluster.profiles import shipped
from dneuro.cluster.security import make_credentials
from dneuro.engine.executors import DaskExecutor, ThreadExecutor, get_executor
from dneuro.errors import DneuroError
from dneuro.jobs.driver import run_job
from dneuro.jobs.face import extract
from dneuro.quantities import GiB
from dneuro.spec import JobSpec
from dneuro.spec.profile import PoolSpec, ProfileSpec
from dneuro.spec.sites import SecuritySpec

MakeJob = Callable[..., JobSpec]


def profile(**pool: Any) -> ProfileSpec:
    return ProfileSpec(backend="local", pools={"extract": PoolSpec(**pool)})


def worker_sizes(profile: ProfileSpec) -> WorkerSizes:
    return backend_of(profile).sizes("extract")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with backend_of(profile(workers=2, memory="3GiB")).open() as machines:
        yield machines.client


def test_cluster__has_the_workers_of_the_profile(client: Any) -> None:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert [(w["nthreads"], w["memory_limit"]) for w in workers] == [(1, 3 * GiB)] * 2
    executor = get_executor()
    assert isinstance(executor, DaskExecutor), "the active client is found by itself"
    assert (executor.slots, executor.slots_per_process, executor.memory) == (2, 1, 3 * GiB)


def test_cluster__gives_torch_and_blas_their_share_of_the_cores(client: Any) -> None:
    share = worker_sizes(profile(workers=2)).cpus

    def get(name: str) -> str | None:  # os.environ.get would take this process's environment along
        import os

        return os.environ.get(name)

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert set(client.run(get, name).values()) == {str(share)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told to coalesce")
def test_cluster__has_workers_that_coalesce_what_they_free_and_say_so(client: Any) -> None:
    assert all(client.run(coalesces).values())
    assert get_executor().coalescing
    assert worker_sizes(profile(workers=2)).coalescing, "as a plan without them knows"
    assert not worker_sizes(profile(workers=2, env={"GLIBC_TUNABLES": ""})).coalescing, "the pool has the last word"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told what to keep")
def test_cluster__has_workers_that_keep_large_blocks_from_batch_to_batch(client: Any) -> None:
    assert client.submit(pages_taken_anew, workers=[next(iter(client.scheduler_info()["workers"]))]).result() < 0.1


def pages_taken_anew() -> float:
    """Return what share of a block's pages the system gives again when it was freed and comes again."""
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    size = 80 << 20  # more than a second pool of glibc's keeps in one piece
    bytearray(b"x") * size
    before = faults()
    for _ in range(4):
        bytearray(b"x") * size
    return (faults() - before) / (4 * size / resource.getpagesize())


def test_cluster__listens_on_loopback_only(client: Any) -> None:
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(family) > 2
    assert listening
    assert listening <= {"127.0.0.1", "::1"}
    assert "127.0.0.1" in client.dashboard_link


def test_extract__on_a_cluster_equals_that_on_threads(
    client: Any, make_job: MakeJob, threads: ThreadExecutor, same_store: Callable[[Path, Path], None]
) -> None:
    steps: list[Any] = [{"moments": None}, {"svd": {"rank": 3, "layer": "relu1", "method": "krylov"}},
                        {"top_images": {"per": "neuron", "layer": "relu1", "k": 3}}]  # fmt: skip
    on_cluster = dn.run(make_job(*steps, store="cluster.zarr"), client=client)
    on_threads = run_job(make_job(*steps, store="threads.zarr"), threads)
    same_store(on_cluster.store, on_threads.store)


def test_face__takes_a_client_or_finds_the_active_one(client: Any, tmp_path: Path, threads: ThreadExecutor) -> None:
    known: dict[str, Any] = {"images": {"source": "digits", "sample": 40}, "weights": "none", "images_per_unit": 16}
    found = extract("dneuro:convnet", layers=["fc"], out=tmp_path / "a.zarr", client=client, **known)
    active = extract("dneuro:convnet", layers=["fc"], out=tmp_path / "b.zarr", **known)
    alone = extract("dneuro:convnet", layers=["fc"], out=tmp_path / "c.zarr", client=threads, **known)
    for other in (active, alone):
        np.testing.assert_array_equal(found["fc"].values, other["fc"].values)
    remote, local = dn.svd(found["fc"], rank=2), dn.svd(found["fc"], rank=2, client=threads)
    np.testing.assert_array_equal(remote["singular_value"], local["singular_value"])


def test_workers__started_in_another_folder_find_the_store(
    client: Any, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in client.run(os.getcwd).values()
    job = make_job({"train": {"epochs": 1}}, {"svd": {"rank": 2, "layer": "fc"}})
    result = run_job(job.model_copy(update={"store": "here.zarr"}), client)
    assert (result.outcome.images, result.computed) == (40, 1)
    assert (tmp_path / "here.zarr").is_dir()
    assert len(list(tmp_path.glob("here.zarr.units/extract/fc/*.done"))) == 3


def test_sizes__fill_in_what_the_profile_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.cluster.local.available", lambda: 10 * GiB)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(8)))
    plain = worker_sizes(ProfileSpec(backend="local"))
    # 8 GiB for the workers: four with 2 GiB each, not eight with 1 GiB, of which each needs 1.6.
    assert (plain.workers, plain.threads, plain.cpus, plain.memory) == (4, 1, 2, 2 * GiB)
    assert plain.driver_memory == 2 * GiB
    assert worker_sizes(profile(workers=2, memory="1GiB")).driver_memory == 8 * GiB
    assert worker_sizes(profile(workers=9, memory="2GiB")).driver_memory == 2 * GiB
    few = worker_sizes(profile(workers=2))
    assert (few.workers, few.cpus, few.memory) == (2, 4, 4 * GiB)
    wide = worker_sizes(profile(cpus=4, threads=2, memory="1GiB"))
    assert (wide.workers, wide.cpus, wide.memory, wide.slots, wide.slots_per_process) == (2, 2, GiB, 4, 2)
    more = worker_sizes(profile(workers=20))
    assert (more.workers, more.cpus) == (20, 1)


def test_sizes__of_pools_that_are_the_same_processes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a plan takes them for others, in which no network ran, and leaves out what its libraries take."""
    free = iter(range(10 * GiB, 20 * GiB, GiB))
    monkeypatch.setattr("dneuro.cluster.local.available", lambda: next(free))
    backend = backend_of(ProfileSpec(backend="local"))
    assert backend.sizes("extract") == backend.sizes("memory")


@pytest.mark.parametrize(("memory", "said"), [("4TiB", ["8 TiB together, and this machine has 10 GiB"]), ("5GiB", [])])
def test_sizes__that_this_machine_does_not_have_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, memory: str, said: list[str]
) -> None:
    monkeypatch.setattr("dneuro.cluster.local.installed", lambda: 10 * GiB)
    seen: list[events.Event] = []
    backend = backend_of(profile(workers=2, memory=memory))
    with events.listening(seen.append):
        assert backend.sizes("extract") == backend.sizes("memory")
    assert [event.kind for event in seen] == ["warning"] * len(said)
    assert all(words in event.message for words, event in zip(said, seen, strict=True))


def test_cluster__without_workers_in_time_says_so() -> None:
    hasty = ProfileSpec(backend="local", pools={"extract": PoolSpec(workers=1, memory="1GiB")}, start_timeout=0.001)
    with (
        pytest.raises(DneuroError, match=r"not all workers came up within 0.001 s \(pool extract: 1 workers of 1 GiB"),
        backend_of(hasty).open(),
    ):
        raise AssertionError("there can be no worker yet")


def test_keys__lie_where_the_profile_asks_for_them_and_those_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    left = make_credentials(tmp_path / "job" / "attempts" / "001" / "keys")
    asked = profile(workers=1, memory="1GiB").model_copy(
        update={"security": SecuritySpec(tls="required", folder=str(tmp_path / "own"))}
    )
    with backend_of(asked).open(folder=tmp_path / "job" / "attempts" / "002") as machines:
        assert not left.exists()
        (keys,) = (tmp_path / "own").iterdir()
        assert keys.name.startswith("002-")
        assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
        assert list((tmp_path / "job").rglob("*.key")) == []
        assert machines.client.submit(sum, [1, 2]).result() == 3
    assert list((tmp_path / "own").iterdir()) == []


def test_profiles__are_looked_for_here_then_among_those_shipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert profile_folders()[0] == Path("cluster")
    monkeypatch.setenv("DNEURO_PROFILE_DIR", str(tmp_path))
    assert profile_folders()[:2] == [tmp_path, Path("cluster")]
    assert any((folder / "local.yaml").is_file() for folder in profile_folders())
    assert any((folder / "demo.yaml").is_file() for folder in shipped("jobs"))


def test_shipped__are_found_wherever_they_were_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package, share = tmp_path / "lib" / "python3" / "site-packages", tmp_path / "share" / "dneuro"
    for kind in ("cluster", "jobs"):
        (share / kind).mkdir(parents=True)
        (share / kind / "own.yaml").write_text("")
    record = "".join(f"{path},,\n" for path in ("dneuro/jobs/face.py", "../../../share/dneuro/cluster/own.yaml",
                                                "../../../share/dneuro/jobs/own.yaml"))  # fmt: skip
    for name, text in (("METADATA", "Metadata-Version: 2.1\nName: dneuro\nVersion: 0\n"), ("RECORD", record)):
        file = package / "dneuro-0.dist-info" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(package))
    assert shipped("cluster")[:2] == [Path("cluster"), share / "cluster"], "not only below sys.prefix: pip --user"
    assert shipped("jobs")[:2] == [Path("jobs"), share / "jobs"]
    assert len(set(shipped("jobs"))) == len(shipped("jobs")), "each is named once where none has it"
