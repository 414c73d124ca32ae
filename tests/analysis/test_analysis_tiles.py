"""Similarity by tiles: any shape, chunking, cut and dtype gives what NumPy and SciPy give of the whole array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import dneuro as dn
from dneuro.analysis.pairing import pairing
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError, StoreError, UsageError
from dneuro.quantities import MiB

Array = np.ndarray
METRICS = ["pearson", "euclidean", "cosine", "covariance"]
EXECUTOR = ThreadExecutor(2)


@pytest.fixture(autouse=True, scope="module")
def tiny_tiles() -> Iterator[None]:
    """Everything by tiles, of 4 neurons, with few images at a time, whose means are often multiplied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
        patch.setattr("dneuro.engine.regions.STRIP", 4)
        patch.setattr("dneuro.engine.regions.BAND_ROWS", 8)
        patch.setattr("dneuro.analysis.tiles.MOVES_AT_ONCE", 3)
        yield


@pytest.fixture(params=["columns", "tiles"])
def method(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two methods, with regions of two by up to four strips."""
    force(monkeypatch, request.param)
    return str(request.param)


def force(monkeypatch: pytest.MonkeyPatch, method: str, rows: int = 2) -> None:
    shapes = [(rows, 10_000, True)] if method == "columns" else [(rows, 2 * rows, False)]
    monkeypatch.setattr("dneuro.engine.regions._shapes", lambda strips: iter(shapes))


def reference(values: Array, metric: str) -> Array:
    """The metric of the columns, by NumPy and SciPy in float64."""
    table = values.reshape(len(values), -1).astype("f8")
    with np.errstate(all="ignore"):
        if metric == "euclidean":
            return cdist(table.T, table.T)
        if metric == "cosine":
            norms = np.sqrt((table**2).sum(0))
            return table.T @ table / (norms[:, None] * norms)
        centred = table - table.mean(0)
        centred[:, np.ptp(table, axis=0) == 0] = 0
        products = centred.T @ centred
        if metric == "covariance":
            return products / (len(table) - 1) if len(table) > 1 else np.full_like(products, np.nan)
        norms = np.sqrt(products.diagonal())
        return products / (norms[:, None] * norms)


def lazy(values: Array, chunks: Any = (7, 3)) -> xr.DataArray:
    dims = ("image", "channel", "y", "x")[: values.ndim]
    return xr.DataArray(da.from_array(values, chunks=(*chunks, *values.shape[2:])), dims=dims, name="conv1")


def relu(images: int = 60, neurons: int = 23, seed: int = 0, dtype: str = "f4") -> Array:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((images, 5)) @ rng.standard_normal((5, neurons))
    return np.maximum(values + rng.standard_normal((images, neurons)), 0).astype(dtype)


def cuts(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    inner = draw(st.sets(st.integers(1, length - 1), max_size=4)) if length > 1 else set()
    return tuple(b - a for a, b in itertools.pairwise(sorted({0, length} | inner)))


@st.composite
def layers(draw: st.DrawFn) -> tuple[xr.DataArray, Array]:
    """An array and the values of the images that take part."""
    images, neurons = draw(st.integers(1, 25)), draw(st.integers(1, 19))
    values = relu(images, neurons, draw(st.integers(0, 99)), draw(st.sampled_from(["f2", "f4", "f8"])))
    values *= values.dtype.type(draw(st.sampled_from([1, 1, 1e-3])))
    if draw(st.booleans()):
        values[:, 0] = draw(st.sampled_from([0.0, 0.1, -3.5]))
    if neurons > 8 and draw(st.booleans()):
        values[:, 7] = values[:, 1]
    if draw(st.booleans()):
        values += values.dtype.type(draw(st.sampled_from([1, 30])))
    read = np.ones(images, bool)
    if images > 2 and draw(st.booleans()):
        read[draw(st.sets(st.integers(0, images - 1), max_size=images - 1).map(sorted))] = False
    x = xr.DataArray(np.where(read[:, None], values, np.nan).astype(values.dtype), dims=("image", "channel"))
    x = x.assign_coords(status=("image", (~read).astype("u1")))
    if draw(st.booleans()):
        x = x.copy(data=da.from_array(x.values, chunks=tuple(cuts(draw, length) for length in x.shape)))
    return x, values[read]


@given(layers(), st.sampled_from(["float32", "float64"]), st.sampled_from(["columns", "tiles"]), st.integers(1, 4))
@settings(max_examples=120, deadline=None)
def test_tiles__as_numpy_and_scipy(layer: Any, precision: Any, how: str, rows: int) -> None:
    x, values = layer
    with pytest.MonkeyPatch.context() as patch:
        force(patch, how, rows)
        found = dn.similarity(x, metric=METRICS, precision=precision, client=EXECUTOR)
    for metric in METRICS:
        expected = reference(values, metric)
        scale = float(np.nanmax(np.abs(expected), initial=0)) or 1.0
        tolerance = 3e-6 if precision == "float32" else 1e-9
        matrix = found[metric].values
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=tolerance * scale, err_msg=metric)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert matrix.dtype == ("float64" if metric == "covariance" else precision)
    assert (found["euclidean"].values.diagonal() == 0).all()
    alive = np.ptp(values.astype("f8"), axis=0) > 0
    assert (found["pearson"].values.diagonal()[alive] == 1).all()
    assert np.isnan(found["pearson"].values[~alive]).all()
    same = (values[:, :, None] == values[:, None, :]).all(0)
    assert (found["euclidean"].values[same] == 0).all(), "neurons that are the same are at distance 0 exactly"


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_tiles__do_not_depend_on_how_they_are_shared_out(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = lazy(relu(100, 41), (20, 4))
    found = []
    for how, rows in [("columns", 1), ("columns", 3), ("tiles", 1), ("tiles", 4)]:
        force(monkeypatch, how, rows)
        for threads in (1, 3):
            client = ThreadExecutor(threads)
            found.append(dn.similarity(x, metric=METRICS, precision=precision, client=client))
    for other in found[1:]:
        for metric in METRICS:
            assert other[metric].values.tobytes() == found[0][metric].values.tobytes(), metric


def test_tiles__positions_pooled_or_stacked(method: str) -> None:
    values = np.random.default_rng(1).standard_normal((30, 11, 2, 3)).astype("f4")
    x = lazy(values, (7, 4))
    channels = dn.similarity(x, metric="pearson", precision="float64", client=EXECUTOR)["pearson"]
    assert channels.dims == ("channel", "other_channel")
    np.testing.assert_allclose(channels, reference(values.max(axis=(2, 3)), "pearson"), atol=1e-12)
    neurons = dn.similarity(x, metric="pearson", precision="float64", per="neuron", client=EXECUTOR)["pearson"]
    assert neurons.dims == ("neuron", "other_neuron")
    np.testing.assert_allclose(neurons, reference(values, "pearson"), atol=1e-12)


@pytest.mark.parametrize("chunks", [None, (7, 2, 3, 4), (30, 1, 3, 4), (9, 3, 2, 1)])
def test_tiles__are_parts_of_channels_where_these_have_many_positions(chunks: Any, method: str) -> None:
    values = np.random.default_rng(1).standard_normal((30, 5, 3, 4)).astype("f4")
    values[:, 2, 1, 3] = 0.1
    x = xr.DataArray(values, dims=("image", "channel", "y", "x"), name="conv1").assign_coords(channel=list("abcde"))
    x = x if chunks is None else x.chunk(dict(zip(x.dims, chunks, strict=True)))
    gone = np.isin(np.arange(30), [0, 13])
    x = x.assign_coords(image=np.arange(30) + 100, status=("image", gone.astype("u1")))
    found = dn.similarity(x, metric=METRICS, per="neuron", precision="float64", client=EXECUTOR)
    for metric in METRICS:
        np.testing.assert_allclose(found[metric], reference(values[~gone], metric), atol=1e-9)
    near = dn.similarity(x, metric="euclidean", per="neuron", neighbours=4, client=EXECUTOR)
    apart = reference(values[~gone], "euclidean")
    np.fill_diagonal(apart, np.inf)
    assert near["euclidean_neighbour"].dims == ("channel", "y", "x", "neighbour")
    np.testing.assert_array_equal(
        near["euclidean_neighbour"].values.reshape(60, 4), np.argsort(apart, axis=1)[:, :4]
    )
    assert near["channel"].values.tolist() == list("abcde")
    values[17, 3, 1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"conv1: image 117, neuron \(3, 1, 2\) is nan"):
        dn.similarity(x.copy(data=values if chunks is None else da.from_array(values, chunks)), per="neuron",
                      client=EXECUTOR)  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_tiles__float32_is_right_to_a_millionth(shift: float, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 128)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 1024)
    values = relu(6000, 200) + np.float32(shift)
    found = dn.similarity(lazy(values, (500, 128)), metric=METRICS, client=EXECUTOR)
    assert found.attrs["precision"] == "float32"
    assert found["pearson"].dtype == np.float32
    for metric in ("pearson", "cosine"):
        np.testing.assert_allclose(found[metric], reference(values, metric), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["euclidean"], reference(values, "euclidean"), rtol=2e-6)
    naive = np.matmul(values.T, values)  # what is squared without a pilot mean loses digits
    if shift:
        assert np.abs(naive / 6000 - shift**2).max() > 1


def by_class(images: int = 12_800, neurons: int = 20, classes: int = 100) -> Array:
    """Images in the order of their class: most neurons are active in the first class alone, some in all of them."""
    rng, first = np.random.default_rng(7), images // classes
    values = np.zeros((images, neurons), "f4")
    values[:first] = 1 + 2 * rng.standard_normal((first, neurons))
    values[:, ::5] = relu(images, len(values[0, ::5]), 8)
    values[-first:, 3] = 100
    return values


def test_tiles__images_in_the_order_of_their_class(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the first images is nobody else's."""
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 10)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 128)
    values = by_class()
    for metric in ("pearson", "euclidean"):  # where distances cancel, both are multiplied in float64
        found = dn.similarity(lazy(values, (128, 10)), metric=metric, client=EXECUTOR)
        assert found.attrs["precision"] == "float32"
        np.testing.assert_allclose(found[metric], reference(values, metric), rtol=2e-6, atol=1e-6)


