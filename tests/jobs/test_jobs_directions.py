"""Steps about directions, quantiles, selectivity and clusters, run as parts of a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import SpecError, UsageError
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec, parse_job

MakeJob = Callable[..., JobSpec]
STEPS: list[Any] = [
    {"cooccurrence": {"k": 8}},
    {"cooccurrence": {"name": "above", "quantile": 0.8}},
    {"selectivity": {"pool": "max"}},
    {"selectivity": {"name": "facets", "of": "cooccurrence", "chance": 20}},
    {"random_projections": {"directions": 12, "k": 5}},
    {"clusters": {"count": 3, "layer": "relu1"}},
    {"clusters": {"name": "alike", "of": "above", "distance": 0.5}},
    {"kmeans": {"count": 4, "seed": 1}},
    {"clusters": {"name": "images-alike", "count": 4, "per": "image"}},
    {"similarity": {"name": "near", "per": "image", "neighbours": 3, "metric": "pearson"}},
    "report",
]


@pytest.fixture
def run(make_job: MakeJob, threads: ThreadExecutor) -> dn.Store:
    return dn.open(run_job(make_job(*STEPS), threads).store)


def test_steps__give_what_the_functions_give(run: dn.Store, threads: ThreadExecutor) -> None:
    for layer in ("relu1", "fc"):
        x = run[layer]
        counts = dn.cooccurrence(x, k=8, client=threads)
        above = dn.cooccurrence(x, quantile=0.8, client=threads)
        expected = {
            "cooccurrence": counts,
            "above": above,
            "facets": dn.selectivity(counts["count"], chance=20),
            "selectivity": dn.selectivity(x, pool="max", client=threads),
            "random_projections": dn.random_projections(x, directions=12, k=5, client=threads),
            "alike": dn.clusters(above["count"], distance=0.5, client=threads),
            "kmeans": dn.kmeans(x, count=4, seed=1, client=threads),
            "images-alike": dn.clusters(x, count=4, per="image", client=threads),
            "near": dn.similarity(x, per="image", neighbours=3, metric="pearson", client=threads),
        }
        if layer == "relu1":
            expected["clusters"] = dn.clusters(x, count=3, client=threads)
        for step, dataset in expected.items():
            found = run.results[step][layer].load()
            assert found.attrs["analysis"] == dataset.attrs["analysis"]
            assert set(found.variables) >= set(dataset.variables), step
            for name, array in dataset.data_vars.items():
                xr.testing.assert_allclose(found[name].reset_coords(drop=True), array.reset_coords(drop=True))
        assert run.results["facets"][layer].attrs["parameters"]["of"] == "cooccurrence"
        assert run.results["cooccurrence"][layer]["class_size"].sum() == 40


def test_plan__says_what_each_step_reads(make_job: MakeJob, threads: ThreadExecutor) -> None:
    planned = plan_job(make_job(*STEPS), threads)
    passes = {(question.step.id, question.layer): plan.passes for question, plan in planned.steps}
    methods = {question.step.id: plan.method for question, plan in planned.steps}
    assert passes["facets", "relu1"] == passes["alike", "fc"] == 0
    assert methods["facets"] == methods["alike"] == "in the driver"
    assert passes["random_projections", "relu1"] == 1
    assert passes["kmeans", "relu1"] == 3


def test_steps__about_rows_follow_what_was_counted(make_job: MakeJob, threads: ThreadExecutor) -> None:
    steps: list[Any] = [
        {"cooccurrence": {"quantile": 0.8, "per": "neuron"}},
        {"clusters": {"of": "cooccurrence", "count": 2}},
    ]
    layers = {"relu1": {"keep": "max"}, "fc": {"keep": "full"}}
    store = dn.open(run_job(make_job(*steps, layers=layers), threads).store)
    for step in ("cooccurrence", "clusters"):
        assert "fc" in store.results[step]
    named = {"clusters": {"of": "cooccurrence", "count": 10**6, "layer": "fc"}}
    with pytest.raises(UsageError, match=r"clusters of fc: count=1000000 of \d+ neurons"):
        plan_job(make_job(steps[0], named, layers=layers), threads)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("cooccurrence: {k: 5, quantile: 0.9}", "k and quantile both say what counts"),
        ("cooccurrence: {quantile: 1.0}", "less than 1"),
        ("cooccurrence: {k: null}", "neither k nor quantile"),
        ("random_projections: {cutoff: 1, quantile: 0.5}", "cutoff and quantile both"),
        ("clusters: {}", "neither count nor distance"),
        ("clusters: {count: 2, distance: 0.1}", "count and distance both"),
        ("clusters: {count: 2, linkage: ward}", "ward is about Euclidean distances"),
        ("selectivity: {of: cof}", "no cooccurrence step named 'cof' comes before"),
        ("kmeans: {}", "count: missing"),
        ("clusters: {count: 2, of: cof, per: image}", "there are no images to compare"),
        ("similarity: {of: cof, per: image}", "there are no images to compare"),
        ("svd: {rank: some}", "must be a whole number"),
        ("svd: {rank: 0}", "must be greater than 0"),
        ("svd: {rank: 2, persist: maybe}", "unknown value 'maybe'"),
        ("selectivity: {chance: -1}", "at least 0"),
    ],
)
def test_steps__refuse_what_cannot_be(step: str, message: str) -> None:
    text = (
        "name: a\nimages: {source: digits}\nnetwork: {name: 'dneuro:convnet', weights: none}\nstore: a.zarr\n"
        f"steps:\n  - extract: {{layers: [fc]}}\n  - {step}\n"
    )
    with pytest.raises(SpecError, match=message):
        parse_job(text, "a.yaml")


def test_cooccurrence__reads_back_what_it_writes() -> None:
    text = (
        "name: a\nimages: {source: digits}\nnetwork: {name: 'dneuro:convnet', weights: none}\nstore: a.zarr\n"
        "steps:\n  - extract: {layers: [fc]}\n  - cooccurrence\n  - cooccurrence: {name: b, quantile: 0.9}\n"
    )
    job = parse_job(text, "a.yaml")
    assert [(step.k, step.quantile) for step in job.steps[1:]] == [(100, None), (None, 0.9)]  # type: ignore[union-attr]
    assert parse_job(job.model_dump_json(), "b.yaml") == job


def test_masked__images_are_in_no_cluster(run: dn.Store) -> None:
    cluster = run.results["kmeans"]["fc"]["cluster"]
    assert cluster.sizes["image"] == 40
    assert np.isfinite(cluster).all()


def test_masked__images_are_in_no_cluster_of_a_tree(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor
) -> None:
    """The hierarchy has one image axis: rows of the images that took no part are there, and say so."""
    steps = [{"clusters": {"count": 3, "per": "image", "layer": "fc"}}, {"similarity": {"per": "image", "layer": "fc"}}]
    near = {"similarity": {"name": "near", "per": "image", "layer": "fc", "neighbours": 2}}
    job = make_job(*steps, near, "report", **make_photos(24, broken=[3, 20]))
    store = dn.open(run_job(job, threads).store)
    found = store.results["clusters"]["fc"].load()
    assert found["cluster"].values[[3, 20]].tolist() == [-1, -1]
    assert (np.delete(found["cluster"].values, [3, 20]) >= 0).all()
    assert found["order"].values[[3, 20]].tolist() == [22, 23]
    assert sorted(found["order"].values.tolist()) == list(range(24))
    matrix = store.results["similarity"]["fc"]["pearson"].values
    assert matrix.shape == (24, 24)
    assert np.isnan(matrix).sum() == 24 * 24 - 22 * 22
    np.testing.assert_array_equal(matrix, found["pearson"].values)
    neighbour = store.results["near"]["fc"]["pearson_neighbour"].values
    assert neighbour[[3, 20]].tolist() == [[-1, -1], [-1, -1]]
    assert not np.isin(np.delete(neighbour, [3, 20], axis=0), [-1, 3, 20]).any()
