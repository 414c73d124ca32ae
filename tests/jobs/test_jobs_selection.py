"""Steps of a job that ask about some of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, SpecError, UsageError
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]


def asked(make_job: MakeJob, select: dict[str, Any] | None, **settings: Any) -> JobSpec:
    steps = [{"moments": {"select": select}}, {"svd": {"layer": "relu1", "rank": 2, "select": select}}]
    return make_job(*steps, **settings)


def test_select__in_a_job_is_that_of_the_function(make_job: MakeJob, threads: ThreadExecutor) -> None:
    store = dn.open(run_job(asked(make_job, {"classes": ["1", 2, 3], "sample": 6, "seed": 5}), threads).store)
    chosen = dn.select(store["relu1"], classes=[1, 2, 3], sample=6, seed=5)
    whole = store.statistics("relu1")
    result = store.results["moments"]["relu1"]
    assert result.attrs["selection"] == {"classes": ["1", 2, 3], "sample": 6, "seed": 5, "images": 6, "of": 40}
    assert result["count"].values.tolist() == [6] * result.sizes["channel"]
    assert whole["count"].values.tolist() == [40] * result.sizes["channel"]
    xr.testing.assert_allclose(result.drop_attrs(), dn.moments(chosen, client=threads).drop_attrs())
    assert not np.allclose(result["mean"], whole["mean"]), "what extraction recorded is of all images"
    scores = store.results["svd"]["relu1"]["score"]
    assert np.flatnonzero(np.isfinite(scores[:, 0])).tolist() == np.flatnonzero(chosen["selected"]).tolist()


def test_select__by_correctness_uses_the_predictions(make_job: MakeJob, threads: ThreadExecutor) -> None:
    store = dn.open(run_job(asked(make_job, {"correct": False}, layers=["relu1"]), threads).store)
    wrong = ~store.images["correct"].values
    result = store.results["moments"]["relu1"]
    assert 0 < wrong.sum() < 40 or wrong.all()
    assert result["count"].values[0] == wrong.sum() == result.attrs["selection"]["images"]


def test_select__another_one_is_another_result(make_job: MakeJob, threads: ThreadExecutor) -> None:
    computed = []
    for select in (None, {"sample": 9}, {"sample": 9, "seed": 1}, {"sample": 9, "seed": 1}, None):
        computed.append(run_job(asked(make_job, select), threads).computed)
    assert computed == [3, 3, 3, 0, 3]


def test_select__is_counted_by_the_plan(make_job: MakeJob, threads: ThreadExecutor) -> None:
    some, whole = (plan_job(asked(make_job, select), threads) for select in ({"sample": 2}, None))
    (question, read), (_, whole_read) = some.steps[-1], whole.steps[-1]
    assert question.layer == "relu1"
    images = xr.DataArray(np.zeros((40, 1), "f4"), dims=("image", "channel"))
    chunks = set(np.flatnonzero(dn.select(images, sample=2)["selected"]) // 16)
    rows = sum((16, 16, 8)[chunk] for chunk in chunks)
    one_pass = whole_read.read_bytes / whole_read.passes
    assert read.read_bytes == round(read.passes * one_pass * rows / 40) < read.passes * one_pass


@pytest.mark.parametrize(
    ("select", "settings", "message"),
    [
        ({"classes": ["eleven"]}, {}, "class 'eleven' is unknown"),
        ({"sample": 41}, {}, "sample=41 of 40 images"),
        ({"correct": True}, {"predictions": False}, "does not say which images were classified correctly"),
    ],
)
def test_select__is_refused_before_anything_is_started(
    make_job: MakeJob, threads: ThreadExecutor, select: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    job = asked(make_job, select, **settings)
    with pytest.raises(ArrayError, match=message):
        plan_job(job, threads)


def test_select__needs_activations(make_job: MakeJob, threads: ThreadExecutor) -> None:
    step = {"moments": {"layer": "relu1", "select": {"sample": 3}}}
    with pytest.raises(UsageError, match="the step needs its activations"):
        plan_job(make_job(step, layers={"relu1": {"keep": "stats"}}), threads)


def test_select__belongs_to_the_step_that_counts(make_job: MakeJob) -> None:
    with pytest.raises(SpecError, match="they were made of its images"):
        make_job("cooccurrence", {"similarity": {"of": "cooccurrence", "select": {"sample": 3}}})