def test_tiles__images_in_the_order_of_their_class_are_read_no_more_often(
    method: str, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 10)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 128)
    count = []
    for values in (by_class(), np.random.default_rng(0).permutation(by_class())):
        x, reads = counted(values, (128, 10))
        dn.similarity(x, persist=False, client=EXECUTOR)
        count.append(sum(reads.values()))
    assert count[0] == count[1]


def test_tiles__distances_that_cancel_are_exact_in_float32(method: str) -> None:
    values = relu(300, 24)
    values[:, 13] = values[:, 2]
    values[17, 13] += np.float32(1e-3)
    values[:, 21] = values[:, 6]
    found = dn.similarity(lazy(values), metric="euclidean", precision="float32", client=EXECUTOR)["euclidean"].values
    np.testing.assert_allclose(found, reference(values, "euclidean"), rtol=2e-6, atol=1e-12)
    assert found[2, 13] == pytest.approx(1e-3, rel=1e-4)
    assert found[6, 21] == 0


def test_tiles__layers_where_all_distances_cancel(method: str) -> None:
    values = (relu(50, 1) + 1e-3 * np.random.default_rng(0).standard_normal((50, 20))).astype("f4")
    found = dn.similarity(lazy(values), metric="euclidean", precision="float32", client=EXECUTOR)["euclidean"]
    np.testing.assert_allclose(found, reference(values, "euclidean"), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiles__values_whose_products_float32_cannot_hold(scale: float, method: str) -> None:
    values = (relu(40, 10) * scale).astype("f4")
    found = dn.similarity(lazy(values), metric="pearson", precision="float32", client=EXECUTOR)["pearson"]
    np.testing.assert_allclose(found, reference(values / np.float32(scale), "pearson"), atol=2e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e20, 1e36])
