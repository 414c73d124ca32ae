"""Steps over what another step found out about several layers, run as parts of a job, reported, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import UsageError
from dneuro.jobs import across
from dneuro.jobs.driver import run_job
from dneuro.jobs.members import run_members
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec, SeriesSpec, parse_study

MakeJob = Callable[..., JobSpec]
LAYERS = {"relu1": {"keep": "max"}, "relu2": {"keep": "stats"}, "fc": {}}
STEPS: list[Any] = [
    {"cooccurrence": {"k": 8}},
    {"selectivity": {"of": "cooccurrence", "chance": 20}},
    {"facets": {"k": 3}},
    {"facets": {"name": "by-layer", "per_layer": True, "layer": ["relu1", "fc"]}},
    {"similarity": {"name": "alike", "of": "cooccurrence"}},
    {"mean_similarity": {"name": "mean-alike", "of": "alike"}},
    {"similarity": None},
    {"mean_similarity": None},
]


@pytest.fixture
def store(make_job: MakeJob, threads: ThreadExecutor) -> dn.Store:
    return dn.open(run_job(make_job(*STEPS, layers=LAYERS), threads).store)


def test_steps__give_what_the_functions_give(store: dn.Store, threads: ThreadExecutor) -> None:
    found = dn.facets({layer: data.load() for layer, data in store.results["selectivity"].items()}, k=3)
    kept = store.results["facets"]
    assert list(kept) == ["relu1", "relu2", "fc", "layers"]
    xr.testing.assert_equal(kept["layers"].load(), found.to_dataset())
    for layer in ("relu1", "relu2", "fc"):
        xr.testing.assert_equal(kept[layer].load(), found[layer].to_dataset(inherit=False))
        assert kept[layer].attrs["layer"] == layer
    assert kept["layers"].attrs["parameters"] == {"of": "selectivity", "per_layer": False, "cutoff": 0.05, "k": 3}
    assert kept["layers"].attrs["layer"] == ""
    assert store.results["by-layer"]["layers"]["layer"].values.tolist() == ["relu1", "fc"]
    assert len(set(store.results["by-layer"]["layers"]["threshold"].values.tolist())) == 2
    for name, of in (("mean-alike", "alike"), ("mean_similarity", "similarity")):
        matrices = {layer: data.load() for layer, data in store.results[of].items()}
        assert list(store.results[name]) == ["layers"]
        xr.testing.assert_equal(store.results[name]["layers"].load(), dn.mean_similarity(matrices, client=threads))
        assert store.results[name]["layers"].attrs["parameters"] == {"of": of}


def test_counts__are_of_activations_above_zero_alone(store: dn.Store) -> None:
    x = store["relu1"].values
    dead = (x > 0).sum(0) == 0
    counted = store.results["selectivity"]["relu1"]["counted"].values
    np.testing.assert_array_equal(counted, np.minimum((x > 0).sum(0), 8))
    np.testing.assert_array_equal(np.isnan(store.results["facets"]["relu1"]["mf"].values), dead)


def test_again__only_what_has_changed(make_job: MakeJob, threads: ThreadExecutor) -> None:
    first = run_job(make_job(*STEPS, layers=LAYERS), threads)
    again = run_job(make_job(*STEPS, layers=LAYERS), threads)
    assert (again.computed, again.kept) == (0, first.computed)
    changed = [{"facets": {"k": 3, "cutoff": 0.2}} if step == STEPS[2] else step for step in STEPS]
    assert run_job(make_job(*changed, layers=LAYERS), threads).computed == 1
    fewer = [{"cooccurrence": {"k": 4}}, *STEPS[1:]]
    assert run_job(make_job(*fewer, layers=LAYERS), threads).computed == first.computed - 4, "not of activations"
    assert dn.verify(first.store).ok


def test_plan__has_a_line_for_all_layers_and_says_what_is_read(make_job: MakeJob, threads: ThreadExecutor) -> None:
    found = plan_job(make_job(*STEPS, layers=LAYERS), threads)
    plans = {(question.step.id, question.layer): one for question, one in found.steps}
    assert plans["facets", "layers"].passes == 0
    one = plans["mean_similarity", "layers"]
    assert (one.passes, one.read_bytes) == (1, 2 * 8 * (10**2 + 20**2 + 10**2))


def test_step__about_a_step_that_is_asked_of_nothing(make_job: MakeJob, threads: ThreadExecutor) -> None:
    seen: list[str] = []
    steps = [{"selectivity": {"per": "neuron", "select": {"sample": 30}}}, "facets"]
    with events.listening(lambda event: seen.append(event.message)):
        assert run_job(make_job(*steps, layers={"relu1": {"keep": "max"}}), threads).computed == 0
    assert "is left out: step selectivity is asked of no layer" in seen


def test_step__refuses_a_layer_with_the_name_of_its_own_result(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(across, "LAYERS", "relu1")
    with pytest.raises(UsageError, match="facets: a layer is called 'relu1'"):
        plan_job(make_job("cooccurrence", {"selectivity": {"of": "cooccurrence"}}, "facets"), threads)


def test_facets__warn_in_a_job_of_small_classes(make_job: MakeJob, threads: ThreadExecutor) -> None:
    """Four digits of each kind, and eight counted."""
    seen: list[events.Event] = []
    with events.listening(seen.append):
        run_job(make_job(*STEPS[:3], layers=LAYERS), threads)
    warnings = [event for event in seen if event.kind == "warning"]
    assert len(warnings) == 1, "not once per layer"
    assert "flatness cannot fall below" in warnings[0].message


def test_members__are_asked_of_the_layers_they_have(tmp_path: Path, threads: ThreadExecutor) -> None:
    network = {"name": "dneuro:convnet", "weights": "none"}
    job = {
        "name": "two", "images": {"source": "digits", "sample": 40}, "store": str(tmp_path / "two.zarr"),
        "networks": {"whole": network, "end": {**network, "layers": {"fc": {}}}},
        "steps": [
            {"extract": {"layers": ["relu1", "fc"], "images_per_unit": 16}},
            {"cooccurrence": {"k": 4, "layer": "relu1"}},
            {"selectivity": {"of": "cooccurrence", "layer": "relu1"}}, "facets", "similarity", "mean_similarity",
        ],
    }  # fmt: skip
    series = parse_study(json.dumps(job))
    assert isinstance(series, SeriesSpec)
    found = {name: dn.open(result.store).results for name, result in run_members(series, threads).items()}
    assert list(found["whole"]["facets"]) == ["relu1", "layers"]
    assert "facets" not in found["end"]
    assert found["end"]["mean_similarity"]["layers"]["layer"].values.tolist() == ["fc"]


def test_export__has_a_table_over_the_layers_and_its_figures(store: dn.Store, tmp_path: Path) -> None:
    folder = dn.export(store.path, to=tmp_path / "out")
    tables = folder / "tables"
    layers = pd.read_parquet(tables / "facets-layers.parquet")
    assert layers["layer"].tolist() == ["relu1", "relu2", "fc"]
    for name in ("mf_mean", "single_share", "gini_std", "threshold", "mf_chance"):
        np.testing.assert_array_equal(layers[name], store.results["facets"]["layers"][name])
    pd.testing.assert_frame_equal(pd.read_csv(tables / "facets-layers.csv"), layers, check_dtype=False)
    alike = pd.read_csv(tables / "mean-alike-layers.csv")
    np.testing.assert_allclose(alike["pearson"], store.results["mean-alike"]["layers"]["pearson"])
    channels = pd.read_parquet(tables / "relu1-channels.parquet")
    np.testing.assert_array_equal(channels["facets.mf"], store.results["facets"]["relu1"]["mf"])
    assert channels["facets.significant"].dtype == bool
    assert pd.read_csv(tables / "fc-facets-ranks.csv")["lowest"].tolist() == (
        store.results["facets"]["fc"]["lowest"].values.tolist()
    )
    with xr.open_dataset(folder / "netcdf" / "facets-layers.nc", engine="scipy") as found:
        np.testing.assert_array_equal(found["mf_std"], store.results["facets"]["layers"]["mf_std"])
    captions = pd.read_csv(folder / "figures" / "captions.csv").set_index("file")["caption"]
    for name in ("facets-mf", "facets-shape", "facets-fractions", "facets-flatness-densities", "mean-alike-pearson"):
        assert len(captions[f"{name}.png"]) > 100
        Image.open(folder / "figures" / f"{name}.png").verify()
        assert (folder / "figures" / f"{name}.svg").is_file()
    for name in ("relu1-facets-mf", "relu1-selectivity-gini", "relu1-selectivity-flatness", "relu1-alike-pearson"):
        assert f"{name}.png" in captions.index
