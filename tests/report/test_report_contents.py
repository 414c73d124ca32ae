from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

from dneuro.report.contents import Field, file_names, read
from dneuro.report.sections import cooccurrence
from dneuro.report.sections.picking import most_varied, thin


def test_file_names__are_safe_and_differ_in_any_file_system():
    names = ["features.12", "a/b", "a-b", "A-B", "..", "<script>", "", "x" * 300, "x" * 299, "層"]
    files = file_names(names)
    assert files[0] == "features.12"
    assert len({file.casefold() for file in files}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", file) for file in files)
    assert not any(file.startswith(".") or len(file) > 100 for file in files)


def test_field__gives_what_a_position_sees():
    assert Field(size=(3, 5), stride=(2, 4), start=(-1, -2)).box(3, 1) == (5, 2, 8, 7)


def test_read__orders_layers_by_the_store_then_by_the_job(parts):
    tree = xr.DataTree.from_dict(parts)
    assert [layer.name for layer in read(tree).layers] == ["conv.10", "conv.9", "fc"]
    job = {"steps": [{"extract": {"layers": {"fc": {}, "conv.9": {}, "conv.10": {}}}}]}
    assert [layer.name for layer in read(tree, job).layers] == ["fc", "conv.9", "conv.10"]


def test_read__otherwise_takes_numbers_in_names_as_numbers(parts):
    for part in parts.values():
        part.attrs.pop("order", None)
    assert [layer.name for layer in read(xr.DataTree.from_dict(parts)).layers] == ["conv.9", "conv.10", "fc"]


def test_read__orders_steps_by_the_job(tree):
    job = {"steps": [{"similarity": {}}, {"svd": {"rank": 3}}, {"cooccurrence": {"name": "cof"}}]}
    results = read(tree, job).layers[0].results
    assert [r.step for r in results if not r.recorded] == ["similarity", "svd", "cof"]


def test_read__finds_a_layer_whose_name_has_slashes(parts):
    parts["/layers/block/0/conv"] = parts["/layers/fc"].assign_attrs(layer="block/0/conv")
    parts["/results/svd/block/0/conv"] = parts["/results/svd/fc"].assign_attrs(layer="block/0/conv")
    layer = next(layer for layer in read(xr.DataTree.from_dict(parts)).layers if layer.name == "block/0/conv")
    assert {r.analysis for r in layer.results} == {"moments", "top_images", "svd"}


def test_read__accuracy_leaves_out_masked_and_unlabelled_images(root):
    root["label"].values[7] = -1
    assert read(xr.DataTree(root)).images.correct == (21, 22)  # of 24: one masked, one unlabelled; one wrong


def test_most_varied__ranks_by_variance_with_nan_last(tree):
    layer = read(tree).layers[0]
    variance = layer.data["variance"].values
    variance[0] = np.nan
    chosen, _ = most_varied(layer, layer.data["top_image"], ("channel",), 9)
    assert [feature.index[0] for feature in chosen] == [*np.argsort(-np.nan_to_num(variance, nan=-1), kind="stable")]
    assert chosen[-1].name == "channel 0"


def test_thin__keeps_what_fits_and_halves_what_does_not():
    small = xr.DataArray(np.zeros((4, 3)), dims=("channel", "class"))
    assert thin(small, ("channel",))[1] == 1
    large = xr.DataArray(np.broadcast_to(np.float32(0), (6000, 6000)), dims=("channel", "other_channel"))
    thinned, step = thin(large, ("channel", "other_channel"))
    assert (thinned.shape, step) == ((3000, 3000), 2)


def test_cooccurrence__rows_come_by_dominating_class_then_by_devotion():
    counts = np.array([[0, 0, 0], [1, 2, 7], [9, 1, 0], [0, 1, 9], [5, 4, 1]], dtype=np.float32)
    assert [*cooccurrence.by_dominating_class(counts)] == [2, 4, 3, 1, 0]


@pytest.mark.parametrize("described", [None, {"size": [3, 3], "stride": [1, 1], "start": [0, 0]}])
def test_layer__tells_a_field_that_is_everything_from_one_that_is_unknown(described):
    data = xr.Dataset(attrs={"layer": "a", "receptive_field": described})
    layers = read(xr.DataTree.from_dict({"/layers/a": data, "/layers/b": xr.Dataset(attrs={"layer": "b"})})).layers
    assert layers[0].knows_field
    assert (layers[0].field is None) == (described is None)
    assert not layers[1].knows_field


def test_predicted_name__is_the_networks_and_not_the_images(root: xr.Dataset):
    images = read(xr.DataTree(root)).images
    assert [images.predicted_name(n) for n in (1, 4, -1)] == ["one", "class 4", "class -1"]
    assert read(xr.DataTree(root.drop_vars("correct"))).images.predicted_name(1) == "class 1"
    root["prediction"].attrs["class_names"] = ["tench", "goldfish"]
    images = read(xr.DataTree(root)).images
    assert [images.predicted_name(n) for n in (1, 2)] == ["goldfish", "class 2"]
    assert images.class_name(1) == "one"
