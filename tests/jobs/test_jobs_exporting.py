"""Exported files are read back with what people use: pandas, xarray, an image reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import UsageError
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.store.netcdf import write_netcdf

STEPS: list[Any] = [
    {"moments": None}, {"moments": {"name": "each", "per": "neuron"}}, {"cooccurrence": {"k": 5}}, {"svd": {"rank": 3}},
    {"single_neurons": {"count": 3, "baseline": 3, "k": 4}}, {"similar_places": {"neighbours": 2}}, "regression",
    "connections", {"connections": {"name": "of-svd", "of": "svd"}},
]  # fmt: skip


@pytest.fixture
def store(make_job: Callable[..., JobSpec], threads: ThreadExecutor) -> dn.Store:
    return dn.open(run_job(make_job(*STEPS, layers=["relu1", "relu2", "fc"]), threads).store)


def test_export__writes_tables_datasets_and_figures(store: dn.Store, tmp_path: Path) -> None:
    folder = dn.export(store.path, to=tmp_path / "out")
    channels = pd.read_parquet(folder / "tables" / "relu2-channels.parquet")
    assert len(channels) == 20
    np.testing.assert_array_equal(channels["moments.mean"], store.results["moments"]["relu2"]["mean"])
    np.testing.assert_allclose(channels["regression.r2"], store.results["regression"]["relu2"]["r2"])
    again = pd.read_csv(folder / "tables" / "relu2-channels.csv")
    pd.testing.assert_frame_equal(again, channels, check_dtype=False)
    neurons = pd.read_parquet(folder / "tables" / "relu1-neurons.parquet")
    row = neurons[(neurons.channel == 3) & (neurons.y == 2) & (neurons.x == 7)]
    assert float(row["each.mean"].iloc[0]) == float(store.results["each"]["relu1"]["mean"][3, 2, 7])
    components = pd.read_csv(folder / "tables" / "fc-svd-components.csv")
    np.testing.assert_allclose(components["singular_value"], store.results["svd"]["fc"]["singular_value"])
    chosen = pd.read_csv(folder / "tables" / "relu2-single_neurons-chosen.csv")
    np.testing.assert_array_equal(chosen["neuron"], store.results["single_neurons"]["relu2"]["neuron"])
    images = pd.read_parquet(folder / "tables" / "images.parquet")
    assert images["label"].tolist() == store.images["label"].values.tolist()
    found = xr.open_dataset(folder / "netcdf" / "svd-relu1.nc", engine="scipy")
    for name in ("singular_value", "score", "vector"):
        np.testing.assert_array_equal(found[name], store.results["svd"]["relu1"][name])
    assert json.loads(found.attrs["parameters"])["rank"] == 3
    found.close()
    drawn = sorted((folder / "figures").glob("*.png"))
    assert any("single_neurons" in path.name for path in drawn)
    for path in drawn:
        Image.open(path).verify()
        assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
    captions = pd.read_csv(folder / "figures" / "captions.csv")
    assert sorted(captions["file"]) == [path.name for path in drawn]
    assert captions["caption"].str.len().min() > 20
    assert json.loads((folder / "dneuro-export.json").read_text())["left_out"] == {}


def test_export__replaces_its_own_and_nothing_else(store: dn.Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        dn.export(store.path, to=out, figures=False)
    assert not (out / "figures").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not replaced"):
        dn.export(store.path, to=tmp_path / "mine")


def test_netcdf__keeps_what_the_format_has_no_type_for(tmp_path: Path) -> None:
    data = xr.Dataset(
        {
            "half": ("a", np.array([0.5, np.nan], "f2")), "long": ("a", np.array([1, 2**40])),
            "flag": ("a", [True, False]), "byte": ("a", np.array([200, 3], "u1")),
        },
        coords={"name": ("a", ["ä", "long name"])},
        attrs={"none": None, "dict": {"k": 1}, "many": [1, 2], "big": 2**40},
    )  # fmt: skip
    write_netcdf(data, tmp_path / "a.nc")
    found = xr.open_dataset(tmp_path / "a.nc", engine="scipy")
    np.testing.assert_array_equal(found["half"], data["half"])
    assert found["long"].values.tolist() == [1, 2**40]
    assert found["flag"].values.tolist() == [True, False]
    assert found["byte"].values.tolist() == [200, 3]
    assert [str(name) for name in found["name"].values] == ["ä", "long name"]
    assert json.loads(found.attrs["dict"]) == {"k": 1}
    found.close()


def test_steps__about_two_layers_give_what_the_functions_give(store: dn.Store, threads: ThreadExecutor) -> None:
    regressed = dn.regression(store["relu2"], source=store["relu1"], client=threads)
    xr.testing.assert_allclose(store.results["regression"]["relu2"]["coefficient"].reset_coords(drop=True),
                               regressed["coefficient"].reset_coords(drop=True))  # fmt: skip
    assert set(store.results["regression"]) == {"relu2", "fc"}
    weights = dn.weights_between("dneuro:convnet", source="relu1", target="relu2", weights="none")
    found = store.results["connections"]["relu2"]
    np.testing.assert_allclose(found["strength"], np.linalg.norm(weights.values.reshape(20, 10, 25), axis=2))
    back = dn.connections(weights, directions=store.results["svd"]["relu2"]["vector"].load())
    np.testing.assert_allclose(store.results["of-svd"]["relu2"]["strength"], back["strength"])
    assert store.results["connections"]["fc"].attrs["source"] == "relu2"
    assert set(store.results["similar_places"]) == {"relu1", "relu2"}
