"""A forecast is scaled from what a trial measured, and leaves nothing behind."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.cluster import backend_of
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DiskFullError, UsageError
from dneuro.extract import run, task
from dneuro.jobs import calibration, trials
from dneuro.jobs.calibration import Forecast, forecast
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import JobPlan, plan_job
from dneuro.jobs.trials import bytes_below
from dneuro.kernels import Moments, TopK
from dneuro.kernels.feeds import Feed
from dneuro.spec import JobSpec
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.steps import AnalysisStep, SelectSpec
from dneuro.store import results
from dneuro.store.files import locate
from dneuro.store.units import Unit, units_folder
from dneuro.tables import show_forecast


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_job_that_is_tried_on_half_of_its_images(
    make_job: Callable[..., JobSpec], tmp_path: Path, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job({"svd": {"rank": 2, "layer": "fc"}}, {"train": {"epochs": 1}}, "report", batch=2)
    plan = plan_job(job, threads)
    heard: list[events.Event] = []
    drawn: list[bool] = []

    def run(small: JobPlan, *args: Any, **settings: Any) -> Any:
        assert tmp_path in Path(small.study.job.store).parents, "on the disk of the store"
        drawn.append(any(step.id == "report" for step in small.study.job.steps))
        return run_job(small, *args, **settings)

    monkeypatch.setattr(trials, "run_job", run)
    with events.listening(heard.append):
        found = forecast(plan, ProfileSpec(backend="local"), images=20)
    assert drawn == [False, False, True], "it takes as long for few images as for many"
    assert found.tried == 20
    assert list(found.seconds) == ["train", "extract", "svd", "report"], "in the order of the job"
    assert found.seconds["extract"] == pytest.approx(40 / found.rate)
    assert found.total == pytest.approx(sum(found.seconds.values()))
    assert found.worker_bytes > 0
    assert found.notes == []
    assert 0 < found.disk_bytes < 100 * plan.disk_bytes
    assert heard == [], "a trial is not the job"
    assert not Path(job.store).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__is_never_tried_on_more_images_than_there_are(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    assert forecast(plan_job(make_job(), threads), ProfileSpec(backend="local"), images=1000).tried == 40


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_top_patches_goes_with_the_channels(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, int]]] = []

    def components(x: xr.DataArray, **settings: Any) -> xr.Dataset:
        asked.append((x.attrs["layer"], dict(x.sizes)))
        return dn.patch_components(x, **settings)

    monkeypatch.setitem(trials.ANALYSES, "patch_components", components)
    step = {"patch_components": {"k": 12, "rank": 3, "keep": 2, "max_iter": 10}}
    layers = {"conv1": {"keep": "full"}, "relu1": {"keep": "stats"}}
    job = make_job(step, {"moments": {}}, layers=layers, batch=2)
    plan = plan_job(job, threads)
    found = forecast(plan, ProfileSpec(backend="local"), images=20)
    assert list(found.seconds) == ["extract", "patch_components", "moments"]
    assert [layer for layer, _ in asked] == ["conv1", "conv1", "relu1"], "the first imports what all need"
    tasks = {question.layer: cost.tasks for question, cost in plan.steps if question.step.kind == "patch_components"}
    for layer, sizes in asked:
        assert sizes["sample"] == 12
        assert sizes["channel"] == min(threads.slots, tasks[layer]), "of blocks of a channel, one per slot"
    result = run_job(job, threads)
    taken = sum(bytes_below(path) for path in Path(result.store).parent.glob(f"{Path(result.store).name}*"))
    assert found.disk_bytes == pytest.approx(taken, rel=0.2)


def test_scaled__is_a_line_through_two_trials() -> None:
    def trial(images: int, took: float, read: int, size: int = 8) -> Any:
        cost = SimpleNamespace(read_bytes=read, result_bytes=size)
        plan = SimpleNamespace(
            steps=[(SimpleNamespace(step=SimpleNamespace(id="svd"), layer=layer), cost) for layer in ("relu", "done")],
            extract=SimpleNamespace(images=images),
        )
        seconds = {"svd": {"relu": took, "done": 100.0}, "train": {"": took}}
        return trials.Trial(plan, 0.0, seconds, {}, 0, 0, 0, {}, 0)  # type: ignore[arg-type]

    def scaled(step: str, half: trials.Trial, whole: trials.Trial, job: Any) -> float:
        return calibration._scaled(step, {"relu"}, half, whole, job)

    job = trial(10_000, 0.0, 40_000).plan
    assert scaled("svd", trial(100, 3.0, 400), trial(200, 4.0, 800), job) == pytest.approx(2.0 + 0.0025 * 40_000)
    assert scaled("svd", trial(100, 3.0, 400), trial(200, 2.9, 800), job) == 2.9, "no image takes less than no time"
    assert scaled("svd", trial(100, 1.0, 400), trial(200, 4.0, 800), job) == pytest.approx(4.0 * 50), "in proportion"
    assert scaled("svd", trial(100, 3.0, 0), trial(200, 4.0, 0), job) == 4.0, "nothing is read, and no result is larger"
    assert scaled("train", trial(100, 3.0, 0), trial(200, 4.0, 0), job) == pytest.approx(2.0 + 0.01 * 10_000)


def test_packed__lists_and_statistics_per_channel_do_not_grow_with_the_images() -> None:
    def plan(images: int) -> Any:
        layers = [SimpleNamespace(name="relu", shape=(64, 2, 2))]
        extract = SimpleNamespace(images=images, units=images // 10, store_bytes=images, partial_bytes=9, layers=layers)
        feeds = (Feed("max", TopK(100)), Feed("max", TopK(100, largest=False)), Feed("max", Moments()),
                 Feed("neuron", TopK(5_000)))  # fmt: skip
        return SimpleNamespace(extract=extract, study=SimpleNamespace(feeds={"relu": feeds}), steps=[])

    def trial(images: int) -> Any:
        return SimpleNamespace(plan=plan(images), activations=70 * images, partials=20 * images, markers=10 * images,
                               packed={}, lists={"relu": 1_000 * min(images, 100)}, other=5_000)  # fmt: skip

    for tried in (50, 100, 200):
        assert calibration._packed(trial(tried), plan(50_000)) == 50_000 * (70 + 30) + 100 * 1_000 + 5_000, tried


def test_packed__of_layers_without_activations_is_what_the_job_then_takes(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, tmp_path: Path
) -> None:
    layers = {"conv1": {"keep": "stats"}, "relu2": {"keep": "max"}, "pool2": {"keep": "mean"}}
    job = make_job(layers=layers, top_k=8, images={"source": "digits", "sample": 800}, images_per_unit=16)
    plan = plan_job(job, threads)
    sizes = backend_of(ProfileSpec(backend="local")).sizes
    trial = trials.try_job(plan, 128, threads, sizes, tmp_path / "trial")  # type: ignore[arg-type]
    store = Path(run_job(plan, threads).store)
    taken = sum(bytes_below(folder) for folder in tmp_path.glob(f"{store.name}*"))
    assert calibration._packed(trial, plan) == pytest.approx(taken, rel=0.1)
    for layer in layers:
        lists = sum(bytes_below(path / "c") for path in (store / "layers" / layer).glob("*_image"))
        assert 0 < lists < trial.lists[layer] < 10 * lists


@pytest.mark.parametrize(
    ("chosen", "sample"),
    [
        ({"correct": True, "sample": 30, "seed": 1}, 15),
        ({"images": [3, 5]}, 1),
        ({"classes": [7]}, 2),
        ({"classes": [7], "sample": 1}, 1),
        ({"classes": [7, 1], "correct": False}, 5),
        ({"correct": False}, None),
        ({"classes": list(range(10))}, None),
    ],
)
def test_smaller__selects_no_more_images_than_a_trial_has(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, chosen: dict[str, Any], sample: int | None
) -> None:
    plan = plan_job(make_job({"svd": {"rank": 1, "select": chosen}}), threads)
    labels = plan.study.source.manifest.labels
    assert [int((labels == label).sum()) for label in (7, 1)] == [4, 6]
    small = trials._smaller(plan, 20, 2, Path("trial.zarr"))
    (step,) = [step for step in small.steps if isinstance(step, AnalysisStep)]
    assert step.select == (None if sample is None else SelectSpec(sample=sample, seed=chosen.get("seed", 0)))


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_steps_about_few_images(make_job: Callable[..., JobSpec], threads: ThreadExecutor) -> None:
    chosen = [{"classes": [7]}, {"classes": [7], "sample": 2}, {"images": [39]}, {"correct": False}]
    steps = [{"moments": {"name": f"of-{number}", "select": one}} for number, one in enumerate(chosen)]
    found = forecast(plan_job(make_job(*steps, batch=1), threads), ProfileSpec(backend="local"), images=8)
    assert found.tried == 8
    assert list(found.seconds) == ["extract", "of-0", "of-1", "of-2", "of-3"]


@pytest.mark.parametrize(
    ("step", "needed"),
    [
        ({"svd": {"rank": 8}}, 8),
        ({"svd": {"rank": "all"}}, 1),
        ({"svd": {"threshold": 9.0}}, 1),
        ({"nmf": {"rank": 6}}, 6),
        ({"coupled_nmf": {"rank": 5}}, 5),
        ({"patch_components": {"k": 20, "rank": 4}}, 4),
        ({"kmeans": {"count": 7}}, 7),
        ({"clusters": {"count": 3, "per": "image"}}, 3),
        ({"clusters": {"count": 3}}, 1),
        ({"single_neurons": {"count": 9}}, 1),
        ({"regression": {"folds": 0}}, 1),
        ({"regression": {}}, 5),
        ({"cooccurrence": {"quantile": 0.9}}, 10),
        ({"cooccurrence": {}}, 1),
    ],
    ids=str,
)
def test_images_needed__of_each_step_that_divides_images(
    make_job: Callable[..., JobSpec], step: dict[str, Any], needed: int
) -> None:
    (found,) = [one for one in make_job(step).steps if isinstance(one, AnalysisStep)]
    assert trials.images_needed(found) == needed


@pytest.mark.parametrize(("rank", "tried"), [(9, 18), (20, 40), (30, 40), (40, 40)])
@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_rank_takes_as_many_images_as_it_needs(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, rank: int, tried: int
) -> None:
    steps = [{"svd": {"layer": "relu1", "rank": rank, "select": {"sample": rank}}}, {"kmeans": {"count": 2}}]
    plan = plan_job(make_job(*steps, "report", batch=1), threads)
    heard: list[events.Event] = []
    with events.listening(heard.append):
        found = forecast(plan, ProfileSpec(backend="local"), images=8)
    assert found.tried == tried
    assert list(found.seconds) == ["extract", "svd", "kmeans", "report"]
    (note,) = [event.message for event in heard if "tried" in event.message]
    why = f"half of them are tried too, and step svd asks for {rank} at least"
    assert note == f"tried on {tried} images in place of 8: {why}"


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_threshold_that_few_images_do_not_reach(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    asked = {"layer": "relu1", "standardize": None}
    whole = dn.open(run_job(make_job({"svd": {"rank": 1, **asked}}, store="whole.zarr"), threads).store)
    threshold = 0.8 * float(whole.results["svd"]["relu1"]["singular_value"][0])  # σ grows with the root of the images
    for chosen in (None, {"sample": 38}):
        step = {"svd": {"threshold": threshold, "select": chosen, **asked}}
        found = forecast(plan_job(make_job(step, batch=1), threads), ProfileSpec(backend="local"), images=8)
        assert (found.tried, list(found.seconds)) == (8, ["extract", "svd"])


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_too_few_images_takes_as_many_as_foretell_something(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    plan = plan_job(make_job(batch=4), threads)
    heard: list[events.Event] = []
    with events.listening(heard.append):
        found = forecast(plan, ProfileSpec(backend="local"), images=1)
    assert found.tried == 4 * 4 * threads.slots
    (note,) = [event.message for event in heard if "tried" in event.message]
    assert note.startswith(f"tried on {found.tried} images in place of 1: ")


def test_rate__does_not_count_the_units_that_load_the_network() -> None:
    def progress(done: int, time: float) -> events.Event:
        return events.Event("progress", "extract", done=done, total=80, time=time, data={"rate": 1.0})

    seen = [progress(10, 100.0), progress(20, 100.1), progress(30, 101.0), progress(60, 102.1)]
    assert trials._rate(seen, slots=2) == pytest.approx(40 / 2.0)
    assert trials._rate(seen[:1], slots=2) == 1.0, "nothing else is known"


@pytest.mark.parametrize("last", [("report",), ()], ids=["with a report", "without"])
@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_the_disk_is_what_the_job_then_takes(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, last: tuple[str, ...]
) -> None:
    job = make_job({"cooccurrence": {"k": 5}}, {"svd": {"rank": 2, "layer": "fc"}}, *last, batch=2)
    plan = plan_job(job, threads)
    foretold = forecast(plan, ProfileSpec(backend="local"), images=20).disk_bytes
    run_job(job, threads)
    assert foretold == pytest.approx(taken_by(job), rel=0.1)


def taken_by(job: JobSpec) -> int:
    """Bytes of a job's store and of what lies beside it."""
    store = Path(job.store)
    return sum(bytes_below(folder) for folder in store.parent.glob(f"{store.name}*"))


