"""A store in an object store: a job against a real S3 server on loopback, equal to the same job on a disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dneuro as dn
from dneuro.cluster import backend_of
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, NotAStoreError, PartialError, StoreError
from dneuro.extract import task
from dneuro.jobs.driver import run_job
from dneuro.jobs.lease import Lease
from dneuro.spec import JobSpec, PoolSpec, ProfileSpec, parse_job
from dneuro.store import remote
from dneuro.store.files import claim, locate, sizes
from dneuro.store.remote import RemotePath
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
TRAIN = {"train": {"epochs": 1}}
STEPS: tuple[Any, ...] = (TRAIN, "moments", {"svd": {"layer": "relu1", "rank": 2}})
REPORT = {"report": {"neurons": 1}}
URL = "s3://dneuro-test/runs/acts.zarr"


def at(job: JobSpec, store: str) -> JobSpec:
    return job.model_copy(update={"store": store})


def contents(store: str | Path | RemotePath) -> dict[str, bytes]:
    place = locate(store)
    return {name: (place / name).read_bytes() for name in sizes(place)}


@pytest.fixture
def job(make_job: MakeJob) -> JobSpec:
    torch.set_num_threads(1)  # extraction does so, and weights trained before it would have other last bits
    return make_job(*STEPS, images={"source": "digits", "sample": 40})


@pytest.fixture
def reported(make_job: MakeJob) -> JobSpec:
    torch.set_num_threads(1)
    return make_job(*STEPS, REPORT, images={"source": "digits", "sample": 40})


def test_s3__a_killed_and_resumed_job_equals_one_on_disk(
    bucket: Any, reported: JobSpec, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = reported
    there = run_job(job, threads).store

    finished = task.RowWriter.finish
    calls: list[int] = []

    def dying(writer: Any) -> int:
        calls.append(1)
        if len(calls) > 8:
            raise RuntimeError("killed")
        return finished(writer)

    with monkeypatch.context() as patched, pytest.raises(PartialError):
        patched.setattr(task.RowWriter, "finish", dying)
        run_job(at(job, URL), threads)
    assert [name for name in sizes(units_folder(URL)) if name.startswith("extract/") and name.endswith(".done")]
    resumed = run_job(at(job, URL), threads)
    assert str(resumed.store) == URL
    assert 0 < resumed.outcome.images <= 40
    ours, local = contents(URL), contents(there)
    assert ours.keys() == local.keys()
    assert [name for name in ours if ours[name] != local[name]] == []
    assert str(resumed.report) == f"{URL}.report/index.html"
    assert bucket.exists("dneuro-test/runs/acts.zarr.report/index.html")
    again = run_job(at(job, URL), threads)
    assert (again.outcome.images, again.computed) == (0, 0)


def test_s3__worker_processes_write_what_threads_write_on_a_disk(
    bucket: Any, make_job: MakeJob, threads: ThreadExecutor
) -> None:
    job = make_job(*STEPS[1:], images={"source": "digits", "sample": 40})
    there = run_job(job, threads).store
    profile = ProfileSpec(backend="local", pools={"extract": PoolSpec(workers=2, memory="3GiB")})
    with backend_of(profile).open() as machines:
        found = run_job(at(job, URL), machines)
    assert str(found.store) == URL
    ours, local = contents(URL), contents(there)
    assert ours.keys() == local.keys()
    assert [name for name in ours if ours[name] != local[name]] == []


def test_s3__is_opened_asked_and_verified(bucket: Any, job: JobSpec, threads: ThreadExecutor) -> None:
    run_job(at(job, URL), threads)
    acts, local = dn.open(URL), dn.open(run_job(job, threads).store)
    np.testing.assert_array_equal(acts["relu1"].values, local["relu1"].values)
    assert acts["relu1"].coords["filename"].values.tolist() == local["relu1"].coords["filename"].values.tolist()
    one, other = (dn.svd(store["relu1"], rank=2, client=threads) for store in (acts, local))
    np.testing.assert_array_equal(one["singular_value"].values, other["singular_value"].values)
    assert acts.results.keys() == local.results.keys()
    assert repr(acts).startswith(f"<dneuro store {URL}: 40 images>")
    assert dn.verify(URL, client=threads).ok

    key = next(name for name in sizes(locate(URL)) if name.startswith("layers/relu1/activation/c/1/"))
    content = bytearray((locate(URL) / key).read_bytes())
    content[len(content) // 2] ^= 1
    bucket.pipe_file(f"{URL}/{key}", bytes(content))
    (finding,) = dn.verify(URL, repair=True, client=threads).damaged
    assert (finding.where, finding.unit) == ("layers/relu1/activation", 1)
    assert run_job(at(job, URL), threads).outcome.images == 16
    assert dn.verify(URL, client=threads).ok


def test_s3__report_is_written_here_if_asked(
    bucket: Any, job: JobSpec, threads: ThreadExecutor, tmp_path: Path
) -> None:
    run_job(at(job, URL), threads)
    assert dn.report(URL, out=tmp_path / "pages", neurons=1) == tmp_path / "pages/index.html"
    assert len(list((tmp_path / "pages").rglob("*.html"))) > 1


def test_s3__of_two_runs_one_is_refused(bucket: Any, job: JobSpec, threads: ThreadExecutor) -> None:
    lease = Lease.acquire(units_folder(URL) / "attempts")
    with pytest.raises(BusyError, match=r"is at work on this store \(run 1\)"):
        run_job(at(job, URL), threads)
    lease.release()
    folder = locate("s3://dneuro-test/claims") / "001"
    assert [claim(folder), claim(folder)] == [True, False]


def test_s3__a_store_that_was_half_created_is_created_again(
    bucket: Any, job: JobSpec, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RemotePath.write_bytes

    def failing(path: RemotePath, content: bytes) -> None:
        if str(path) == f"{URL}/zarr.json":
            raise OSError("the network is gone")
        write(path, content)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="the network is gone"):
        patched.setattr(RemotePath, "write_bytes", failing)
        run_job(at(job, URL), threads)
    assert bucket.exists(f"{URL}/status/zarr.json")
    assert run_job(at(job, URL), threads).outcome.images == 40


def test_s3__leaves_alone_what_is_no_store(bucket: Any, job: JobSpec, threads: ThreadExecutor) -> None:
    bucket.pipe_file(f"{URL}/precious.txt", b"mine")
    with pytest.raises(NotAStoreError, match="is left as it is"):
        run_job(at(job, URL), threads)
    assert bucket.cat_file(f"{URL}/precious.txt") == b"mine"


def test_s3__says_which_bucket_is_missing(bucket: Any, job: JobSpec, threads: ThreadExecutor) -> None:
    for use in (lambda url: run_job(at(job, url), threads), dn.open, dn.verify):
        with pytest.raises(StoreError, match="there is no bucket 'other-bucket'") as caught:
            use("s3://other-bucket/acts.zarr")
        assert "aws s3 mb s3://other-bucket" in str(caught.value.hint)
    with pytest.raises(StoreError, match=r"there is no store at s3://dneuro-test/none\.zarr"):
        dn.open("s3://dneuro-test/none.zarr")


def test_s3__says_that_the_key_is_wrong(
    bucket: Any, job: JobSpec, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # from now on the server asks who it is
    for use in (lambda: run_job(at(job, URL), threads), lambda: dn.open(URL), lambda: dn.verify(URL, repair=True)):
        with pytest.raises(StoreError, match="may not be used with the credentials at hand") as caught:
            use()
        assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint)


def test_s3__says_that_there_is_no_key(
    bucket: Any, forget_connections: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    forget_connections()
    for use in (dn.open, dn.verify):
        with pytest.raises(StoreError, match="may not be used with the credentials at hand"):
            use(URL)


def test_s3__names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def absent(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    remote._system.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(StoreError, match="needs the package s3fs") as caught:
        dn.open(URL)
    assert caught.value.hint == "pip install '.[s3]' in the sources of dneuro"


def test_s3__a_job_file_may_say_so() -> None:
    job = {
        "name": "far", "images": {"source": "digits"}, "network": {"name": "dneuro:convnet", "weights": "none"},
        "store": URL, "steps": [{"extract": {"layers": ["fc"]}}],
    }  # fmt: skip
    assert parse_job(json.dumps(job)).store == URL
    with pytest.raises(StoreError, match="holds a password"):
        locate("s3://me:secret@bucket/acts.zarr")
