"""What extraction takes along equals what a later pass over the store finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import UsageError
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]
MOMENTS = ["count", "mean", "std", "variance", "min", "max", "fraction_active"]
KEPT = {"relu1": {"keep": "full"}, "conv2": {"keep": "max"}, "fc": {"keep": "full"}}


def assert_same_top(one: xr.Dataset, other: xr.Dataset) -> None:
    names = {str(name) for name in one.data_vars}
    assert names == {str(name) for name in other.data_vars}
    assert {"top_value", "top_image", "top_label", "bottom_value", "bottom_image"} <= names
    for name in names:
        assert one[name].dims == other[name].dims
        assert one[name].dtype == other[name].dtype
        assert one[name].values.tobytes() == other[name].values.tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recorded__equals_a_later_pass(make_job: MakeJob, threads: ThreadExecutor, dtype: str) -> None:
    store = dn.open(run_job(make_job(layers=KEPT, dtype=dtype, top_k=7, batch=5), threads).store)
    for layer in KEPT:
        found = store.statistics(layer).load()
        moments = dn.moments(store[layer], client=threads)
        assert set(MOMENTS) == {str(name) for name in moments.data_vars}
        for name in MOMENTS:
            np.testing.assert_allclose(found[name], moments[name], rtol=1e-12, atol=1e-300)
        tops = found[[name for name in found.data_vars if str(name).startswith(("top_", "bottom_"))]]
        assert_same_top(tops, dn.top_images(store[layer], k=7, client=threads))
        assert ("top_y" in found) == (layer != "fc")


def passes(seen: list[events.Event]) -> list[str]:
    """The passes over the store that were made."""
    return [event.step for event in seen if event.kind == "started" and event.what == "blocks"]


def run(job: JobSpec, threads: ThreadExecutor) -> tuple[dict[str, dict[str, xr.Dataset]], list[str]]:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = run_job(job, threads)
    return dn.open(result.store).results, passes(seen)


def test_recorded__answers_steps_without_another_pass(make_job: MakeJob, threads: ThreadExecutor) -> None:
    steps = [{"moments": None}, {"top_images": {"k": 4}}, {"cooccurrence": {"k": 3}}]
    results, made = run(make_job(*steps, layers=KEPT), threads)
    assert made == []
    store = dn.open(make_job().store)
    for layer in KEPT:
        array = store[layer]
        for name, values in results["moments"][layer].data_vars.items():
            np.testing.assert_allclose(values, dn.moments(array, client=threads)[name], rtol=1e-12, atol=1e-300)
        assert_same_top(results["top_images"][layer], dn.top_images(array, k=4, client=threads))
        counts = dn.cooccurrence(array, k=3, client=threads)
        xr.testing.assert_equal(results["cooccurrence"][layer].load(), counts)
        for step in ("moments", "top_images", "cooccurrence"):
            attrs = results[step][layer].attrs
            again = getattr(dn, step)(array, client=threads, **({} if step == "moments" else {"k": 4})).attrs
            assert attrs["analysis"] == step
            assert attrs["layer"] == layer
            assert attrs["parameters"].keys() == again["parameters"].keys()


def test_recorded__of_the_longest_list_serves_the_shorter_ones(make_job: MakeJob, threads: ThreadExecutor) -> None:
    """top_k is raised by itself where a later step needs more."""
    job = make_job({"top_images": {"k": 12}}, {"cooccurrence": {"k": 9}}, top_k=2)
    results, made = run(job, threads)
    assert made == []
    assert results["top_images"]["fc"].sizes["rank"] == 12
    assert dn.open(job.store).statistics("fc").sizes["rank"] == 12


def test_recorded__with_fewer_images_than_asked_for_is_long_enough(
    make_job: MakeJob, threads: ThreadExecutor
) -> None:
    results, made = run(make_job({"top_images": {"k": 100}}), threads)
    assert made == []
    assert results["top_images"]["fc"].sizes["rank"] == 40


def test_longer_list__than_recorded_takes_a_pass_over_the_store(make_job: MakeJob, threads: ThreadExecutor) -> None:
    _, made = run(make_job({"top_images": {"k": 5}}), threads)
    assert made == []
    results, made = run(make_job({"top_images": {"k": 9}}), threads)
    assert made == ["top_images", "top_images"]
    store = dn.open(make_job().store)
    for layer in ("relu1", "fc"):
        assert_same_top(results["top_images"][layer], dn.top_images(store[layer], k=9, client=threads))
        assert store.statistics(layer).sizes["rank"] == 5, "what was recorded stays"
    _, made = run(make_job({"top_images": {"k": 3}}), threads)
    assert made == []


@pytest.mark.parametrize("keep", ["full", "stats"])
def test_list__of_an_earlier_job_is_not_cut_by_a_later_one(
    make_job: MakeJob, threads: ThreadExecutor, keep: str
) -> None:
    layers = {"relu1": {"keep": keep}, "fc": {"keep": keep}}
    store = dn.open(run_job(make_job(layers=layers, top_k=12), threads).store)
    before = {layer: store.statistics(layer).load() for layer in layers}
    again = dn.open(run_job(make_job({"moments": None}, layers=layers), threads).store)
    for layer, recorded in before.items():
        assert recorded.sizes["rank"] == 12
        xr.testing.assert_identical(again.statistics(layer).load(), recorded)
    assert dn.top_patches(again, "relu1", k=12).sizes["sample"] == 12
    assert dn.verify(again.path, client=threads).findings == []


def test_statistics__asked_for_later_take_a_pass_over_the_store(make_job: MakeJob, threads: ThreadExecutor) -> None:
    run_job(make_job(statistics=[]), threads)
    results, made = run(make_job({"moments": None}, statistics=[]), threads)
    assert made == ["moments", "moments"]
    expected = dn.open(make_job().store)["relu1"].max(("y", "x")).values.astype(np.float64)
    np.testing.assert_allclose(results["moments"]["relu1"]["mean"], expected.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("keep", ["mean", "stats"])
def test_statistics__that_the_store_cannot_give_any_more_are_extracted_again(
    make_job: MakeJob, threads: ThreadExecutor, keep: str
) -> None:
    """Means are kept, maxima are asked for too late: never the maximum of means under a wrong name."""
    known: dict[str, Any] = {"layers": {"relu1": {"keep": keep}, "fc": {}}, "statistics": ["top_images"]}
    run_job(make_job(**known), threads)
    job = make_job({"moments": {"layer": "relu1"}}, **known)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        planned = plan_job(job, threads)
    assert planned.done == 0
    message = "3 units of relu1 were extracted without max/moments"
    assert [event.step for event in seen if message in event.message] == ["extract"]
    results, made = run(job, threads)
    assert made == []
    plain = dn.open(run_job(make_job(layers=["relu1"], store="plain.zarr"), threads).store)["relu1"]
    expected = plain.max(("y", "x")).values.astype(np.float64)
    np.testing.assert_allclose(results["moments"]["relu1"]["mean"], expected.mean(axis=0), rtol=1e-12)
    assert plan_job(job, threads).done == 3


@pytest.mark.parametrize(
    ("keep", "step"),
    [("stats", {"svd": {"rank": 2}}), ("max", {"svd": {"rank": 2}})],
)
def test_step__that_needs_more_than_is_kept_is_refused_before_anything_starts(
    make_job: MakeJob, threads: ThreadExecutor, keep: str, step: dict[str, Any]
) -> None:
    ((name, settings),) = step.items()
    job = make_job({name: {**(settings or {}), "layer": "relu1"}}, layers={"relu1": {"keep": keep}})
    with pytest.raises(UsageError, match=f"step {name}: layer relu1 has keep: {keep}, and the step needs") as caught:
        plan_job(job, threads)
    assert caught.value.hint == "extract: {layers: {relu1: {keep: full}}}"


def test_step__for_every_layer_leaves_out_those_that_keep_too_little(
    make_job: MakeJob, threads: ThreadExecutor
) -> None:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        planned = plan_job(make_job({"svd": {"rank": 2}}, layers=KEPT), threads)
    assert [question.layer for question, _ in planned.steps] == ["relu1", "fc"]
    assert any("leaves out layer conv2" in event.message for event in seen)
