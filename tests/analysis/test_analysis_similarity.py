"""Correlations and distances where digits are lost, and of counts."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import pdist, squareform

import dneuro as dn
from dneuro import events
from dneuro.analysis.arrays import view
from dneuro.analysis.keeping import COLLECTED_PAIR_BYTES, KeepPairs, Pairs
from dneuro.analysis.turned import turned
from dneuro.engine import ThreadExecutor
from dneuro.engine.blocks import Block
from dneuro.engine.parts import Source
from dneuro.engine.residence import is_resident
from dneuro.errors import MemoryLimitError, NonFiniteError
from dneuro.quantities import GiB, MiB

RNG = np.random.default_rng(0)


def labelled(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(da.from_array(values, chunks=(170, *values.shape[1:])), dims=("image", "channel"))


def passes(call: Any) -> tuple[Any, int]:
    """Return a result and how often the array was read for it."""
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = call()
    return result, sum(event.kind == "started" for event in seen)


def test_similarity__large_mean_and_small_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 20_000)
    values = (1e4 + RNG.standard_normal((2000, 8)) @ RNG.standard_normal((8, 8))).astype("f4")
    found, reads = passes(lambda: dn.similarity(labelled(values)))
    np.testing.assert_allclose(found["pearson"], np.corrcoef(values, rowvar=False, dtype="f8"), atol=1e-10)
    np.testing.assert_allclose(found["euclidean"], squareform(pdist(values.T.astype("f8"))), rtol=1e-9)
    assert reads == 1, "nothing cancels about the mean"


def test_similarity__neurons_that_are_almost_the_same() -> None:
    values = RNG.standard_normal((2000, 6)).astype("f4")
    values[:, 1] = values[:, 0]
    values[:, 2] = values[:, 0]
    values[17, 2] += np.float32(1e-3)
    found, reads = passes(lambda: dn.similarity(labelled(values)))
    expected = squareform(pdist(values.T.astype("f8")))
    assert expected[0, 2] == pytest.approx(1e-3, rel=1e-3)
    np.testing.assert_allclose(found["euclidean"], expected, rtol=1e-9)
    assert found["euclidean"][0, 1] == 0
    assert found["pearson"][0, 1].item() == pytest.approx(1, abs=1e-14)
    assert reads == 2
    assert passes(lambda: dn.similarity(labelled(values), metric="pearson"))[1] == 1


def test_similarity__many_dead_neurons_cost_no_second_pass() -> None:
    values = np.maximum(RNG.standard_normal((500, 40)), 0).astype("f4")
    values[:, 5:35] = 0
    values[:, 3] = 2.5
    found, reads = passes(lambda: dn.similarity(labelled(values)))
    assert reads == 1
    assert (found["euclidean"][5:35, 5:35] == 0).all()
    np.testing.assert_allclose(found["euclidean"], squareform(pdist(values.T.astype("f8"))), rtol=1e-12)
    constant = np.ptp(values, axis=0) == 0
    assert (np.isnan(found["pearson"]) == (constant[:, None] | constant[None, :])).all()


@pytest.mark.parametrize("images", [3, 10, 170, 1001])
def test_similarity__constant_neurons_in_float64(images: int) -> None:
    """The mean of many times 0.1 is not always 0.1, and what is left is no variation."""
    values = np.random.default_rng(3).standard_normal((images, 3))
    values[:, 0], values[:, 2] = 0.1, 1 / 3
    found = dn.similarity(labelled(values))
    assert np.isnan(found["pearson"].values).sum() == 8
    assert found["pearson"][1, 1] == 1
    np.testing.assert_allclose(found["euclidean"], squareform(pdist(values.T)), rtol=1e-12)


def test_similarity__of_counts_compares_them_over_the_classes() -> None:
    rng = np.random.default_rng(1)
    x = labelled(rng.standard_normal((300, 7)).astype("f4"))
    x = x.assign_coords(label=("image", rng.integers(0, 5, 300))).assign_attrs(class_names=list("abcde"))
    counts = dn.cooccurrence(x, k=23)["count"]  # 23 is no multiple of 5: no row is constant
    found = dn.similarity(counts)
    table = counts.values.astype("f8")
    np.testing.assert_allclose(found["pearson"], np.corrcoef(table), atol=1e-12)
    np.testing.assert_allclose(found["euclidean"], squareform(pdist(table)), rtol=1e-12)
    assert (found.attrs["classes"], "images" in found.attrs) == (5, False)
    plan = dn.plan("similarity", counts)
    assert plan.result_bytes == 2 * 8 * 7 * 7


def test_similarity__of_counts_of_neurons() -> None:
    values = np.random.default_rng(2).standard_normal((60, 3, 2, 2)).astype("f4")
    x = xr.DataArray(values, dims=("image", "channel", "y", "x"), coords={"label": ("image", np.arange(60) % 4)})
    counts = dn.cooccurrence(x, k=9, per="neuron")["count"]
    assert counts.shape == (3, 2, 2, 4)
    found = dn.similarity(counts)
    assert found["pearson"].dims == ("neuron", "other_neuron")
    expected = np.corrcoef(counts.values.reshape(12, 4))
    np.testing.assert_allclose(found["pearson"], expected, atol=1e-12)


@pytest.mark.parametrize("metric", ["pearson", "euclidean"])
def test_similarity__one_metric_gives_one_matrix(metric: str) -> None:
    found = dn.similarity(labelled(RNG.standard_normal((50, 4)).astype("f4")), metric=metric)
    assert list(found) == [metric]


def test_similarity__of_one_image_has_no_correlation() -> None:
    found = dn.similarity(xr.DataArray(np.ones((1, 3), "f4"), dims=("image", "channel")))
    assert np.isnan(found["pearson"]).all()
    assert (found["euclidean"] == 0).all()


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("chunks", [None, (7, 2, 3, 1), (60, 1, 3, 2), (13, 5, 1, 2)])
def test_similarity__of_images_compares_them_over_the_neurons(
    tiles: bool, dtype: str, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiles:
        monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
        monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)
    values = np.random.default_rng(4).standard_normal((60, 5, 3, 2)).astype(dtype)
    values[7] = 0.25  # does not vary over the neurons
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    x = xr.DataArray(data, dims=("image", "channel", "y", "x"), coords={"image": np.arange(60) + 100})
    metrics = ["pearson", "euclidean", "cosine", "covariance"]
    found = dn.similarity(x, metric=metrics, per="image", client=ThreadExecutor(2))
    table = values.reshape(60, -1).astype("f8")
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = {"pearson": np.corrcoef(table), "covariance": np.cov(table)}
    expected["euclidean"] = squareform(pdist(table))
    expected["cosine"] = 1 - squareform(pdist(table, "cosine"))
    for metric in metrics:
        assert found[metric].dims == ("image", "other_image")
        np.testing.assert_allclose(found[metric], expected[metric], rtol=1e-6, atol=1e-6)
    assert np.isnan(found["pearson"][7]).all()
    assert found["image"].values.tolist() == found["other_image"].values.tolist() == list(range(100, 160))
    assert found.attrs["images"] == 60


def test_similarity__nearest_images_go_by_their_numbers() -> None:
    values = np.random.default_rng(5).standard_normal((30, 8)).astype("f4")
    gone = np.isin(np.arange(30), [2, 11])
    x = xr.DataArray(values, dims=("image", "channel"), coords={"image": np.arange(30) * 10})
    x = x.assign_coords(status=("image", gone.astype("u1")))
    found = dn.similarity(x, metric="euclidean", per="image", neighbours=3)
    kept = np.flatnonzero(~gone)
    apart = squareform(pdist(values[kept].astype("f8")))
    np.fill_diagonal(apart, np.inf)
    assert found["euclidean_neighbour"].dims == ("image", "neighbour")
    np.testing.assert_array_equal(found["euclidean_neighbour"], 10 * kept[np.argsort(apart, axis=1)[:, :3]])
    np.testing.assert_array_equal(found["image"], 10 * kept)
    close = dn.similarity(x, metric="euclidean", per="image", threshold=2.5)
    expected = np.argwhere(np.triu(apart <= 2.5, 1))
    np.testing.assert_array_equal(np.stack([close["first"], close["second"]], axis=1), 10 * kept[expected])


def test_similarity__of_images_names_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)
    values = np.random.default_rng(6).standard_normal((40, 9)).astype("f4")
    values[33, 4] = np.nan
    x = xr.DataArray(da.from_array(values, chunks=(8, 9)), dims=("image", "channel"), name="conv1")
    with pytest.raises(NonFiniteError, match=r"conv1: image 33, neuron \(4,\) is nan"):
        dn.similarity(x, per="image", client=ThreadExecutor(2))


MANY: dict[str, Any] = {"metric": "pearson", "threshold": 0}
"""Passed by 1,124,250 pairs of 1,500 neurons, some more than a plan counts in the driver."""


def test_threshold__is_refused_where_there_is_no_room_for_more_than_the_plan_counts() -> None:
    x = labelled(RNG.standard_normal((20, 1500)))
    large = ThreadExecutor(1, memory=GiB)
    plan = dn.plan("similarity", x, client=large, **MANY)
    tight = ThreadExecutor(1, memory=plan.asking_bytes(large) + MiB)
    with pytest.raises(MemoryLimitError, match=r"passed by more than 1,0\d\d,\d+ pairs, .* in the driver") as caught:
        dn.similarity(x, client=tight, **MANY)
    assert caught.value.hint is not None
    wider = ThreadExecutor(1, memory=plan.asking_bytes(large) + 16 * MiB)
    assert dn.similarity(x, client=wider, **MANY).sizes["pair"] == 1500 * 1499 // 2


def test_threshold__a_task_may_find_more_than_a_million_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    x = labelled(RNG.standard_normal((20, 1500)))
    large = ThreadExecutor(1, memory=GiB)
    assert dn.plan("similarity", x, client=large, **MANY).tasks == 1
    assert dn.similarity(x, client=large, **MANY).sizes["pair"] == 1500 * 1499 // 2


def test_threshold__pairs_take_what_the_plan_counts() -> None:
    keep = KeepPairs(("pearson",), 0.0, 10**6)
    places = [slice(start, start + 500) for start in (0, 500)]
    collect, values = Pairs(keep, 10**6), np.ones((500, 500))
    tracemalloc.start()
    try:
        for i, j in ((1, 1), (0, 1), (0, 0)):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            kept = keep.tile(keep.start(), places[i], places[j], lambda metric: values)
            most = tracemalloc.get_traced_memory()[1] - before
            assert most < keep.work_bytes(500) + keep.kept_bytes(1, 1, 1, 500)[1], "values are there already"
            collect.gather(kept)
            del kept
        tracemalloc.reset_peak()
        found = collect.result()
        assert tracemalloc.get_traced_memory()[1] < COLLECTED_PAIR_BYTES * len(found[1])
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found[0], np.argwhere(np.triu(np.ones((1000, 1000)), 1)))


def masked(shape: tuple[int, ...], order: tuple[int, ...] | None = None) -> xr.DataArray:
    """An array in memory, two of whose images could not be read; its dims may lie in another order there."""
    values = np.random.default_rng(7).standard_normal(shape, "f4")
    if order is not None:
        values = np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    gone = np.isin(np.arange(shape[0]), [3, 11]).astype("u1")
    dims = ("image", "channel", "y", "x")[: len(shape)]
    return xr.DataArray(values, dims=dims, coords={"status": ("image", gone)})


def test_similarity__of_images_in_memory_copies_nothing_to_plan() -> None:
    x = masked((400, 50_000))
    tracemalloc.start()
    try:
        for analysis, asked in (("similarity", {"per": "image"}), ("clusters", {"per": "image", "count": 2}),
                                ("svd", {"rank": 2})):  # fmt: skip
            dn.plan(analysis, x, client=ThreadExecutor(2, memory=2**34), **asked)
            assert tracemalloc.get_traced_memory()[1] < x.nbytes / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize(
    ("shape", "order"), [((60, 300), None), ((60, 300), (1, 0)), ((60, 50, 3, 2), None), ((60, 50, 3, 2), (2, 3, 1, 0))]
)
def test_similarity__of_images_in_memory_copies_some_at_a_time(
    tiles: bool, shape: Any, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiles:
        monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
        monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)
    monkeypatch.setattr("dneuro.analysis.turned.STRIP", 8)
    monkeypatch.setattr("dneuro.analysis.turned.BLOCK_BYTES", 58 * 4 * 7)
    x = masked(shape, order)
    seen = turned(view(x, per="neuron"))
    assert seen.xs[0].chunks is not None
    assert max(map(max, seen.xs[0].chunks)) == 8
    assert is_resident(seen.xs[0])
    part, _ = Source(seen.xs[0]).part(Block((7, 14), (8, 16)))
    assert len(pickle.dumps(part)) < x.nbytes / 2, "only what it is about goes to a worker"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).compute(()), part.compute(()))
    kept = x.isel(image=np.flatnonzero(x["status"] == 0)).compute().copy(deep=True)
    for ask in (
        lambda x: dn.similarity(x, per="image", client=ThreadExecutor(2)),
        lambda x: dn.svd(x, rank=3, method="gram", client=ThreadExecutor(2)),
        lambda x: dn.svd(x, rank=3, method="krylov", client=ThreadExecutor(2)),
    ):
        found, expected = ask(x), ask(kept)
        for name in expected.data_vars:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_similarity__few_neurons_may_be_kept_for_the_second_pass(counted: Any) -> None:
    values = RNG.standard_normal((600, 6)).astype("f4")
    values[:, 1] = values[:, 0]
    found, plans, roomy = {}, {}, ThreadExecutor(2, memory=2**31)
    for persist in ("auto", False, True):
        x, reads = counted(values, (170, 6))
        said: list[events.Event] = []
        with events.listening(said.append):
            plans[persist] = dn.plan("similarity", x, persist=persist, client=roomy)
            found[persist] = dn.similarity(x, persist=persist, client=roomy)
        assert [event.data["persisted"] for event in said if event.data] == [persist is True]
        assert set(reads.values()) == {1 if persist is True else 2}
        xr.testing.assert_identical(found[persist], found["auto"])
    assert plans[True].worker_bytes == plans["auto"].worker_bytes + values.nbytes
    assert plans[True].passes == plans["auto"].passes == 2
    little = ThreadExecutor(2, memory=plans[True].process_bytes(roomy) - 1)
    with pytest.raises(MemoryLimitError, match="persist=True needs"):
        dn.similarity(x, persist=True, client=little)
