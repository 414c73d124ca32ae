"""The same job again, a job that has grown, a job that has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, FingerprintError, StoreError
from dneuro.jobs import driver
from dneuro.jobs.driver import run_job
from dneuro.jobs.lease import Lease
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
Same = Callable[[Path, Path], None]
STEPS: list[Any] = [{"moments": None}, {"svd": {"rank": 2, "layer": "fc"}}, {"cooccurrence": {"k": 5}},
                    {"similarity": {"of": "cooccurrence"}}]  # fmt: skip


def files(folder: Path, *parts: str) -> dict[Path, tuple[int, bytes]]:
    """Time and content of every file below."""
    paths = [path for part in parts or ("",) for path in (folder / part).rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def markers(job: JobSpec, *parts: str) -> dict[Path, tuple[int, bytes]]:
    return files(units_folder(job.store), *parts)


def test_same_job__again_does_nothing(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job(*STEPS)
    first = run_job(job, threads)
    assert (first.outcome.done_before, first.outcome.images, first.computed, first.kept) == (0, 40, 7, 0)
    before = files(Path(job.store)), markers(job, "extract", "results")
    again = run_job(job, threads)
    assert (again.outcome.done_before, again.outcome.images, again.computed, again.kept) == (3, 0, 0, 7)
    assert (files(Path(job.store)), markers(job, "extract", "results")) == before


def test_new_layer__only_adds_work(
    make_job: MakeJob, threads: ThreadExecutor, same_store: Same
) -> None:
    layers = ["relu1", "fc"]
    job = make_job({"moments": None}, layers=layers[:1])
    run_job(job, threads)
    chunks = files(Path(job.store), "layers/relu1/activation", "status", "prediction", "pictures", "results")
    done = markers(job, "extract/relu1", "extract/images", "results")
    assert plan_job(make_job({"moments": None}, layers=layers), threads).done == 0, "each unit lacks a part"

    grown = run_job(make_job({"moments": None}, layers=layers), threads)
    assert (grown.outcome.done_before, grown.outcome.images) == (0, 40)
    assert (grown.computed, grown.kept) == (1, 1)
    now = files(Path(job.store)) | markers(job)
    assert {path: now[path] for path in chunks} == chunks
    assert {path: now[path] for path in done} == done
    at_once = run_job(make_job({"moments": None}, layers=layers, store="at-once.zarr"), threads)
    for layer in layers:
        a, b = dn.open(grown.store), dn.open(at_once.store)
        assert a[layer].values.tobytes() == b[layer].values.tobytes()
        assert a.statistics(layer).identical(b.statistics(layer))
    assert dn.open(grown.store).layers == layers


def test_layer_left_out__stays_in_the_store(make_job: MakeJob, threads: ThreadExecutor) -> None:
    run_job(make_job(layers=["relu1", "fc"]), threads)
    result = run_job(make_job(layers=["fc"]), threads)
    assert result.outcome.images == 0
    assert list(dn.open(result.store)) == ["relu1", "fc"]


def test_changed_step__recomputes_only_itself(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job(*STEPS)
    run_job(job, threads)
    before = files(Path(job.store))
    steps = [{"moments": None}, {"svd": {"rank": 3, "layer": "fc"}}, *STEPS[2:]]
    result = run_job(make_job(*steps), threads)
    assert (result.outcome.images, result.computed, result.kept) == (0, 1, 6)
    assert dn.open(result.store).results["svd"]["fc"].sizes["component"] == 3
    after = files(Path(job.store))
    svd = Path(job.store) / "results" / "svd"
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed
    assert all(svd in path.parents for path in changed)


def test_changed_step__takes_what_is_made_of_it_along(make_job: MakeJob, threads: ThreadExecutor) -> None:
    run_job(make_job(*STEPS), threads)
    steps = [*STEPS[:2], {"cooccurrence": {"k": 3}}, STEPS[3]]
    result = run_job(make_job(*steps), threads)
    assert result.outcome.images == 0
    assert (result.computed, result.kept) == (4, 3), "the counts of two layers, and their similarities"


def test_renamed_step__is_a_new_result(make_job: MakeJob, threads: ThreadExecutor) -> None:
    run_job(make_job({"moments": None}), threads)
    result = run_job(make_job({"moments": {"name": "again"}}), threads)
    assert result.computed == 2
    assert set(dn.open(result.store).results) == {"moments", "again"}


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "keep": ({"layers": {"relu1": {"keep": "max"}, "fc": {}}}, "layer relu1: full float32 → max float32"),
    "dtype": ({"dtype": "float16"}, "layer fc: full float32 → full float16"),
    "weights": ({"network": {"name": "dneuro:convnet", "weights": "none", "seed": 5}}, r"weights: \w+… → \w+…"),
    "preprocessing": (
        {"network": {"name": "dneuro:convnet", "weights": "none",
                     "preprocessing": {"resize": [28, 28], "color": "grey", "std": 0.5}}},
        "preprocessing: .*0.5",
    ),
    "images": ({"images": {"source": "digits", "sample": 39}}, r"images: 40 → 39, the first other one is \d+: \S+ →"),
    "codec": ({"codec": "none"}, "layer relu1: codec zstd-fast → none"),
    "unit": ({"images_per_unit": 8}, "images_per_unit: 16 → 8"),
    "predictions": ({"predictions": False}, "predictions: True → False"),
    "thumbnails": ({"thumbnails": False}, "thumbnails: True → False"),
    "network": (
        {"network": {"name": "torchvision:squeezenet1_1", "weights": "none"}, "layers": ["features.0"], "batch": 1},
        "network: dneuro:convnet → torchvision:squeezenet1_1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_changed_extraction__is_refused_and_says_what_changed(
    make_job: MakeJob, threads: ThreadExecutor, what: str
) -> None:
    job = make_job()
    run_job(job, threads)
    before = files(Path(job.store).parent)
    settings, message = CHANGES[what]
    for attempt in (plan_job, run_job):
        with pytest.raises(FingerprintError, match=message) as caught:
            attempt(make_job(**settings), threads)
        assert caught.value.exit_code == 64
        assert "another store:" in str(caught.value.hint)
    assert files(Path(job.store).parent) == before


@pytest.mark.parametrize("settings", [{"batch": 3}, {"top_k": 7}, {"statistics": ["moments"]}, {"name": "other"}])
def test_changes__that_leave_the_arrays_alone_are_no_changes(
    make_job: MakeJob, threads: ThreadExecutor, settings: dict[str, Any]
) -> None:
    run_job(make_job(), threads)
    assert run_job(make_job(**settings), threads).outcome.done_before == 3


def test_deleted_store__is_made_anew_though_its_markers_are_left(
    make_job: MakeJob, threads: ThreadExecutor, same_store: Same
) -> None:
    job = make_job(*STEPS, {"report": None})
    first = run_job(job, threads)
    (Path(job.store)).rename(first.store.with_name("first.zarr"))
    planned = plan_job(job, threads)
    assert planned.done == 0
    again = run_job(job, threads)
    assert (again.outcome.done_before, again.outcome.images, again.computed) == (0, 40, 7)
    same_store(again.store, first.store.with_name("first.zarr"))
    assert again.report is not None
    assert again.report.is_file()


def test_deleted_markers__are_made_anew(make_job: MakeJob, threads: ThreadExecutor, same_store: Same) -> None:
    job = make_job(*STEPS)
    shutil.copytree(run_job(job, threads).store, Path(job.store).with_name("first.zarr"))
    shutil.rmtree(units_folder(job.store))
    again = run_job(job, threads)
    assert (again.outcome.done_before, again.computed) == (0, 7)
    same_store(again.store, Path(job.store).with_name("first.zarr"))


def test_store__of_something_else_is_left_alone(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job()
    Path(job.store).mkdir()
    (Path(job.store) / "thesis.tex").write_text("mine")
    for attempt in (plan_job, run_job):
        with pytest.raises(StoreError, match="is not a store made by dneuro; it is left as it is"):
            attempt(job, threads)
    assert sorted(path.name for path in Path(job.store).parent.rglob("*")) == ["acts.zarr", "thesis.tex"]


def test_second_driver__is_refused_while_the_first_one_works(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, refused = make_job(), []
    honest = driver.extract

    def extract(*args: Any, **settings: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(driver, "extract", honest)
            with pytest.raises(BusyError, match="is at work on this store") as caught:
                run_job(job, threads)
            refused.append(caught.value)
        return honest(*args, **settings)

    monkeypatch.setattr(driver, "extract", extract)
    result = run_job(job, threads)
    assert result.outcome.images == 40
    assert [error.exit_code for error in refused] == [4]


def test_lease__is_given_back_whatever_happens(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    for error in (ValueError("bug"), KeyboardInterrupt()):
        with monkeypatch.context() as patched:

            def fail(*_: Any, error: BaseException = error, **settings: Any) -> Any:
                raise error

            patched.setattr(driver, "extract", fail)
            with pytest.raises((ValueError, dn.DneuroError)):
                run_job(job, threads)
    folder = units_folder(job.store) / "attempts"
    leases = [json.loads((path / "lease.json").read_bytes()) for path in sorted(folder.iterdir())]
    assert len(leases) == 2
    assert all(lease["ended"] for lease in leases)
    Lease.acquire(folder).release()