def test_tiles__covariance_has_the_range_of_squares(scale: float, method: str, tmp_path: Path) -> None:
    values = (relu(40, 10) * scale).astype("f4")
    for kept in ({}, {"out": tmp_path / "matrix.zarr"}):
        found = dn.similarity(lazy(values), metric=["covariance", "pearson"], precision="float32", client=EXECUTOR,
                              **kept)  # type: ignore[arg-type]  # fmt: skip
        assert (found["covariance"].dtype, found["pearson"].dtype) == (np.float64, np.float32)
        expected = np.cov(values.astype("f8"), rowvar=False)
        np.testing.assert_allclose(found["covariance"], expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    plan = dn.plan("similarity", lazy(values), metric=["covariance", "pearson"], precision="float32")
    assert plan.result_bytes == (8 + 4) * 10**2


def test_tiles__distances_beyond_float32_are_an_error(method: str) -> None:
    values = (relu(40, 10, dtype="f8") * 6e37).clip(max=3e38).astype("f4")
    with pytest.raises(ArrayError, match="some distance is beyond what float32 holds") as caught:
        dn.similarity(lazy(values), metric="euclidean", precision="float32", client=EXECUTOR)
    assert caught.value.hint == "precision='float64'"
    found = dn.similarity(lazy(values), metric="euclidean", precision="float64", client=EXECUTOR)["euclidean"]
    np.testing.assert_allclose(found, reference(values, "euclidean"), rtol=1e-9)


def test_tiles__nan_is_named(method: str) -> None:
    values = relu(30, 10)
    values[21, 7] = np.nan
    with pytest.raises(NonFiniteError, match=r"conv1: image 21, neuron \(7,\) is nan"):
        dn.similarity(lazy(values), client=EXECUTOR)


def test_tiles__counts_are_compared_over_the_classes(method: str) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (13, 5))
    x = xr.DataArray(counts, dims=("channel", "class"), coords={"class": list("abcde")})
    found = dn.similarity(x, metric=METRICS, client=EXECUTOR)
    for metric in METRICS:
        np.testing.assert_allclose(found[metric], reference(counts.T, metric), atol=1e-9)


