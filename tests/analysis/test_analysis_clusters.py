"""Clusters of neurons against SciPy's own cut of the tree."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, leaves_list
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import adjusted_rand_score

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError

EXECUTOR = ThreadExecutor(2)
RNG = np.random.default_rng(0)
SOURCES = RNG.standard_normal((60, 3))
KIND = np.array([0, 1, 2, 0, 0, 1, 0, 2])
VALUES = (SOURCES[:, KIND] * RNG.uniform(1, 3, 8) + 0.05 * RNG.standard_normal((60, 8))).astype("f4")


def layer(values: Any = VALUES, chunks: Any = None) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: values.ndim], name="layer")


def same(a: Any, b: Any) -> bool:
    return bool(adjusted_rand_score(a, b) == 1.0)


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
@pytest.mark.parametrize("metric", ["pearson", "euclidean"])
@pytest.mark.parametrize("cut", [{"count": 3}, {"count": 1}, {"count": 8}, {"distance": 0.2}, {"distance": 0.0}])
def test_clusters__as_scipy_cuts_the_tree(linkage: Any, metric: Any, cut: dict[str, Any]) -> None:
    if linkage == "ward" and metric == "pearson":
        return
    found = dn.clusters(layer(chunks=(13, 8)), metric=metric, linkage=linkage, client=EXECUTOR, **cut)
    z = VALUES.astype("f8").T
    apart = pdist(z) if metric == "euclidean" else squareform(1 - np.corrcoef(z), checks=False)
    tree = scipy_linkage(apart, linkage)
    np.testing.assert_allclose(found["linkage"], tree, rtol=1e-9, atol=1e-9)
    how = ("maxclust", cut["count"]) if "count" in cut else ("distance", cut["distance"])
    assert same(found["cluster"], fcluster(tree, how[1], how[0]))
    np.testing.assert_array_equal(np.argsort(found["order"].values), leaves_list(tree))
    np.testing.assert_array_equal(found["size"], np.bincount(found["cluster"]))
    assert (np.diff(found["size"]) <= 0).all()


def test_clusters__of_neurons_that_say_the_same() -> None:
    found = dn.clusters(layer(), distance=0.3, client=EXECUTOR)
    assert found["cluster"].values.tolist() == KIND.tolist(), "largest first, then by the first neuron"
    assert found["size"].values.tolist() == [4, 2, 2]
    for group in range(3):
        members = [int(m) for m in found["member"].values[group] if m >= 0]
        assert sorted(members) == np.flatnonzero(group == KIND).tolist()
        apart = 1 - found["pearson"].values[np.ix_(members, members)]
        assert (np.diff(apart.sum(1)) >= -1e-12).all(), "the most central first"
        assert found["medoid"].values[group] == members[0]
        assert found["spread"].values[group] == pytest.approx(apart.sum() / (len(members) * (len(members) - 1)))


def test_clusters__leave_out_what_does_not_vary() -> None:
    values = VALUES.copy()
    values[:, [1, 4]] = [0, 3.5]
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.clusters(layer(values), count=8, client=EXECUTOR)
    assert any("only 6 of 8 vary" in note for note in notes)
    assert found["cluster"].values[[1, 4]].tolist() == [-1, -1]
    assert sorted(found["cluster"].values.tolist()) == [-1, -1, 0, 1, 2, 3, 4, 5]
    assert sorted(found["order"].values[[1, 4]].tolist()) == [6, 7]
    assert sorted(found["order"].values.tolist()) == list(range(8))
    assert found["leaf_neuron"].values.tolist() == [0, 2, 3, 5, 6, 7]
    assert np.isnan(found["spread"]).all(), "there is no distance within one"
    dead = dn.clusters(layer(values[:, [1, 4]]), count=2, client=EXECUTOR)
    assert dead["cluster"].values.tolist() == [-1, -1]
    assert dead["order"].values.tolist() == [0, 1]
    assert dead.sizes["group"] == 0
    apart = dn.clusters(layer(values), metric="euclidean", count=8, client=EXECUTOR)
    assert (apart["cluster"] >= 0).all(), "constant neurons have distances"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_clusters__of_anything(data: st.DataObject) -> None:
    images, shape = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([(1,), (2,), (5,), (2, 2, 1)]))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-1, 2, (images, *shape))
    x = layer(values.astype(data.draw(st.sampled_from(["f2", "f4", "f8"]))))
    metric = data.draw(st.sampled_from(["pearson", "euclidean"]))
    neurons = int(np.prod(shape))
    count = data.draw(st.integers(1, neurons))
    found = dn.clusters(x, count=count, metric=metric, per="neuron", k=3, client=EXECUTOR)  # type: ignore[arg-type]
    cluster = found["cluster"].values
    live = np.isfinite(found[metric].values.diagonal())
    assert (cluster >= 0).tolist() == live.tolist()
    assert found.sizes["group"] == min(count, int(live.sum()))
    np.testing.assert_array_equal(np.bincount(cluster[live], minlength=found.sizes["group"]), found["size"])
    assert sorted(found["order"].values.tolist()) == list(range(neurons))
    for group, row in enumerate(found["member"].values):
        members = row[row >= 0]
        assert len(members) == min(3, int(found["size"][group]))
        assert (cluster[members] == group).all()


def test_clusters__of_counts_over_classes() -> None:
    counts = xr.DataArray(RNG.integers(0, 9, (6, 4)), dims=("channel", "class"))
    found = dn.clusters(counts, count=2, client=EXECUTOR)
    tree = scipy_linkage(squareform(1 - np.corrcoef(counts.values), checks=False), "average")
    assert same(found["cluster"], fcluster(tree, 2, "maxclust"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "one of count and distance says where the tree is cut"),
        ({"count": 2, "distance": 0.1}, "not both"),
        ({"count": 9}, "count=9 of 8 neurons"),
        ({"count": 0}, "count=0 of 8"),
        ({"count": True}, "count=True"),
        ({"distance": -0.1}, r"distance=-0\.1"),
        ({"distance": float("nan")}, "distance=nan"),
        ({"count": 2, "linkage": "ward"}, "ward"),
        ({"count": 2, "linkage": "centroid"}, "linkage='centroid'"),
        ({"count": 2, "metric": "cosin"}, "metric='cosin'"),
        ({"count": 2, "k": 0}, "k=0"),
    ],
)
def test_clusters__refuse_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        dn.clusters(layer(), **wrong)


def test_clusters__that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = layer(da.zeros((10, 100_000), chunks=(10, 100_000), dtype="f4"))
    plan = dn.plan("clusters", wide, count=3)
    assert plan.driver_bytes > 32 * 100_000**2
    for memory in (2**32, 2**50):  # that much is not there, whatever the executor is given
        with pytest.raises(MemoryLimitError, match=r"clusters needs .* in the driver") as caught:
            dn.clusters(wide, count=3, client=ThreadExecutor(1, memory=memory))
        assert "per='channel'" in str(caught.value.hint)
    with pytest.raises(NonFiniteError):
        dn.clusters(layer() * np.float32(np.nan), count=2)


def images(chunks: Any = (7, 3), dtype: str = "f4") -> xr.DataArray:
    """A layer (24, 6, 2, 1) whose images are of four kinds."""
    kinds = RNG.standard_normal((4, 6, 2, 1))
    values = (kinds[np.arange(24) % 4] + 0.1 * RNG.standard_normal((24, 6, 2, 1))).astype(dtype)
    x = layer(values, chunks=(*chunks, 2, 1))
    return x.assign_coords(label=("image", np.arange(24) % 2)).assign_attrs(class_names=["cat", "dog"])


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
@pytest.mark.parametrize("metric", ["pearson", "euclidean"])
@pytest.mark.parametrize("tiles", [True, False])
def test_clusters__of_images_as_scipy_cuts_the_tree(
    linkage: Any, metric: Any, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if linkage == "ward" and metric == "pearson":
        return
    if tiles:
        monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
        monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)
    x = images()
    found = dn.clusters(x, count=4, metric=metric, linkage=linkage, per="image", client=EXECUTOR)
    z = x.values.reshape(24, -1).astype("f8")
    apart = pdist(z) if metric == "euclidean" else squareform(1 - np.corrcoef(z), checks=False)
    tree = scipy_linkage(apart, linkage)
    np.testing.assert_allclose(found["linkage"], tree, rtol=1e-6, atol=1e-6)
    assert same(found["cluster"], fcluster(tree, 4, "maxclust"))
    assert same(found["cluster"], np.arange(24) % 4)
    assert found[metric].dims == ("image", "other_image")
    matrix = found[metric].values if metric == "euclidean" else 1 - found[metric].values
    np.testing.assert_allclose(matrix, squareform(apart), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["leaf_image"], np.arange(24))


def test_clusters__of_images_count_classes_and_keep_numbers(threads: ThreadExecutor) -> None:
    x = images().assign_coords(image=np.arange(24) * 10)
    gone = np.isin(np.arange(24), [0, 5, 6])
    values = x.values.copy()
    values[gone] = np.nan
    masked = x.copy(data=da.from_array(values, chunks=(5, 6, 2, 1))).assign_coords(status=("image", gone.astype("u1")))
    found = dn.clusters(masked, count=4, k=3, per="image", client=threads)
    rest = dn.clusters(x.isel(image=~gone), count=4, k=3, per="image", client=threads)
    for name in rest.data_vars:
        np.testing.assert_allclose(found[name], rest[name], rtol=1e-10)
    assert found["image"].values.tolist() == (np.flatnonzero(~gone) * 10).tolist()
    assert set(found["member"].values.ravel().tolist()) - {-1} <= set(found["image"].values.tolist())
    assert found["class_count"].sel({"class": "dog"}).sum() == (~gone & (np.arange(24) % 2 == 1)).sum()
    np.testing.assert_array_equal(found["class_count"].sum("class"), found["size"])
    chosen = dn.clusters(dn.select(x, classes=["cat"]), count=2, per="image", client=threads)
    assert same(chosen["cluster"], np.arange(24)[::2] % 4)


def test_clusters__of_scores_and_of_pooled_channels(threads: ThreadExecutor) -> None:
    x = images()
    by_channel = dn.clusters(x.max(("y", "x")), count=4, per="image", client=threads)
    by_score = dn.clusters(dn.svd(x, rank=3, client=threads)["score"], count=4, per="image", client=threads)
    for found in (by_channel, by_score):
        assert same(found["cluster"], np.arange(24) % 4)


def test_clusters__of_many_images_name_kmeans() -> None:
    many = layer(da.zeros((50_000, 10), chunks=(1000, 10), dtype="f4"))
    with pytest.raises(MemoryLimitError, match=r"clusters needs .* in the driver") as caught:
        dn.clusters(many, count=3, per="image", client=ThreadExecutor(1, memory=2**34))
    assert str(caught.value.hint).startswith("dn.kmeans")
    with pytest.raises(ArrayError, match="count=70 of 60 images"):
        dn.clusters(layer(), count=70, per="image")


def test_plan__counts_neurons_whatever_the_precision() -> None:
    """Products of many neurons over many images are in float32, half as large."""
    wide = layer(da.zeros((5000, 3000), chunks=(500, 1000), dtype="f4"))
    plan = dn.plan("clusters", wide, count=2900, client=ThreadExecutor(1, memory=2**36))
    assert "float32" in plan.method
    assert plan.driver_bytes > 32 * 3000**2
