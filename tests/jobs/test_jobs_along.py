"""One pass, everything: what is fed while a layer is in memory equals what a pass over a store finds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import MemoryLimitError, UsageError
from dneuro.extract import run as extract_run
from dneuro.extract.work import ExtractWork
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.quantities import GiB
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
LAYERS = ["relu1", "fc"]
STEPS: dict[str, dict[str, Any]] = {
    "moments of maxima": {"moments": {}},
    "moments of means": {"moments": {"pool": "mean"}},
    "moments per neuron": {"moments": {"per": "neuron"}},
    "moments per image": {"moments": {"per": "image"}},
    "top of means": {"top_images": {"k": 6, "pool": "mean"}},
    "top per neuron": {"top_images": {"k": 4, "per": "neuron"}},
    "classes": {"cooccurrence": {"k": 7}},
    "classes of means": {"cooccurrence": {"k": 7, "pool": "mean"}},
    "classes per neuron": {"cooccurrence": {"k": 3, "per": "neuron"}},
    "selectivity": {"selectivity": {"chance": 0}},
    "selectivity per neuron": {"selectivity": {"chance": 0, "per": "neuron"}},
    "similarity": {"similarity": {}},
    "similarity of means": {"similarity": {"pool": "mean", "metric": "pearson"}},
    "similarity per neuron": {"similarity": {"per": "neuron", "metric": "euclidean"}},
}
EXACT = ("count", "image", "top_", "bottom_", "min", "max")


def named(steps: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{kind: {**settings, "name": name.replace(" ", "-")}} for name, step in steps.items()
            for kind, settings in step.items()]  # fmt: skip


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(found.data_vars) == set(expected.data_vars)
    for name in map(str, expected.data_vars):
        assert found[name].dims == expected[name].dims
        assert found[name].dtype == expected[name].dtype
        if name.startswith(EXACT):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        else:
            scale = float(np.abs(np.nan_to_num(expected[name].values, posinf=0)).max())
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12 * scale, err_msg=name)
    for name in map(str, expected.coords):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def listen(job: JobSpec, threads: ThreadExecutor) -> tuple[Any, list[events.Event]]:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = run_job(job, threads)
    return result, seen


def passes(seen: list[events.Event]) -> list[str]:
    return [event.step for event in seen if event.kind == "started" and event.what == "blocks"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stats__answer_every_step_without_activations(
    make_job: MakeJob, make_photos: Callable[..., Any], threads: ThreadExecutor, dtype: str
) -> None:
    known = {**make_photos(24, broken=(5,)), "dtype": dtype, "batch": 5}
    whole = run_job(make_job(layers=LAYERS, store="whole.zarr", **known), threads).store
    kept = {name: {"keep": "stats"} for name in LAYERS}
    result, seen = listen(make_job(*named(STEPS), layers=kept, **known), threads)
    assert passes(seen) == [], "nothing is read again"
    full, store = dn.open(whole), dn.open(result.store)
    assert list(store) == []
    written = [path.name for layer in LAYERS for path in (result.store / "layers" / layer).iterdir()]
    assert "mean" in written
    assert not [name for name in written if name.startswith("activation") or name in ("filename", "label", "image")]
    for name, step in STEPS.items():
        ((kind, settings),) = step.items()
        for layer in LAYERS:
            expected = getattr(dn, kind)(full[layer], client=threads, **settings)
            if "image" in expected.dims:
                expected = expected.reindex(image=np.arange(24))
            found = store.results[name.replace(" ", "-")][layer].load()
            assert_same(found, expected)
            same = ("analysis", "layer", "parameters")
            assert [found.attrs[key] for key in same] == [expected.attrs[key] for key in same]


@pytest.mark.parametrize(
    ("standardize", "layer", "made"), [("image", "fc", 1), (None, "fc", 1), ("neuron", "fc", 2), ("center", "fc", 2)]
)
def test_svd__is_spared_the_passes_whose_answers_came_along(
    make_job: MakeJob, threads: ThreadExecutor, standardize: str | None, layer: str, made: int
) -> None:
    """The triangle of a narrow layer under ``image`` and null, the moments of every neuron under the others."""
    job = make_job({"svd": {"rank": 3, "layer": layer, "standardize": standardize}})
    assert [plan.passes for _, plan in plan_job(job, threads).steps] == [made]
    result, seen = listen(job, threads)
    assert passes(seen) == ["svd"] * made
    store = dn.open(result.store)
    expected = dn.svd(store[layer], rank=3, standardize=standardize, client=threads)  # type: ignore[arg-type]
    found = store.results["svd"][layer].load()
    for variable in ("singular_value", "score", "vector"):
        np.testing.assert_allclose(found[variable], expected[variable], rtol=1e-8, atol=1e-9)
    assert found.attrs["total_variance"] == pytest.approx(expected.attrs["total_variance"], rel=1e-12)
    assert (found.attrs["passes"], expected.attrs["passes"]) == (made, made + 1)


def test_plan__says_what_comes_along_and_what_takes_a_pass(make_job: MakeJob, threads: ThreadExecutor) -> None:
    wide = [{"moments": {"per": "neuron"}}, {"similarity": {"per": "neuron"}}]
    planned = plan_job(make_job(*wide, layers=["relu1"]), ThreadExecutor(1, 60 * GiB))
    (_, moments), (_, similarity) = planned.steps
    assert (moments.passes, moments.method) == (0, "with extract")
    assert similarity.passes == 2, "1,440² products per unit cost more than a pass"
    assert "a pass costs less than" in similarity.method


def test_partials__that_are_too_large_are_refused_with_the_numbers(
    make_job: MakeJob, threads: ThreadExecutor
) -> None:
    network = {"name": "torchvision:squeezenet1_1", "weights": "none"}
    step = {"top_images": {"per": "neuron", "k": 100, "layer": "features.0"}}
    job = make_job(step, network=network, layers={"features.0": {"keep": "stats"}}, images_per_unit=32)
    message = r"step top_images: what it needs of features.0 \(keep: stats\) takes .* per unit, .* for 2 units"
    with pytest.raises(MemoryLimitError, match=message) as caught:
        plan_job(job, threads)
    assert "keep: full" in str(caught.value.hint)
    assert "the limit is 256 MiB per unit" in caught.value.message


def stop_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """End the next extraction once that many units are done."""
    honest, done = extract_run.extract_unit, []

    def extract_unit(work: ExtractWork, number: int, parts: Any) -> Any:
        if len(done) == units:
            raise UsageError("stopped")
        done.append(number)
        return honest(work, number, parts)

    monkeypatch.setattr(extract_run, "extract_unit", extract_unit)


def test_list__that_was_longer_serves_after_an_interruption(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, kept = ThreadExecutor(1), {"relu1": {"keep": "stats"}}
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(UsageError, match="stopped"):
            run_job(make_job({"top_images": {"k": 12}}, layers=kept), one)
    job = make_job({"top_images": {"k": 9}}, layers=kept)
    assert plan_job(job, one).done == 1
    result, seen = listen(job, one)
    assert (result.outcome.done_before, passes(seen)) == (1, [])
    fresh = run_job(make_job({"top_images": {"k": 9}}, layers=kept, store="fresh.zarr"), one).store
    assert_same(dn.open(result.store).results["top_images"]["relu1"], dn.open(fresh).results["top_images"]["relu1"])
    assert dn.open(result.store).statistics("relu1").identical(dn.open(fresh).statistics("relu1"))
    one._pool.shutdown()


@pytest.mark.parametrize("keep", ["stats", "full"])
def test_list__that_was_shorter_is_made_good_after_an_interruption(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    """Without activations the units that lack it are extracted again; with them, the store is read."""
    one, kept = ThreadExecutor(1), {"relu1": {"keep": keep}}
    first = [{"top_images": {"k": 3}}, {"moments": {"per": "neuron"}}]
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(UsageError, match="stopped"):
            run_job(make_job(*first, layers=kept, top_k=2), one)
    job = make_job({"top_images": {"k": 9}}, layers=kept, top_k=2)
    planned = plan_job(job, one)
    again = keep == "stats"
    assert planned.done == (0 if again else 2)
    assert planned.steps[0][1].method == ("with extract" if again else "2 units were extracted without it")
    result, seen = listen(job, one)
    assert result.outcome.images == (40 if again else 8)
    assert passes(seen) == ([] if again else ["top_images"])
    fresh = dn.open(run_job(make_job({"top_images": {"k": 9}}, layers=kept, store="fresh.zarr"), one).store)
    assert_same(dn.open(result.store).results["top_images"]["relu1"], fresh.results["top_images"]["relu1"])
    assert dn.open(result.store).statistics("relu1").sizes["rank"] == (9 if again else 2), "as long as all units have"
    # What was taken along before the interruption is still there, of the units that were extracted then.
    marker = json.loads((units_folder(job.store) / "extract" / "relu1" / "00000.done").read_text())
    assert "neuron/moments" in marker["kernels"]
    one._pool.shutdown()


def test_stats__are_kept_for_later_steps_alone(make_job: MakeJob, threads: ThreadExecutor) -> None:
    kept = {"fc": {"keep": "stats"}}
    found = run_job(make_job({"top_images": {"k": 3}}, layers=kept, statistics=[]), threads).store
    same = run_job(make_job({"top_images": {"k": 3}}, layers=kept, store="same.zarr"), threads).store
    assert_same(dn.open(found).results["top_images"]["fc"], dn.open(same).results["top_images"]["fc"])
    assert dn.verify(found, client=threads).findings == []


@pytest.mark.parametrize("steps", [(), ({"top_images": {"layer": "relu1"}},), ({"svd": {"rank": 2}},)])
def test_stats__that_keep_nothing_are_refused(make_job: MakeJob, threads: ThreadExecutor, steps: Any) -> None:
    layers = {"relu1": {"keep": "full"}, "fc": {"keep": "stats"}}
    with pytest.raises(UsageError, match="keeps nothing of layer fc, for no statistics are taken") as caught:
        plan_job(make_job(*steps, layers=layers, statistics=[]), threads)
    assert "statistics: [moments]" in str(caught.value.hint)


def test_statistics__of_a_whole_run_serve_a_later_job(make_job: MakeJob, threads: ThreadExecutor) -> None:
    kept = {"relu1": {"keep": "stats"}}
    run_job(make_job({"moments": {"per": "neuron"}}, {"similarity": {}}, layers=kept), threads)
    result, seen = listen(make_job({"moments": {"per": "neuron", "name": "later"}}, layers=kept), threads)
    assert (result.outcome.images, result.computed, passes(seen)) == (0, 1, [])
    results = dn.open(result.store).results
    xr.testing.assert_equal(results["later"]["relu1"].load(), results["moments"]["relu1"].load())


LATER = {
    "another": ({"statistics": ["moments"]}, {}, "max/bottom-5, max/top-5", "a step top_images: {k: 5} finds"),
    "a first": ({"statistics": []}, {}, "max/bottom-5, max/moments, max/top-5", "a step moments and a step top_images"),
    "longer": ({"top_k": 3}, {"top_k": 9}, "max/bottom-9, max/top-9", "a step top_images: {k: 9} finds"),
}


@pytest.mark.parametrize("what", LATER)
@pytest.mark.parametrize("done", [1, 3], ids=["half done", "done"])
@pytest.mark.parametrize("keep", ["stats", "mean", "max", "full"])
def test_statistics__asked_for_later_are_taken_or_named(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, keep: str, done: int, what: str
) -> None:
    """Where the activations or their maxima are there, a step finds them; elsewhere the units are extracted again."""
    before, after, lacking, way = LATER[what]
    one, kept = ThreadExecutor(1), {"relu1": {"keep": keep}}
    steps = [{"moments": {"per": "image"}}] if keep == "stats" else []  # else nothing might be kept
    with monkeypatch.context() as patched, contextlib.suppress(UsageError):
        stop_after(patched, done)
        run_job(make_job(*steps, layers=kept, **before), one)
    again = keep in ("stats", "mean")
    result, seen = listen(make_job(*steps, layers=kept, **after), one)
    (note,) = {event.message for event in seen if "extracted without" in event.message}
    assert note.startswith(f"{done} units of relu1 were extracted without {lacking}, ")
    assert ("extracted again" in note, way in note) == (again, not again)
    assert result.outcome.images == (40 if again else 40 - 16 * done if done < 3 else 0)
    found = dn.open(result.store).statistics("relu1")
    fresh = run_job(make_job(*steps, layers=kept, store="fresh.zarr", **after), one).store
    expected = dn.open(fresh).statistics("relu1")
    if again:
        xr.testing.assert_identical(found.load(), expected.load())
        assert dn.verify(result.store, client=one).findings == []
        result, seen = listen(make_job(*steps, layers=kept, **after), one)
        assert (result.outcome.images, [event for event in seen if "without" in event.message]) == (0, [])
    elif what != "longer":
        assert "top_image" not in found
    else:
        assert found.sizes["rank"] == 3
    one._pool.shutdown()
