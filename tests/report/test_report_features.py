"""Sections for single neurons, places and what feeds a layer, and the page that lays the layers side by side."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.report.sections.svd import common
from dneuro.report.words import percent
from dneuro.report.write import write_figures, write_report

COUNT, CLASSES = 24, ["zero", "one", "two", "three"]
Pages = dict[str, Any]


@pytest.fixture(scope="module")
def tree(images: xr.Dataset) -> xr.DataTree:
    """Two layers with what the functions find out about them."""
    rng, root, threads = np.random.default_rng(2), images, ThreadExecutor(2)
    parts: dict[str, xr.Dataset] = {"/": root}
    layers: dict[str, xr.DataArray] = {}
    for order, (name, shape) in enumerate((("one", (4, 3, 3)), ("two", (6, 2, 2)))):
        values = np.maximum(rng.normal(size=(COUNT, *shape)), 0).astype("f4")
        x = xr.DataArray(values, dims=("image", "channel", "y", "x"), attrs={"layer": name},
                         coords={"label": ("image", root["label"].values)})  # fmt: skip
        layers[name] = x
        parts[f"/layers/{name}"] = xr.Dataset(attrs={"layer": name, "order": order, "shape": list(shape)})
        found: dict[str, Any] = {
            "top_images": dn.top_images(x, k=6, client=threads),
            "single_neurons": dn.single_neurons(x, count=3, baseline=2, k=6, client=threads),
            "svd": dn.svd(x, rank=5, client=threads),
            "similar_places": dn.similar_places(x, neighbours=2, client=threads),
        }
        if name == "two":
            weights = xr.DataArray(rng.normal(size=(6, 4, 3, 3)), dims=("channel", "source_channel", "y", "x"),
                                   attrs={"layer": "two", "source": "one", "module": "conv", "groups": 2})  # fmt: skip
            found["regression"] = dn.regression(x, source=layers["one"], folds=4, client=threads)
            found["connections"] = dn.connections(weights, k=3)
            found["back"] = dn.connections(weights, directions=found["svd"]["vector"], k=3)
        for step, data in found.items():
            parts[f"/results/{step}/{name}"] = data.assign_attrs(step=step, fingerprint="ab")
    return xr.DataTree.from_dict(parts)


@pytest.fixture(scope="module")
def pages(
    tree: xr.DataTree, tmp_path_factory: pytest.TempPathFactory, pictures: Any, read_pages: Callable[..., Pages]
) -> Pages:
    """Its report."""
    return read_pages(write_report(tree, tmp_path_factory.mktemp("features"), pictures=pictures, neurons=3, images=2))


def test_pages__come_in_the_order_of_the_paper(tree: xr.DataTree, pages: Pages) -> None:
    page = pages["layer-two.html"]
    places = [page.source.index(f'<section id="{anchor}">') for anchor in (
        "top_images", "single_neurons", "svd", "similar_places", "regression", "connections"
    )]  # fmt: skip
    assert places == sorted(places)
    neurons = tree["results/single_neurons/two"].to_dataset()
    first = neurons.isel(chosen=0)
    place = f"({int(first.channel_place)},{int(first.y_place)},{int(first.x_place)})"
    assert f"Neuron {place}" in page.text
    assert "Random neuron (" in page.text
    assert "Two random sets of images would share 0.25" in page.text
    assert "per entry (root mean square)" in page.text
    share = tree["results/similar_places/two"].attrs["own_share"]
    assert f"in the same channel {100 * share:.3g} %" in page.text
    assert "The convolution has 2 groups" in page.text
    strongest = int(tree["results/connections/two"]["strongest"][0, 0])
    assert f"channel {strongest}, sum of weights" in page.source
    assert "Component 1" in page.text


def test_layers__lie_side_by_side(tree: xr.DataTree, pages: Pages) -> None:
    page = pages["layers.html"]
    assert "layers.html" in pages["index.html"].links
    for name in ("one", "two"):
        data = tree[f"results/svd/{name}"]
        total = np.sqrt(data.attrs["total_variance"])
        assert f"layer-{name}.html" in page.links
        assert f"{total:.3g}" in page.text
    large = 200 * np.sqrt((COUNT - 1) / 6000)  # one image of the store is masked
    count = int((tree["results/svd/one"]["singular_value"] >= large).sum())
    assert f"σ ≥ {large:.3g}" in page.text
    said = f"≥ {count}" if count == 5 else f"{count}"
    assert f'<td class="number">{said}</td>' in page.source
    assert len(page.images) == 2


def test_common__is_the_mean_share_of_two_lists() -> None:
    tops = np.array([[0, 1, 2, 3], [3, 2, 7, 8], [9, 8, 7, 6]])
    pairs = [len(set(one) & set(other)) / 4 for one, other in itertools.combinations(tops.tolist(), 2)]
    assert common(tops) == pytest.approx(np.mean(pairs))
    assert common(np.repeat(tops[:1], 5, axis=0)) == 1
    assert np.isnan(common(tops[:1]))


def test_layers__say_how_redundant_components_are(tree: xr.DataTree, pages: Pages) -> None:
    data = tree["results/svd/two"].to_dataset()
    score = np.where(np.isfinite(data["score"]), data["score"], -np.inf)
    single = tree["results/single_neurons/two"].to_dataset()
    k = int(re.search(r"the k = (\d+) images", pages["layer-two.html"].text)[1])  # type: ignore[index]
    tops = [set(np.argsort(-column, kind="stable")[:k].tolist()) for column in score.T]
    shared = np.mean([len(one & other) / k for one, other in itertools.combinations(tops, 2)])
    assert f"two components have on average {percent(float(shared))} in common" in pages["layer-two.html"].text
    page = pages["layers.html"]
    assert "by two such neurons" in page.text
    assert f'<td class="number">{percent(float(shared))}</td>' in page.source
    own = [set(row[:k].tolist()) for row in single["top_image"].values[~single["random"].values]]
    theirs = np.mean([len(one & other) / k for one, other in itertools.combinations(own, 2)])
    assert f'<td class="number">{percent(float(theirs))}</td>' in page.source


def test_layers__page_is_left_out_where_there_is_one_spectrum(
    tree: xr.DataTree, tmp_path: Path, read_pages: Callable[..., dict[str, Any]]
) -> None:
    parts = {node.path: node.to_dataset(inherit=False) for node in tree.subtree if node.path != "/results/svd/one"}
    pages = read_pages(write_report(xr.DataTree.from_dict(parts), tmp_path / "out", pictures=None, index=False))
    assert "layers.html" not in pages
    assert "layers.html" not in pages["index.html"].links


def test_figures__are_written_as_vectors_too(tree: xr.DataTree, tmp_path: Path) -> None:
    plates = write_figures(tree, tmp_path)
    names = {Path(plate.src).stem for plate in plates}
    assert {"one-svd-spectrum", "two-single_neurons-overlap", "two-regression-explained"} <= names
    for plate in plates:
        assert ElementTree.parse((tmp_path / plate.src).with_suffix(".svg")).getroot().tag.endswith("svg")