@given(st.integers(1, 12), st.integers(1, 19), st.sampled_from(METRICS), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_neighbours__as_a_stable_sort(count: int, neurons: int, metric: str, seed: int, ties: bool) -> None:
    values = relu(20, neurons, seed, "f8")
    values = np.round(values) if ties else values
    found = dn.similarity(lazy(values), metric=metric, neighbours=count, client=EXECUTOR)
    whole = dn.similarity(lazy(values), metric=metric, client=EXECUTOR)[metric].values
    keys = whole if metric == "euclidean" else -whole
    keys = np.where(np.eye(neurons, dtype=bool) | np.isnan(keys), np.inf, keys)
    order = np.argsort(keys, axis=1, kind="stable")[:, : min(count, max(1, neurons - 1))]
    best = np.take_along_axis(whole, order, axis=1)
    none = np.isinf(np.take_along_axis(keys, order, axis=1))
    assert found[f"{metric}_neighbour"].dims == ("channel", "neighbour")
    np.testing.assert_array_equal(found[f"{metric}_neighbour"], np.where(none, -1, order))
    np.testing.assert_array_equal(found[f"{metric}_value"], np.where(none, np.nan, best))


def test_neighbours__of_neurons_with_positions_and_names(method: str) -> None:
    values = np.random.default_rng(1).standard_normal((30, 5, 2, 2)).astype("f4")
    x = lazy(values, (7, 2)).assign_coords(channel=list("abcde"))
    found = dn.similarity(x, metric=["pearson", "euclidean"], per="neuron", neighbours=3, client=EXECUTOR)
    assert found["pearson_value"].dims == ("channel", "y", "x", "neighbour")
    whole = reference(values, "pearson")
    np.fill_diagonal(whole, -2)
    np.testing.assert_array_equal(found["pearson_neighbour"].values.reshape(20, 3), np.argsort(-whole, axis=1)[:, :3])
    assert found["channel"].values.tolist() == list("abcde")


@pytest.mark.parametrize("metric", METRICS)
def test_threshold__pairs_in_order(metric: str, method: str) -> None:
    values = relu(25, 22, dtype="f8")
    whole = dn.similarity(lazy(values), metric=metric, client=EXECUTOR)[metric].values
    limit = float(np.quantile(whole, 0.3))
    limit = max(limit, 0.1)
    found = dn.similarity(lazy(values), metric=metric, threshold=limit, client=EXECUTOR)
    wanted = whole <= limit if metric == "euclidean" else np.abs(whole) >= limit
    pairs = np.argwhere(np.triu(wanted, 1))
    np.testing.assert_array_equal(np.stack([found["first"], found["second"]], axis=1), pairs)
    np.testing.assert_array_equal(found[f"{metric}_value"], whole[tuple(pairs.T)])


def test_threshold__that_nothing_and_too_much_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = lazy(np.random.default_rng(0).standard_normal((25, 22)).astype("f8"))
    assert dn.similarity(x, metric="pearson", threshold=0.99, client=EXECUTOR).sizes["pair"] == 0
    monkeypatch.setattr("dneuro.analysis.pairing._task_pairs", lambda executor, taken: 10)
    with pytest.raises(MemoryLimitError, match=r"by more than 10 pairs, 240 B of them, .* in one task") as caught:
        dn.similarity(x, metric="pearson", threshold=0, client=EXECUTOR)
    assert caught.value.hint is not None


@pytest.mark.parametrize("slots", [1, 4])
def test_threshold__more_memory_lets_a_task_find_more(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given more tiles too, in which there are more pairs to find."""
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 1024)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 1024)
    x = xr.DataArray(da.zeros((5000, 40_000), chunks=(500, 2000), dtype="f4"), dims=("image", "channel"))
    found = []
    for memory in (1, 2, 4, 8):
        threads = ThreadExecutor(slots, memory=memory * 1024 * MiB)
        asked = pairing(x, "pearson", "channel", "max", None, 0.5, None, "auto", False, threads)
        assert asked.plan.worker_bytes <= threads.memory
        found.append(asked.task_pairs)
    assert all(more > 2 * less for less, more in itertools.pairwise(found)), "a process takes some for itself"


def test_out__a_file_that_reads_right_on_both_sides(method: str, tmp_path: Path) -> None:
    values = relu(40, 23)
    x = lazy(values).assign_coords(channel=[f"c{i}" for i in range(23)])
    path = tmp_path / "similar.zarr"
    found = dn.similarity(x, metric=["pearson", "euclidean"], precision="float32", out=path, client=EXECUTOR)
    inside = dn.similarity(x, metric=["pearson", "euclidean"], precision="float32", client=EXECUTOR)
    for opened in (found, xr.open_zarr(path, consolidated=False)):
        for metric in ("pearson", "euclidean"):
            assert opened[metric].chunks is not None
            assert opened[metric].attrs["symmetric"]
            assert opened[metric].dims == ("channel", "other_channel")
            np.testing.assert_array_equal(opened[metric], inside[metric])
        assert opened["channel"].values.tolist() == x["channel"].values.tolist()
        assert opened.attrs["analysis"] == "similarity"
        assert opened["pearson"].sel(channel="c3", other_channel="c20") == inside["pearson"].values[20, 3]
    assert found.attrs == inside.attrs
    assert zarr.open_array(path, path="pearson").chunks == (3, 3), "a tile is a chunk"
    assert [p.name for p in tmp_path.iterdir()] == ["similar.zarr"]
    with pytest.raises(UsageError, match="exists; it is left as it is"):
        dn.similarity(x, out=path, client=EXECUTOR)


def test_out__is_refused_where_the_disk_has_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = lazy(relu(40, 23)), {"precision": "float32", "out": tmp_path / "there" / "m.zarr", "client": EXECUTOR}
    monkeypatch.setattr("dneuro.store.files.shutil.disk_usage", lambda _: SimpleNamespace(free=4 * 23**2 - 1))
    with pytest.raises(StoreError, match=r"m.zarr takes up to 2.07 KiB, its disk has 2.07 KiB free") as caught:
        dn.similarity(x, metric="pearson", **asked)
    assert "another disk, or neighbours=20" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("dneuro.store.files.shutil.disk_usage", lambda _: SimpleNamespace(free=4 * 23**2))
    dn.similarity(x, metric="pearson", **asked)


def test_out__leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    values = relu(40, 10)
    values[3] = np.inf  # so that no task gets as far as writing
    with pytest.raises(NonFiniteError):
        dn.similarity(lazy(values), out=tmp_path / "similar.zarr", client=EXECUTOR)
    assert list(tmp_path.iterdir()) == []


def test_similarity__refuses_what_contradicts_itself() -> None:
    x = lazy(relu(10, 5))
    for wrong in (
        {"neighbours": 3, "threshold": 0.5},
        {"neighbours": 3, "out": "a.zarr"},
        {"neighbours": 0},
        {"neighbours": True},
        {"threshold": -1.0, "metric": "pearson"},
        {"threshold": float("nan"), "metric": "pearson"},
        {"threshold": 0.5, "metric": ["pearson", "cosine"]},
        {"precision": "float16"},
        {"metric": "manhattan"},
        {"metric": []},
    ):
        with pytest.raises(ArrayError):
            dn.plan("similarity", x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="persist='yes' is unknown"):
        dn.plan("similarity", x, persist="yes")


def test_similarity__that_the_driver_cannot_hold_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 1024)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 1024)
    x = xr.DataArray(da.zeros((5000, 40_000), chunks=(500, 2000), dtype="f4"), dims=("image", "channel"))
    threads = ThreadExecutor(1, memory=1024 * MiB)
    with pytest.raises(MemoryLimitError, match=r"needs .* the limit is") as caught:
        dn.similarity(x, metric="pearson", client=threads)
    assert caught.value.hint is not None
    assert "out=" in caught.value.hint
    plan = dn.plan("similarity", x, metric="pearson", out="matrix.zarr", client=threads)
    assert plan.worker_bytes <= threads.memory
    assert plan.result_bytes == 4 * 40_000**2
    assert plan.driver_bytes < 64 * MiB, "parts of the array for its tasks, nothing of the matrix"
    nearest = dn.plan("similarity", x, metric="pearson", neighbours=20, client=threads)
    assert nearest.worker_bytes <= threads.memory
    assert nearest.result_bytes == 16 * 20 * 40_000
