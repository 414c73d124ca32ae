"""Ridge regression against scikit-learn on the whole arrays."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge

import dneuro as dn
from dneuro.analysis.regressing.asked import Asked, asked, deal
from dneuro.analysis.regressing.by_images import ByImages
from dneuro.analysis.regressing.by_products import ByProducts
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError
from dneuro.quantities import GiB, MiB

EXECUTOR = ThreadExecutor(2)
RNG = np.random.default_rng(8)
A = np.maximum(RNG.normal(3, 1, (60, 4, 2, 2)), 0).astype("f4")
B = np.concatenate([A[:, :2, :1] * 2 + A[:, 2:, :1], RNG.normal(50, 1, (60, 1, 1, 2))], axis=1).astype("f4")


WAYS: dict[str, Any] = {
    "all folds in one pass": lambda wanted: ByProducts(wanted, wanted.folds),
    "two folds at a time": lambda wanted: ByProducts(wanted, 2),
    "fold by fold": lambda wanted: ByProducts(wanted, 1),
    "products of images": ByImages,
}


def labelled(values: np.ndarray, chunks: int) -> xr.DataArray:
    dims = ("image", "channel", "y", "x")[: values.ndim]
    return xr.DataArray(da.from_array(values, chunks=(chunks, *values.shape[1:])), dims=dims)


def reference(ridge: float, fold: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    a, b = (values.reshape(60, values.shape[1], -1).max(axis=2).astype("f8") for values in (A, B))
    model = Ridge(alpha=60 * ridge) if ridge else LinearRegression()
    za, zb = (a - a.mean(axis=0)) / a.std(axis=0), (b - b.mean(axis=0)) / b.std(axis=0)
    model.fit(za, zb)
    r2 = 1 - ((model.predict(za) - zb) ** 2).sum(axis=0) / (zb**2).sum(axis=0)
    if fold is None:
        return model.coef_, r2
    left = total = np.zeros(b.shape[1])
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        middle, spread = a[train].mean(axis=0), a[train].std(axis=0)
        part = Ridge(alpha=train.sum() * ridge) if ridge else LinearRegression()
        part.fit((a[train] - middle) / spread, b[train])
        left = left + ((b[test] - part.predict((a[test] - middle) / spread)) ** 2).sum(axis=0)
        total = total + ((b[test] - b[train].mean(axis=0)) ** 2).sum(axis=0)
    return model.coef_, r2, 1 - left / total


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_regression__is_that_of_scikit_learn(ridge: float) -> None:
    found = dn.regression(labelled(B, 11), source=labelled(A, 7), ridge=ridge, folds=4, seed=3, client=EXECUTOR)
    coefficient, r2, held_out = reference(ridge, deal(60, None, 4, 3))
    np.testing.assert_allclose(found["coefficient"], coefficient, atol=1e-8)
    np.testing.assert_allclose(found["r2"], r2, atol=1e-9)
    np.testing.assert_allclose(found["r2_held_out"], held_out, atol=1e-9)
    assert found["strongest"].values[:, 0].tolist() == np.abs(coefficient).argmax(axis=1).tolist()
    assert found["coefficient"].dims == ("channel", "source_channel")
    a, b = (values.reshape(60, values.shape[1], -1).max(axis=2).astype("f8") for values in (A, B))
    np.testing.assert_allclose(found["correlation"], np.corrcoef(b.T, a.T)[:3, 3:], atol=1e-9)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 6))
@settings(max_examples=15, deadline=None)
def test_regression__does_not_depend_on_the_cut(one: int, other: int, folds: int) -> None:
    whole = dn.regression(labelled(B, 60), source=labelled(A, 60), folds=folds, client=EXECUTOR)
    cut = dn.regression(labelled(B, one), source=labelled(A, other), folds=folds, client=EXECUTOR)
    xr.testing.assert_allclose(whole, cut, atol=1e-8)


def test_regression__noise_is_not_predicted_where_it_was_not_seen() -> None:
    noise = labelled(RNG.normal(size=(60, 1)).astype("f4"), 60)
    many = labelled(RNG.normal(size=(60, 40)).astype("f4"), 60)
    found = dn.regression(noise, source=many, ridge=0, client=EXECUTOR)
    assert found["r2"] > 0.4
    assert found["r2_held_out"] < 0.2


def test_regression__takes_scores_and_selections_and_constant_features() -> None:
    x = labelled(B, 60).copy()
    x[:, 2] = 4.0
    score = dn.svd(labelled(A, 60), rank=3, client=EXECUTOR)["score"]
    found = dn.regression(x, source=score, client=EXECUTOR)
    assert found["coefficient"].dims == ("channel", "source_component")
    assert np.isnan(found["r2"][2])
    assert np.isnan(found["coefficient"][2]).all()
    some = [dn.select(part, sample=30) for part in (x, labelled(A, 9))]
    small = dn.regression(some[0], source=some[1], folds=0, client=EXECUTOR)
    assert small.attrs["images"] == 30
    assert np.isnan(small["r2_held_out"]).all()


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [({"ridge": -1.0}, "ridge=-1"), ({"folds": 61}, "folds=61 of 60"), ({"k": 0}, "k=0")],
)
def test_regression__refuses_what_cannot_be(given_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        dn.regression(labelled(B, 60), source=labelled(A, 60), client=EXECUTOR, **given_settings)


def test_regression__refuses_other_images() -> None:
    with pytest.raises(ArrayError, match="59 images"):
        dn.regression(labelled(B, 60), source=labelled(A[:59], 60), client=EXECUTOR)
    names = np.array([f"{number}.png" for number in range(60)], dtype=object)
    x, source = (labelled(values, 60).assign_coords(image=names) for values in (B, A))
    assert dn.regression(x, source=source, client=EXECUTOR).attrs["images"] == 60
    with pytest.raises(ArrayError, match="in another order"):
        dn.regression(x, source=source.assign_coords(image=names[::-1]), client=EXECUTOR)


def held_out(a: np.ndarray, b: np.ndarray, fold: np.ndarray, ridge: float) -> np.ndarray:
    """What scikit-learn says of the images of each fold, from the others, among whom a source may be constant."""
    left = total = np.zeros(b.shape[1])
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        spread = a[train].std(axis=0)
        spread[spread < 1e-9] = np.inf
        z = (a - a[train].mean(axis=0)) / spread
        model = (Ridge(alpha=train.sum() * ridge) if ridge else LinearRegression()).fit(z[train], b[train])
        left = left + ((b[test] - model.predict(z[test])) ** 2).sum(axis=0)
        total = total + ((b[test] - b[train].mean(axis=0)) ** 2).sum(axis=0)
    return 1 - left / total


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize(("images", "sources"), [(40, 70), (90, 30)])
def test_regression__is_that_of_scikit_learn_in_every_way(way: str, ridge: float, images: int, sources: int) -> None:
    a = RNG.normal(5, 2, (images, sources))
    a[:, 3], a[:, 4] = 0.1, 0.0
    a[7, 4] = 9.0  # where its fold is held out nothing is left that varies
    b = a[:, :6] @ RNG.normal(size=(6, 5)) + RNG.normal(100, 1, (images, 5))
    wanted = asked(labelled(b, 11), labelled(a, 17), ridge, 5, "max", 5, 2)
    found = WAYS[way](wanted).fit(EXECUTOR)
    spread = a.std(axis=0)
    spread[3] = np.inf
    z, y = (a - a.mean(axis=0)) / spread, (b - b.mean(axis=0)) / b.std(axis=0)
    model = (Ridge(alpha=images * ridge) if ridge else LinearRegression()).fit(z, y)
    np.testing.assert_allclose(found.coefficient(), model.coef_, atol=1e-7)
    np.testing.assert_allclose(found.r2(), 1 - ((model.predict(z) - y) ** 2).sum(axis=0) / images, atol=1e-8)
    np.testing.assert_allclose(found.r2_held_out(), held_out(a, b, wanted.fold, ridge), atol=1e-7)
    live = np.arange(sources) != 3
    expected = np.corrcoef(b.T, a[:, live].T)[:5, 5:]
    np.testing.assert_allclose(found.correlation()[:, live], expected, atol=1e-9)
    assert np.isnan(found.correlation()[:, 3]).all()


@pytest.mark.parametrize("way", WAYS)
def test_regression__of_selected_images_in_every_way(way: str) -> None:
    some = [dn.select(labelled(values, 13), sample=37, seed=1) for values in (B, A)]
    wanted: Asked = asked(some[0], some[1], 1e-2, 4, "max", 5, 0)
    found = WAYS[way](wanted).fit(EXECUTOR)
    chosen = some[0]["selected"].values
    a, b = (values.reshape(60, values.shape[1], -1).max(axis=2).astype("f8")[chosen] for values in (A, B))
    np.testing.assert_allclose(found.r2_held_out(), held_out(a, b, wanted.fold[chosen], 1e-2), atol=1e-8)


def wide(images: int, sources: int, targets: int) -> tuple[xr.DataArray, xr.DataArray]:
    return tuple(
        xr.DataArray(da.zeros((images, count), chunks=(500, count), dtype="f4"), dims=("image", "channel"))
        for count in (targets, sources)
    )  # type: ignore[return-value]


def test_plan__takes_as_many_folds_at_a_time_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: 256 * GiB)
    x, source = wide(50_000, 4096, 4096)
    plans = {limit: dn.plan("regression", x, source=source, client=ThreadExecutor(2, memory=limit * GiB))
             for limit in (64, 16, 8)}  # fmt: skip
    assert [plan.passes for plan in plans.values()] == sorted(plan.passes for plan in plans.values())
    assert plans[64].passes == 1
    assert plans[8].passes == 6, "all images together, then each of five folds"
    assert "1 of 5 folds at a time" in plans[8].method
    for limit, plan in plans.items():
        assert plan.fits(ThreadExecutor(2, memory=limit * GiB)), limit
    assert plans[8].worker_bytes + plans[8].driver_bytes < 6 * GiB
    few = dn.plan("regression", *wide(3000, 4096, 4096)[:1], source=wide(3000, 4096, 4096)[1], client=EXECUTOR)
    assert few.passes == 1
    assert "products of images" in few.method
    assert few.worker_bytes + few.driver_bytes < 2 * GiB
    with pytest.raises(MemoryLimitError, match="regression needs"):
        dn.regression(x, source=source, client=ThreadExecutor(2, memory=GiB))


def test_regression__chosen_by_the_limit_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: 256 * GiB)
    a = RNG.normal(size=(900, 700)).astype("f4")
    b = (a[:, :200] + RNG.normal(size=(900, 200))).astype("f4")
    x, source = labelled(b, 300), labelled(a, 300)
    roomy = dn.regression(x, source=source, client=ThreadExecutor(2, memory=8 * GiB))
    needed = {roomy.attrs["passes"]: roomy}
    for limit in range(1400, 600, -50):
        executor = ThreadExecutor(2, memory=limit * MiB)
        plan = dn.plan("regression", x, source=source, client=executor)
        if plan.passes not in needed and plan.fits(executor):
            needed[plan.passes] = dn.regression(x, source=source, client=executor)
    assert len(needed) > 2, "several ways were taken"
    for found in needed.values():
        xr.testing.assert_allclose(found, roomy, atol=1e-8)
