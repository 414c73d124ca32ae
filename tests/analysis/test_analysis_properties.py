"""Each analysis against NumPy, SciPy and scikit-learn on the whole array, however it is shaped, cut and labelled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.utils.extmath import svd_flip

import dneuro as dn
from dneuro.engine import ThreadExecutor

Array = np.ndarray
DIMS = ("image", "channel", "y", "x")
EXECUTOR = ThreadExecutor(2)


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Arrays this small would be one block otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 64)
        yield


@dataclass(frozen=True)
class Layer:
    """A drawn array as the analysis gets it, and what it holds."""

    x: xr.DataArray
    values: Array  # (readable images, channel, …), in the order of the array
    numbers: Array  # the images' own numbers, readable ones only

    @property
    def table(self) -> Array:
        """Images × neurons in float64, neurons in the order of the array's dims."""
        ordered = self.x.transpose("image", ...).dims[1:]
        wide = np.transpose(self.values, (0, *(DIMS.index(str(dim)) for dim in ordered)))
        return wide.reshape(len(wide), -1).astype("f8")

    def pooled(self, pool: str) -> Array:
        """Images × channels in float64."""
        cells = self.values.reshape(*self.values.shape[:2], -1).astype("f8")
        return cells.max(2) if pool == "max" else cells.mean(2).astype("f4").astype("f8")


def cuts(draw: st.DrawFn, length: int) -> tuple[int, ...]:
    inner = draw(st.sets(st.integers(1, length - 1), max_size=4)) if length > 1 else set()
    return tuple(b - a for a, b in itertools.pairwise(sorted({0, length} | inner)))


@st.composite
def layers(draw: st.DrawFn, dtypes: tuple[str, ...] = ("f2", "f4", "f8"), least: int = 1) -> Layer:
    """Draw few images of few neurons, with everything that can be odd about them."""
    images = draw(st.integers(least, 14))
    shape = (images, draw(st.integers(1, 5)), *draw(st.sampled_from([(), (), (1, 1), (2, 3)])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "ties", "relu", "zeros"]))
    values = {
        "normal": lambda: rng.standard_normal(shape) * 3 + 1,
        "ties": lambda: rng.integers(-2, 3, shape) * 0.5 * rng.choice([1, -1], shape),  # with -0.0
        "relu": lambda: np.maximum(rng.standard_normal(shape), 0),
        "zeros": lambda: np.zeros(shape),
    }[kind]().astype(draw(st.sampled_from(dtypes)))
    if draw(st.booleans()):
        values[:, 0] = draw(st.sampled_from([0.0, 0.1, -3.5]))  # dead or constant
    if shape[1] > 2 and draw(st.booleans()):
        values[:, 2] = values[:, 1]  # the same neuron twice
    readable = np.ones(images, bool)
    if images > least and draw(st.booleans()):
        readable[rng.permutation(images)[: draw(st.integers(1, images - least))]] = False
    x = xr.DataArray(np.where(readable.reshape(-1, *[1] * (len(shape) - 1)), values, np.nan), dims=DIMS[: len(shape)])
    x = x.astype(values.dtype)
    if draw(st.booleans()):
        x = x.assign_coords(status=("image", (~readable).astype("u1"))) if not readable.all() else x
        numbers = rng.permutation(100)[:images]
        x = x.assign_coords(image=numbers, channel=[f"c{i}" for i in range(shape[1])])
    else:
        numbers = np.arange(images)
        x = x.assign_coords(status=("image", (~readable).astype("u1")))
    x = x.transpose(*draw(st.permutations(x.dims)))
    if draw(st.booleans()):
        x = x.copy(data=da.from_array(x.values, chunks=tuple(cuts(draw, length) for length in x.shape)))
    return Layer(x, values[readable], numbers[readable])


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    scale = float(np.nanmax(np.abs(expected), initial=0)) + 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@given(layers(), st.sampled_from(["channel", "neuron", "image"]), st.sampled_from(["max", "mean"]))
@settings(max_examples=80, deadline=None)
def test_moments__as_numpy(layer: Layer, per: Any, pool: Any) -> None:
    found = dn.moments(layer.x, per=per, pool=pool, client=EXECUTOR)
    if per == "channel":
        table = layer.pooled(pool) if layer.values.ndim > 2 else layer.table
        assert found["mean"].dims == ("channel",)
        found = found.transpose("channel")
    else:
        table = layer.table.T if per == "image" else layer.table
    flat = {name: np.asarray(values).reshape(-1) for name, values in found.items()}
    assert (flat["count"] == len(table)).all()
    close(flat["mean"], table.mean(0))
    close(flat["std"], table.std(0))
    close(flat["variance"], table.var(0))
    np.testing.assert_array_equal(flat["min"], table.min(0))
    np.testing.assert_array_equal(flat["max"], table.max(0))
    close(flat["fraction_active"], (table > 0).mean(0))
    if per == "image":
        np.testing.assert_array_equal(found["image"], layer.numbers)
    elif "channel" in layer.x.coords:
        np.testing.assert_array_equal(found["channel"], layer.x["channel"])


