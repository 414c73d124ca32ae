"""The steps nmf and coupled_nmf of a job: one layer, several, the pictures; a run that is killed in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import SpecError, UsageError
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
ASKED: dict[str, Any] = {"rank": 3, "max_iter": 8, "tol": 0}
COUPLED: dict[str, Any] = {**ASKED, "pictures": True, "weights": "equal", "layer": ["relu1", "relu2"]}
LAYERS = ["relu1", "relu2"]


class KilledError(Exception):
    """A run that ends without cleaning up."""


def test_nmf_step__is_dn_nmf(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job({"nmf": {**ASKED, "layer": "relu1"}}, layers=LAYERS)
    assert run_job(job, threads).computed == 1
    store = dn.open(job.store)
    found, expected = store.results["nmf"]["relu1"], dn.nmf(store["relu1"], client=threads, **ASKED)
    for name in ("image_weight", "neuron_weight", "size", "loss"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found["neuron_weight"].dims == ("component", "channel", "y", "x")
    assert found.attrs["iterations"] == 8


def test_coupled_step__writes_what_is_shared_and_what_is_its_own_for_every_layer(
    make_job: MakeJob, threads: ThreadExecutor
) -> None:
    job = make_job({"coupled_nmf": COUPLED}, layers=[*LAYERS, "fc"])
    plan = plan_job(job, threads)
    assert [(question.layer, one.passes) for question, one in plan.steps] == [("pictures + relu1 + relu2", 1 + 3 + 8)]
    first = run_job(job, threads)
    assert (first.computed, first.kept) == (1, 0)
    again = run_job(job, threads)
    assert (again.computed, again.kept) == (0, 1)
    store = dn.open(job.store)
    found = store.results["coupled_nmf"]
    assert list(found) == ["pictures", "relu1", "relu2"]
    pictures = store.tree["pictures"]["picture"].astype("float32") / np.float32(255)
    xs = {"pictures": pictures, "relu1": store["relu1"], "relu2": store["relu2"]}
    expected = dn.coupled_nmf(xs, weights="equal", client=threads, **ASKED)
    for name, result in found.items():
        np.testing.assert_allclose(result["neuron_weight"], expected[name]["neuron_weight"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result["image_weight"], expected["image_weight"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result["loss"], expected["loss"], rtol=1e-6)
        np.testing.assert_allclose(result["layer_loss"], expected[name]["loss"], rtol=1e-5)
        assert result.attrs["layer"] == name
        assert result.attrs["layers"] == ["pictures", "relu1", "relu2"]


@pytest.mark.parametrize("step", [{"nmf": {**ASKED, "layer": "relu1"}}, {"coupled_nmf": COUPLED}])
def test_killed_step__goes_on_from_its_last_iteration(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    monkeypatch.setattr("dneuro.analysis.nonnegative.checkpoint.EVERY", 0.0)
    job, straight = make_job(step, layers=LAYERS), make_job(step, layers=LAYERS, store="straight.zarr")
    kind = next(iter(step))

    def kill(event: events.Event) -> None:
        if event.step == kind and event.what == "iterations" and event.done == 6:
            raise KilledError

    with pytest.raises(KilledError), events.listening(kill):
        run_job(job, threads)
    folder = units_folder(job.store) / "results" / kind
    assert len(list(folder.rglob("*.npz"))) == 1
    seen: list[events.Event] = []
    with events.listening(seen.append):
        assert run_job(job, threads).computed == 1
    assert [e.message for e in seen if "goes on" in e.message] == ["goes on after iteration 5"]
    assert [e.done for e in seen if e.what == "iterations" and e.kind == "progress"] == [6, 7, 8]
    assert not list(folder.rglob("*.npz")), "what is done needs no state"
    run_job(straight, threads)
    resumed, whole = (dn.open(some.store).results[kind]["relu1"] for some in (job, straight))
    for name in ("image_weight", "neuron_weight", "loss"):
        np.testing.assert_allclose(resumed[name], whole[name], rtol=1e-5, atol=1e-6)


def test_masked_images__have_no_weight(
    make_job: MakeJob, threads: ThreadExecutor, make_photos: Callable[..., dict[str, Any]]
) -> None:
    photos = make_photos(24, broken=[3])
    coupled = {"coupled_nmf": {**ASKED, "pictures": True, "layer": ["relu1"]}}
    job = make_job({"nmf": {**ASKED, "layer": "relu1"}}, coupled, layers=LAYERS, **photos)
    run_job(job, threads)
    for kind in ("nmf", "coupled_nmf"):
        weights = dn.open(job.store).results[kind]["relu1"]["image_weight"]
        assert np.flatnonzero(np.isnan(weights).all("component")).tolist() == [3]


def test_coupled_step__what_cannot_be_asked(make_job: MakeJob, threads: ThreadExecutor) -> None:
    stats = {"relu1": {"keep": "stats"}, "relu2": {}}
    with pytest.raises(UsageError, match="coupled_nmf: layer relu1 has keep: stats"):
        plan_job(make_job({"coupled_nmf": ASKED}, layers=stats), threads)
    with pytest.raises(UsageError, match="couples the pictures, and none are kept"):
        plan_job(make_job({"coupled_nmf": COUPLED}, layers=LAYERS, thumbnails=False), threads)
    with pytest.raises(UsageError, match="weights="):
        plan_job(make_job({"coupled_nmf": {**ASKED, "weights": [1, 2, 3]}}, layers=LAYERS), threads)
    with pytest.raises(SpecError, match="does not store layer 'relu9'"):
        make_job({"coupled_nmf": {**ASKED, "layer": ["relu1", "relu9"]}}, layers=LAYERS)


def test_state__of_a_changed_step_is_not_gone_on_from(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dneuro.analysis.nonnegative.checkpoint.EVERY", 0.0)

    def kill(event: events.Event) -> None:
        if event.what == "iterations" and event.done == 3:
            raise KilledError

    with pytest.raises(KilledError), events.listening(kill):
        run_job(make_job({"nmf": {**ASKED, "layer": "relu1"}}, layers=LAYERS), threads)
    changed = make_job({"nmf": {**ASKED, "rank": 2, "layer": "relu1"}}, layers=LAYERS)
    run_job(changed, threads)
    assert dn.open(changed.store).results["nmf"]["relu1"].sizes["component"] == 2
    assert not list((units_folder(changed.store) / "results" / "nmf").rglob("*.npz"))
