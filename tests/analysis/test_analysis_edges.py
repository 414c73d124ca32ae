"""Every analysis at the edges: one image, one neuron, nothing that varies, more asked for than there is, NaN.

What is right is said of each by the tests of its own. Here the same numbers, cut into single cells or narrow panels, as
float16, float32 and float64, must give the same, or be refused with a way out, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.errors import DneuroError, NonFiniteError, UsageError

Array = np.ndarray
EXECUTOR = ThreadExecutor(2)
NAMES = ("image", "channel", "y", "x")
CASES = [
    ((1, 1), "ordinary"), ((1, 1), "dead"), ((1, 4), "constant"), ((6, 1), "ordinary"), ((6, 1), "constant"),
    ((5, 5), "one dead, one constant"), ((3, 11), "ordinary"), ((3, 11), "neurons alike"), ((1, 2, 2, 3), "ordinary"),
    ((6, 1, 2, 2), "images alike"), ((7, 2, 2, 3), "ordinary"), ((7, 2, 2, 3), "dead"),
]  # fmt: skip
"""Shapes (images, channels, …), and what is in them."""


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Arrays this small would be one block otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 64)
        patch.setattr("dneuro.analysis.nonnegative.reads.BLOCK_BYTES", 16)
        yield


def values_of(kind: str, shape: tuple[int, ...]) -> Array:
    """Numbers of 0 or more that float16 holds exactly."""
    values = np.random.default_rng(sum(shape)).integers(0, 40, shape) / 8
    if kind in ("dead", "constant"):
        values[:] = 0 if kind == "dead" else 1.5
    elif kind == "images alike":
        values[:] = values[:1]
    elif kind == "neurons alike":
        values[:] = values.reshape(shape[0], -1)[:, :1].reshape(shape[0], *[1] * (len(shape) - 1))
    elif kind.startswith("one dead"):
        values[:, 0] = 0
        values[:, -1] = 2.5
    return values


def layer(values: Array, chunks: Any = None) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    labels = np.arange(len(values)) % 2
    return xr.DataArray(data, dims=NAMES[: values.ndim], coords={"label": ("image", labels)})


def cells(shape: tuple[int, ...]) -> Any:
    return (1,) * len(shape)


def panels(shape: tuple[int, ...]) -> Any:
    return (shape[0], 1, *shape[2:])


def rebuilt(found: xr.Dataset) -> Array:
    """Z as the triplets of an SVD have it: the vectors of equal singular values are not the only ones."""
    vectors = found["vector"].values.reshape(found.sizes["component"], -1)
    return np.asarray((found["score"].values * found["singular_value"].values) @ vectors)


def product(found: xr.Dataset) -> Array:
    """F Oᵀ."""
    weights = found["neuron_weight"].values.reshape(found.sizes["component"], -1)
    return np.asarray(found["image_weight"].values.astype("f8") @ weights)


def only(*names: str) -> Callable[[xr.Dataset], Any]:
    return lambda found: {name: found[name].values for name in names}


def everything(found: xr.Dataset) -> Any:
    return {str(name): found[name].values for name in found.data_vars}


def regression(x: xr.DataArray, **asked: Any) -> xr.Dataset:
    return dn.regression(x, source=x.sel(channel=x.channel[:3]), **asked)


def coupled(x: xr.DataArray, **asked: Any) -> xr.Dataset:
    found = dn.coupled_nmf({"one": x, "two": 2 * x}, **asked)
    return found["two"].to_dataset(inherit=False).assign(image_weight=found["image_weight"])


def most(x: xr.DataArray, **asked: Any) -> xr.Dataset:
    """As many as there are."""
    return dn.svd(x, rank=min(len(x), x[0].size), **asked)


FEW: dict[str, tuple[Callable[..., xr.Dataset], dict[str, Any], Callable[[xr.Dataset], Any]]] = {
    "moments": (dn.moments, {"per": "neuron"}, everything),
    "moments of images": (dn.moments, {"per": "image"}, everything),
    "moments of channels": (dn.moments, {"pool": "mean"}, everything),
    "top_images": (dn.top_images, {"k": 1, "per": "neuron"}, everything),
    "cooccurrence": (dn.cooccurrence, {"k": 1}, everything),
    "cooccurrence above": (dn.cooccurrence, {"quantile": 0.5}, everything),
    "selectivity": (dn.selectivity, {"per": "neuron"}, only("gini", "flatness", "entropy", "class_selectivity")),
    "svd": (most, {"standardize": "image", "method": "gram"}, rebuilt),
    "svd of a triangle": (most, {"standardize": "neuron", "method": "tsqr"}, rebuilt),
    "svd by steps": (most, {"standardize": None, "method": "krylov"}, rebuilt),
    "random_projections": (dn.random_projections, {"directions": 2, "k": 1}, only("score", "variance", "vector")),
    "nmf": (dn.nmf, {"rank": 1, "max_iter": 6, "tol": 0}, product),
    "nmf mu": (dn.nmf, {"rank": 1, "max_iter": 6, "tol": 0, "update": "mu"}, product),
    "coupled_nmf": (coupled, {"rank": 1, "max_iter": 6, "tol": 0}, product),
    "single_neurons": (dn.single_neurons, {"count": 1, "baseline": 1, "k": 1}, only("variance")),
    "similarity": (dn.similarity, {"per": "neuron", "metric": ["pearson", "euclidean", "cosine", "covariance"]},
                   everything),
    "similarity of images": (dn.similarity, {"per": "image"}, everything),
    "neighbours": (dn.similarity, {"metric": "euclidean", "neighbours": 1}, only("euclidean_value")),
    "similar_places": (dn.similar_places, {"neighbours": 1}, only("own_chance", "other_chance")),
    "clusters": (dn.clusters, {"count": 1}, only("cluster", "size")),
    "clusters of images": (dn.clusters, {"count": 1, "metric": "euclidean", "per": "image"}, only("cluster", "size")),
    "kmeans": (dn.kmeans, {"count": 1}, only("cluster", "size", "centre")),
    "regression": (regression, {"folds": 1}, only("coefficient", "correlation", "r2")),
}  # fmt: skip
"""What is asked, how, and what of the answer does not depend on how ties or equal singular values fall out."""
ORDERED = {"top_images", "cooccurrence", "cooccurrence above", "single_neurons"}
"""They order float32 at most."""


def answer(ask: Callable[..., xr.Dataset], x: xr.DataArray, asked: dict[str, Any], part: Any) -> Any:
    """The part of an answer that is to be the same; the kind of error, with a way out, where it is refused."""
    try:
        return part(ask(x, client=EXECUTOR, **asked))
    except UsageError as error:
        assert error.hint, error.message
        return type(error)


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict) and isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            close(found[name], values, name)
    elif isinstance(expected, Array) and isinstance(found, Array):
        close(found, expected, "")
    else:
        assert found is expected


def close(found: Array, expected: Array, name: str) -> None:
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected, err_msg=name)
        return
    size = float(np.max(np.abs(expected), initial=0, where=np.isfinite(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * size + 1e-9, err_msg=name)


@pytest.mark.parametrize(("shape", "kind"), CASES, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_edges__are_the_same_however_cut_and_of_whatever_dtype(name: str, shape: tuple[int, ...], kind: str) -> None:
    ask, asked, part = FEW[name]
    values = values_of(kind, shape)
    whole = answer(ask, layer(values.astype("f4")), asked, part)
    without_places = name == "similar_places" and len(shape) == 2
    assert isinstance(whole, type) == (without_places or (name == "cooccurrence above" and shape[0] == 1))
    for dtype, chunks in (("f2", cells(shape)), ("f4" if name in ORDERED else "f8", panels(shape))):
        same(answer(ask, layer(values.astype(dtype), chunks), asked, part), whole)


MANY: dict[str, tuple[Callable[..., xr.Dataset], dict[str, Any]]] = {
    "top_images": (dn.top_images, {"k": 99}),
    "cooccurrence": (dn.cooccurrence, {"k": 99}),
    "random_projections": (dn.random_projections, {"directions": 99, "k": 99}),
    "single_neurons": (dn.single_neurons, {"count": 99, "baseline": 99, "k": 99}),
    "similarity": (dn.similarity, {"metric": "pearson", "neighbours": 99}),
    "similar_places": (dn.similar_places, {"neighbours": 99}),
    "clusters": (dn.clusters, {"count": 99, "k": 99}),
    "clusters of images": (dn.clusters, {"count": 99, "k": 99, "metric": "euclidean", "per": "image"}),
    "kmeans": (dn.kmeans, {"count": 2, "k": 99}),
    "kmeans of more": (dn.kmeans, {"count": 99}),
    "regression": (regression, {"k": 99, "folds": 0}),
    "folds": (regression, {"folds": 99}),
    "svd": (dn.svd, {"rank": 99}),
    "svd of all": (dn.svd, {"rank": "all"}),
    "nmf": (dn.nmf, {"rank": 99}),
    "coupled_nmf": (coupled, {"rank": 99}),
}
REFUSED = {"kmeans of more", "folds", "svd", "nmf", "coupled_nmf"}
"""More than there is has no meaning."""


@pytest.mark.parametrize(("shape", "kind"), [CASES[i] for i in (0, 4, 6, 8, 11)], ids=str)
@pytest.mark.parametrize("name", MANY)
def test_edges__more_than_there_is(name: str, shape: tuple[int, ...], kind: str) -> None:
    ask, asked = MANY[name]
    x = layer(values_of(kind, shape).astype("f4"), cells(shape))
    try:
        found = ask(x, client=EXECUTOR, **asked)
    except UsageError as error:
        assert error.hint, error.message
        assert name in REFUSED or len(shape) == 2 or name.startswith(("clusters", "kmeans", "single")), error.message
        return
    assert name not in REFUSED
    assert max(found.sizes.values()) <= max(99, x.size)
    for variable, values in found.data_vars.items():
        if values.dtype.kind in "iu" and "label" not in str(variable):
            assert int(values.min(initial=0)) >= -1, variable


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", FEW)
def test_edges__what_is_no_number_is_an_error(name: str, bad: float) -> None:
    ask, asked, _ = FEW[name]
    for shape in ((5, 2, 2, 3), (2 if name == "cooccurrence above" else 1, 1, 1, 1)):
        values = values_of("ordinary", shape).astype("f4")
        values[-1, 0, -1, -1] = bad
        for chunks in (None, cells(shape), panels(shape)):
            with pytest.raises(NonFiniteError, match=f"image {shape[0] - 1}") as caught:
                ask(layer(values, chunks), client=EXECUTOR, **asked)
            assert caught.value.hint


def test_edges__of_what_lies_beside_the_array() -> None:
    good, bad = layer(values_of("ordinary", (5, 4))), layer(values_of("ordinary", (5, 4)))
    bad[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"image 2, neuron \(1,\)"):
        dn.regression(good, source=bad, client=EXECUTOR)
    with pytest.raises(NonFiniteError, match="two: image 2"):
        dn.coupled_nmf({"one": good, "two": bad}, rank=1, client=EXECUTOR)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 1, 3, 3, 1), (1, 5, 1, 1, 3), (2, 5, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["ordinary", "dead", "constant"])
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_edges__of_patches(shape: tuple[int, ...], kind: str, dtype: str) -> None:
    dims = ("channel", "sample", "row", "column", "color")
    values = (8 * values_of(kind, shape)).astype(dtype)
    x = xr.DataArray(da.from_array(values, chunks=(1, -1, -1, -1, -1)), dims=dims)
    found = dn.patch_components(x, rank=1, k=99, keep=99, client=EXECUTOR)
    assert found["patch"].shape == shape
    varies = np.ptp(values.mean(-1).reshape(*shape[:2], -1), axis=1).any(1)
    assert ((found["grey_rank"] == 1) == varies).all()
    assert np.isfinite(found["grey"].values[varies]).all()
    flat = x[..., 0].stack(pixel=("row", "column")).drop_vars(["pixel", "row", "column"])
    alone = dn.ica(flat, rank=1, client=EXECUTOR)
    assert ((alone["rank"] == 1) == np.ptp(values[..., 0].reshape(*shape[:2], -1), axis=1).any(1)).all()
    for ask in (dn.ica, dn.patch_components):
        with pytest.raises(UsageError, match="rank=99") as caught:
            ask(flat if ask is dn.ica else x, rank=99, client=EXECUTOR)
        assert caught.value.hint
    if dtype != "u1":
        values[-1, -1, -1, -1, -1] = np.nan
        for ask in (dn.ica, dn.patch_components):
            spoilt = x.copy(data=values)
            with pytest.raises(NonFiniteError) as error:
                ask(spoilt[..., -1].rename(row="a", column="b") if ask is dn.ica else spoilt, rank=1, client=EXECUTOR)
            assert error.value.hint


@pytest.mark.parametrize("index", [dn.gini, dn.spectral_flatness, dn.class_selectivity])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "bool"])
@pytest.mark.parametrize("kind", ["ordinary", "dead", "constant"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (6, 1), (5, 3, 2, 2)], ids=str)
def test_edges__of_indices(index: Any, dtype: str, kind: str, shape: tuple[int, ...]) -> None:
    values = np.floor(values_of(kind, shape)).astype(dtype)
    for dim in ("image", "channel"):
        axis = NAMES.index(dim)
        wanted = index(np.moveaxis(values, axis, -1).astype("f8"))
        for chunks in (None, cells(shape), panels(shape)):
            np.testing.assert_allclose(index(layer(values, chunks), dim=dim), wanted, rtol=1e-12, atol=1e-12)
    if dtype in ("f4", "f8"):
        values.flat[0] = np.nan
        found = index(layer(values, cells(shape)), dim="image")
        assert index is dn.class_selectivity or np.isnan(found.values.flat[0])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 1), (1, 4, 3, 3), (2, 3, 1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["ordinary", "dead"])
def test_edges__of_weights(shape: tuple[int, ...], kind: str) -> None:
    values = values_of(kind, shape) - (kind == "ordinary")
    dims = ("channel", "source_channel", "y", "x")
    found = dn.connections(xr.DataArray(values.astype("f4"), dims=dims), k=99)
    np.testing.assert_allclose(found["strength"], np.sqrt((values**2).sum((2, 3))), rtol=1e-6)
    assert found["strongest"].shape == shape[:2]
    np.testing.assert_allclose(found["share"], np.where(values.any((1, 2, 3)), 1, np.nan))
    for wrong in (np.nan, np.inf):
        values[-1, 0, 0, 0] = wrong
        with pytest.raises(DneuroError, match=rf"\({shape[0] - 1}, 0, 0, 0\) is {wrong}") as caught:
            dn.connections(xr.DataArray(values, dims=dims))
        assert caught.value.hint
    for odd in ("c8", "U4", "bool"):
        with pytest.raises(UsageError, match="holds") as refused:
            dn.connections(xr.DataArray(np.ones(shape).astype(odd), dims=dims))
        assert refused.value.hint