@given(layers(("f2", "f4")), st.integers(1, 20), st.sampled_from(["channel", "neuron"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_top_images__as_a_stable_sort(layer: Layer, k: int, per: Any, mean: bool) -> None:
    pool: Any = "mean" if mean else "max"
    found = dn.top_images(layer.x, k=k, per=per, pool=pool, client=EXECUTOR)
    pooled = per == "channel" and layer.values.ndim > 2
    table = layer.pooled(pool) if pooled else layer.table
    for end, sign in (("top", -1), ("bottom", 1)):
        order = np.argsort(sign * table, axis=0, kind="stable")[:k]
        images = found[f"{end}_image"].values.reshape(-1, len(order)).T
        np.testing.assert_array_equal(images, layer.numbers[order])
        values = (np.take_along_axis(table, order, 0) + 0.0).astype("f4")
        assert found[f"{end}_value"].values.reshape(-1, len(order)).T.tobytes() == values.tobytes()
        assert (f"{end}_y" in found) == (pooled and not mean)
        if pooled and not mean:
            y, x = (found[f"{end}_{dim}"].values.reshape(-1, len(order)).T for dim in "yx")
            there = layer.values[order, np.arange(len(order[0])), y, x]
            np.testing.assert_array_equal(there, values)
            ordered = [str(dim) for dim in layer.x.dims if dim in ("y", "x")]
            first = np.transpose(layer.values, (0, 1, *(DIMS.index(dim) for dim in ordered)))
            cells = first.reshape(*first.shape[:2], -1)[order, np.arange(len(order[0]))].argmax(2)
            place = np.unravel_index(cells, first.shape[2:])
            np.testing.assert_array_equal(place[ordered.index("y")], y)
            np.testing.assert_array_equal(place[ordered.index("x")], x)


@given(layers(("f4",)), st.integers(1, 20), st.data())
@settings(max_examples=40, deadline=None)
def test_cooccurrence__as_counting(layer: Layer, k: int, data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.integers(-1, 3), min_size=layer.x.sizes["image"], max_size=layer.x.sizes["image"]))
    if max(classes) < 0:
        classes[0] = 1
    names = ["cat", "dog", "owl", "emu"]
    x = layer.x.assign_coords(label=("image", classes)).assign_attrs(class_names=names)
    found = dn.cooccurrence(x, k=k, client=EXECUTOR)["count"]
    rows = np.asarray(classes)[x["status"].values == 0] if "status" in x.coords else np.asarray(classes)
    table = layer.pooled("max") if layer.values.ndim > 2 else layer.table
    expected = np.zeros((table.shape[1], 4), int)
    for neuron, column in enumerate(table.T):
        for row in np.argsort(-column, kind="stable")[:k]:
            if column[row] > 0 and rows[row] >= 0:
                expected[neuron, rows[row]] += 1
    np.testing.assert_array_equal(found, expected)
    assert found["class"].values.tolist() == names
    assert found.dims == ("channel", "class")
    assert found.dtype == np.int64


@given(layers(), st.sampled_from(["channel", "neuron"]))
@settings(max_examples=80, deadline=None)
def test_similarity__as_corrcoef_and_cdist(layer: Layer, per: Any) -> None:
    found = dn.similarity(layer.x, per=per, client=EXECUTOR)
    pooled = per == "channel" and layer.values.ndim > 2
    table = layer.pooled("max") if pooled else layer.table
    alive = np.ptp(table, axis=0) > 0
    centred = table - table.mean(0)
    with np.errstate(invalid="ignore"):
        norms = np.sqrt((centred**2).sum(0))
        expected = centred.T @ centred / (norms[:, None] * norms[None, :])
        if len(table) > 1 and alive.all():
            close(expected, np.corrcoef(table, rowvar=False).reshape(expected.shape), 1e-10)
    expected[~alive] = expected[:, ~alive] = np.nan
    pearson = found["pearson"].values
    close(pearson, expected, 1e-10)
    distances = cdist(table.T, table.T)
    euclidean = found["euclidean"].values
    np.testing.assert_allclose(euclidean, distances, rtol=1e-6, atol=1e-12)
    for matrix in (pearson, euclidean):
        np.testing.assert_array_equal(matrix, matrix.T)
    assert (pearson.diagonal()[alive] == 1).all()
    assert (euclidean.diagonal() == 0).all()
    assert (euclidean[(distances == 0)] == 0).all(), "neurons that are the same are at distance 0 exactly"


@given(
    layers(),
    st.sampled_from(["image", "neuron", "center", None]),
    st.sampled_from(["auto", "tsqr", "gram", "krylov"]),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_svd__as_linalg_svd(layer: Layer, standardize: Any, method: Any, data: st.DataObject) -> None:
    table = layer.table
    z = table.copy()
    if standardize == "image":
        z -= z.mean(1, keepdims=True)
        z /= np.where(np.ptp(table, axis=1) > 0, table.std(1), np.inf)[:, None]
    elif standardize is not None:
        z -= z.mean(0)
        z[:, np.ptp(table, axis=0) == 0] = 0
    if standardize == "neuron":
        z /= np.where(np.ptp(table, axis=0) > 0, table.std(0), np.inf)
    if standardize == "image":
        z[np.ptp(table, axis=1) == 0] = 0
    rank = data.draw(st.integers(1, min(z.shape)))
    found = dn.svd(layer.x, rank=rank, standardize=standardize, method=method, seed=3, client=EXECUTOR)
    u, values = found["score"].values, found["singular_value"].values
    v = found["vector"].values.reshape(rank, -1).T
    assert all(np.isfinite(array).all() for array in (u, values, v, found["residual"].values))
    true = np.linalg.svd(z, compute_uv=False)
    size = true[0] + 1e-300
    error = np.abs(values - true[:rank]) / size
    # float32 is multiplied in float32, and the Krylov method stops where its certificates are small enough.
    rough = 1e-5 if method == "krylov" else 1e-7
    assert (error <= rough).all()
    assert (error[true[:rank] > 1e-3 * size] <= (rough if method == "krylov" else 1e-10)).all()
    assert (values[true[:rank] <= 1e-14 * size] == 0).all(), "nothing is left of what has no variance"
    nearest = np.abs(values[:, None] - true[None, :]).min(1)
    assert (nearest <= found["residual"].values).all(), "the certificate holds"
    close(v.T @ v, np.eye(rank), 1e-10)
    live = values > 0
    close((u.T @ u)[np.ix_(live, live)], np.eye(live.sum()), 1e-10)
    assert (u[:, ~live] == 0).all()
    close(z @ v / size, u * values / size, rough)
    assert found.attrs["total_variance"] == pytest.approx((z**2).sum(), rel=1e-5 if method == "krylov" else 1e-12)
    close(found.attrs["reconstruction_error"] / size, np.linalg.norm(z - (u * values) @ v.T) / size, 2e-3)
    close(found["explained_variance_ratio"], true[:rank] ** 2 / max((z**2).sum(), 1e-300), rough)
    np.testing.assert_array_equal(svd_flip(u.copy(), v.T.copy())[0][:, live], u[:, live])
    np.testing.assert_array_equal(found["image"], layer.numbers)
    assert found["vector"].dims == ("component", *layer.x.transpose("image", ...).dims[1:])
    assert found.attrs["converged"]