def foretell(job: JobSpec, threads: ThreadExecutor, images: int = 20) -> Forecast:
    """What a job's trial foretells."""
    return forecast(plan_job(job, threads), ProfileSpec(backend="local"), images=images)


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_job_half_done_counts_what_is_left(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    job = make_job({"train": {"epochs": 1}}, {"moments": {}}, "report", batch=2)
    run_job(job, threads)
    finished = foretell(job, threads)
    assert (finished.seconds, finished.images) == ({}, 0)
    assert finished.done == ["train", "extract", "moments", "report"]
    assert finished.total == 0.0
    assert finished.disk_bytes == pytest.approx(taken_by(job), rel=0.1), "all of it, though nothing is added"
    folder = units_folder(job.store)
    for part in ("images", "relu1", "fc"):
        Unit(folder / "extract" / part, "00001").withdraw()
    results.unit(Path(job.store), "moments", "fc").withdraw()
    found = foretell(job, threads)
    assert found.images == 16
    assert found.seconds["extract"] == pytest.approx(16 / found.rate)
    assert list(found.seconds) == ["extract", "moments", "report"]
    assert found.done == ["train"]


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_job_that_grows_counts_the_layers_and_results_that_are_new(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_on: list[tuple[str, ...]] = []
    extract_unit = task.extract_unit

    def noted(work: Any, number: int, parts: Any) -> Any:
        worked_on.append(tuple(parts))
        return extract_unit(work, number, parts)

    asked: dict[str, list[str]] = {}

    def scaled(step: str, layers: Any, *args: Any) -> float:
        asked[step] = sorted(layers)
        return calibrated(step, layers, *args)

    calibrated = calibration._scaled
    steps = [{"selectivity": {}}, {"facets": {"of": "selectivity"}}, {"svd": {"rank": 2, "layer": "fc"}}]
    run_job(make_job(*steps, batch=2), threads)
    Unit(units_folder(make_job().store) / "extract" / "fc", "00002").withdraw()
    job = make_job(*steps, layers=["relu1", "conv2", "fc"], batch=2)
    monkeypatch.setattr(calibration, "_scaled", scaled)
    monkeypatch.setattr(run, "extract_unit", noted)
    found = foretell(job, threads)
    assert set(worked_on) == {("images", "relu1", "conv2", "fc"), ("conv2",), ("conv2", "fc")}, "as the job will"
    assert found.images == 40
    assert found.done == ["svd"]
    assert asked == {"selectivity": ["conv2"], "facets": ["layers"]}, "it is about all layers"
    assert list(found.seconds) == ["extract", "selectivity", "facets"]
    run_job(job, threads)
    assert found.disk_bytes == pytest.approx(taken_by(job), rel=0.1)


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_top_patches_that_are_there_takes_no_time_and_counts_their_bytes(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"patch_components": {"k": 12, "rank": 3, "keep": 2, "max_iter": 10}}
    run_job(make_job(step, layers=["conv1"], batch=2), threads)
    tried: list[set[str]] = []

    def patches(plan: JobPlan, step: Any, layers: set[str], *args: Any) -> tuple[float, int]:
        tried.append(layers)
        return trials.try_patches(plan, step, layers, *args)

    monkeypatch.setattr(calibration, "try_patches", patches)
    job = make_job(step, layers=["conv1", "relu1"], batch=2)
    found = foretell(job, threads)
    assert tried == [{"relu1"}]
    run_job(job, threads)
    assert found.disk_bytes == pytest.approx(taken_by(job), rel=0.1)
    finished = foretell(job, threads)
    assert (tried, finished.seconds) == ([{"relu1"}], {})
    assert finished.disk_bytes == pytest.approx(taken_by(job), rel=0.1)


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_step_that_comes_later_is_of_the_pass_that_it_takes(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a job from nothing it would be taken along."""
    steps = [{"moments": {"per": "neuron"}}, {"moments": {"per": "image", "name": "images"}}]
    run_job(make_job(steps[0], batch=2), threads)
    read: dict[str, list[int]] = {}

    def scaled(step: str, layers: Any, half: trials.Trial, whole: trials.Trial, job: JobPlan) -> float:
        read[step] = [
            sum(cost.read_bytes for question, cost in plan.steps if question.step.id == step)
            for plan in (half.plan, whole.plan, job)
        ]
        return calibrated(step, layers, half, whole, job)

    calibrated = calibration._scaled
    monkeypatch.setattr(calibration, "_scaled", scaled)
    found = foretell(make_job(*steps, batch=2), threads)
    assert found.done == ["extract", "moments"]
    assert list(found.seconds) == list(read) == ["images"]
    assert 4 * read["images"][0] == 2 * read["images"][1] == read["images"][2] > 0


QUEUE = ProfileSpec.model_validate({"backend": "slurm", "pools": {"extract": {"memory": "1GiB"}}})
LOCAL = ProfileSpec(backend="local")


@pytest.mark.parametrize("profile", [LOCAL, QUEUE], ids=["local", "slurm"])
def test_trials__lie_beside_the_store(
    profile: ProfileSpec, make_job: Callable[..., JobSpec], threads: ThreadExecutor, tmp_path: Path
) -> None:
    """On its disk, and where all machines see them: the folder for temporary files is another one on each."""
    with calibration._folder_for_trials(tmp_path / "not-there-yet" / "a.zarr", profile) as (folder, notes):
        assert (folder.parent, notes) == (tmp_path, [])
        assert folder.name.startswith("."), "no source of images lists it"
    assert list(tmp_path.iterdir()) == []
    job = make_job()
    with calibration._folder_for_trials(Path(job.store), profile) as (folder, _):
        left = tmp_path / f"{folder.name[:-8]}left.partial"
    (left / "0").mkdir(parents=True)  # of a plan that was killed
    run_job(job, threads)
    assert not left.exists()


def test_trials__lie_elsewhere_where_they_cannot_lie_beside_the_store(tmp_path: Path) -> None:
    store = locate("s3://bucket/a.zarr")
    with calibration._folder_for_trials(store, LOCAL) as (folder, (note,)):
        assert folder.is_dir()
    assert "to write to s3://bucket/a.zarr, and to read from there, is not in the seconds" in note
    with pytest.raises(UsageError, match=r"beside its store, and s3://bucket/a\.zarr is in none"):
        calibration._folder_for_trials(store, QUEUE).__enter__()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="nobody can make a folder in /proc, on Linux only")
@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_store_beside_which_nobody_may_write_says_so(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    found = foretell(make_job(store="/proc/a.zarr", batch=2), threads)
    (note,) = found.to_dict()["notes"]
    assert note.startswith("tried in a folder of this machine, for none can be made in /proc (")
    show_forecast(found)
    assert f"note: {note}" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"beside its store, and none can be made in /proc \("):
        calibration._folder_for_trials(Path("/proc/a.zarr"), QUEUE).__enter__()


@pytest.mark.parametrize("images", [20, 16])
@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_disk_that_is_full_says_that_it_was_a_trial(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    images: int,
) -> None:  # fmt: skip
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "extract_unit", full)
    with pytest.raises(DiskFullError, match=r"was tried there on \d+ images, and nothing of the trial") as caught:
        foretell(make_job(batch=2), threads, images)
    assert str(tmp_path) in str(caught.value)
    fewest = 4 * 2 * threads.slots
    fewer = f", or fewer images: --calibrate {fewest}" if images > fewest else ""
    assert caught.value.hint == f"make room there{fewer}"
    assert list(tmp_path.iterdir()) == []
