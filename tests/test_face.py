"""The names that users type: ``import dneuro as dn``."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dneuro as dn
from dneuro.cluster.local import LocalBackend
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, FingerprintError, NetworkError, SpecError, UsageError
from dneuro.jobs import face
from dneuro.jobs.face import extract
from dneuro.jobs.lease import Lease
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

KNOWN: dict[str, Any] = {"images": {"source": "digits", "sample": 40}, "weights": "none", "images_per_unit": 16}


def test_names__are_these() -> None:
    assert dn.__all__ == sorted(dn.__all__)
    assert set(dn.__all__) == {
        "DneuroError", "Job", "Store", "class_selectivity", "clusters", "connect", "connections", "cooccurrence",
        "coupled_nmf", "export", "extract", "facets", "gini", "ica", "jobs", "kmeans", "listening", "mean_similarity",
        "moments", "nmf", "on_device", "open", "open_cluster", "patch_components", "plan", "random_projections",
        "regression", "report", "run", "select", "selectivity", "similar_places", "similarity", "single_neurons",
        "spectral_flatness", "submit", "svd", "top_images", "top_patches", "verify", "weights_between",
    }  # fmt: skip
    assert set(dir(dn)) >= set(dn.__all__)
    assert all(getattr(dn, name) is not None for name in dn.__all__)
    with pytest.raises(AttributeError, match="module 'dneuro' has no attribute 'nope'"):
        _ = dn.nope


def python(program: str, *args: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import__waits_for_nothing_heavy() -> None:
    program = """
        import sys
        import dneuro as dn
        print(sorted({"numpy", "torch", "xarray", "zarr", "dask", "matplotlib"} & set(sys.modules)))
        import numpy as np, xarray as xr
        x = xr.DataArray(np.eye(4, dtype="f4"), dims=("image", "channel"))
        dn.svd(x, rank=2), dn.moments(x), dn.top_images(x, k=2), dn.similarity(x)
        print(sorted({"torch", "torchvision", "matplotlib", "distributed"} & set(sys.modules)))
    """
    assert python(program).split("\n")[:2] == ["[]", "[]"], "linear algebra needs no torch"


def test_names__mean_the_same_whatever_was_imported_before() -> None:
    """The packages dneuro.extract and dneuro.report have the names of two of the functions."""
    program = """
        import types
        import dneuro as dn
        import dneuro.extract.run, dneuro.jobs.face, dneuro.report.write
        from dneuro.extract.task import extract_unit
        assert all(not isinstance(getattr(dn, name), types.ModuleType) for name in dn.__all__)
        print(dn.extract.__module__, dn.report.__module__)
    """
    assert python(program) == "dneuro.jobs.face dneuro.jobs.reporting\n"


def test_extract__gives_labelled_arrays_that_analyses_take(tmp_path: Path, threads: ThreadExecutor) -> None:
    acts = extract("dneuro:convnet", layers=["relu1", "fc"], out=tmp_path / "acts.zarr", client=threads, **KNOWN)
    assert isinstance(acts, dn.Store)
    assert list(acts) == ["relu1", "fc"]
    array = acts["relu1"]
    planned = dn.plan("svd", array, rank=3)
    assert (planned.passes, planned.method) == (3, "tsqr on the side of the images"), "40 images of 1,440 neurons"
    found = dn.svd(array, rank=3, client=threads)
    z = array.values.reshape(40, -1).astype(np.float64)
    z = (z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True)
    np.testing.assert_allclose(found["singular_value"], np.linalg.svd(z, compute_uv=False)[:3], rtol=1e-6)
    again = dn.open(tmp_path / "acts.zarr")
    np.testing.assert_array_equal(again["relu1"], array)


def test_extract__again_just_opens(tmp_path: Path, threads: ThreadExecutor) -> None:
    for _ in range(2):
        extract("dneuro:convnet", layers=["fc"], out=tmp_path / "acts.zarr", client=threads, **KNOWN)
    folder = units_folder(tmp_path / "acts.zarr") / "extract" / "fc"
    assert {json.loads(path.read_bytes())["attempt"] for path in folder.glob("*.done")} == {1}


@pytest.mark.parametrize(
    ("layers", "dims"),
    [("relu1", 4), (["relu1"], 4), ({"relu1": "max"}, 2), ({"relu1": {"keep": "mean"}}, 2), ({"relu1": {}}, 4)],
)
def test_extract__takes_layers_in_any_form(tmp_path: Path, threads: ThreadExecutor, layers: Any, dims: int) -> None:
    acts = extract("dneuro:convnet", layers=layers, out=str(tmp_path / "a.zarr"), client=threads, **KNOWN)
    assert acts["relu1"].ndim == dims


def test_extract__takes_images_and_networks_in_any_form(
    tmp_path: Path, threads: ThreadExecutor, make_photos: Callable[..., dict[str, Any]]
) -> None:
    pictures = np.zeros((20, 28, 28), np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pictures)
    photos = make_photos(20)
    forms: list[tuple[Any, Any]] = [
        (tmp_path / "pictures.npz", "dneuro:convnet"),
        (photos["images"]["root"], photos["network"]),
        (photos["images"], photos["network"]),
    ]
    for number, (images, network) in enumerate(forms):
        settings: dict[str, Any] = {} if isinstance(network, dict) else {"weights": "none"}
        out = tmp_path / f"{number} – ünïcode store.zarr"
        acts = extract(network, images=images, layers=["fc"], out=out, client=threads, **settings)
        assert acts["fc"].sizes["image"] == 20


def test_extract__takes_the_settings_of_its_step(tmp_path: Path, threads: ThreadExecutor) -> None:
    acts = extract(
        "dneuro:convnet", layers=["fc"], out=tmp_path / "a.zarr", client=threads, dtype="float16", top_k=3,
        predictions=False, **KNOWN,
    )  # fmt: skip
    assert acts["fc"].dtype == np.float16
    assert acts.statistics("fc").sizes["rank"] == 3
    assert "prediction" not in acts.images


def test_extract__refuses_what_a_job_file_would(tmp_path: Path, threads: ThreadExecutor) -> None:
    known = {**KNOWN, "client": threads}
    with pytest.raises(NetworkError, match="has no layer 'relu9'"):
        extract("dneuro:convnet", layers=["relu9"], out=tmp_path / "a.zarr", **known)
    with pytest.raises(SpecError, match="unknown key 'batchsize'"):
        extract("dneuro:convnet", layers=["fc"], out=tmp_path / "a.zarr", batchsize=3, **known)
    assert list(tmp_path.iterdir()) == []
    extract("dneuro:convnet", layers=["fc"], out=tmp_path / "a.zarr", **known)
    with pytest.raises(FingerprintError):
        extract("dneuro:convnet", layers=["fc"], out=tmp_path / "a.zarr", dtype="float16", **known)


def test_run__takes_a_file_or_a_job_and_settings(
    write_job: Callable[..., Path], make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    path = write_job({"svd": {"rank": 2, "layer": "fc"}})
    for job in (path, str(path)):
        result = dn.run(job, client=threads, overrides=["steps.svd.rank=3"])
        assert dn.open(result.store).results["svd"]["fc"].sizes["component"] == 3
    assert result.outcome.done_before == 3
    assert dn.run(make_job(store="b.zarr"), client=threads).outcome.images == 40


def test_run__takes_a_cluster_or_a_client(write_job: Callable[..., Path], threads: ThreadExecutor) -> None:
    with pytest.raises(UsageError, match="a cluster or a client, not both"):
        dn.run(write_job(), cluster="local", client=threads)
    with pytest.raises(UsageError, match="nowhere"):
        dn.run(write_job(), cluster="nowhere")


def test_run__on_a_profile_starts_workers_and_keeps_a_log(
    write_job: Callable[..., Path], tmp_path: Path, threads_as_machines: ThreadExecutor
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"backend: local\nstate: {tmp_path}/state\npools: {{extract: {{memory: 3GiB}}}}\n")
    result = dn.run(write_job(), cluster=profile)
    assert result.outcome.images == 40
    assert list((tmp_path / "state" / "jobs").glob("small-*/attempts/001/events.jsonl"))
    with face.open_cluster(profile) as client:
        assert client is threads_as_machines


def test_listening__hears_what_runs(make_job: Callable[..., JobSpec], threads: ThreadExecutor) -> None:
    seen: list[Any] = []
    with dn.listening(seen.append):
        dn.run(make_job({"moments": None}), client=threads)
    steps = {event.step for event in seen}
    assert {"extract", "moments"} <= steps
    assert all(event.kind != "warning" for event in seen)
    before = len(seen)
    dn.run(make_job(), client=threads)
    assert len(seen) == before


def test_run__refuses_a_store_at_which_another_run_is_at_work_before_it_starts_workers(
    make_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    lease = Lease.acquire(units_folder(job.store) / "attempts")
    monkeypatch.setattr(LocalBackend, "open", lambda self, **settings: pytest.fail("workers were started"))
    try:
        with pytest.raises(BusyError, match="is at work on this store"):
            dn.run(job, cluster="local")
    finally:
        lease.release()
