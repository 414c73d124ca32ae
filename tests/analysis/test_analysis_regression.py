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
from dneuro.analysis.regression import _deal
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError

EXECUTOR = ThreadExecutor(2)
RNG = np.random.default_rng(8)
A = np.maximum(RNG.normal(3, 1, (60, 4, 2, 2)), 0).astype("f4")
B = np.concatenate([A[:, :2, :1] * 2 + A[:, 2:, :1], RNG.normal(50, 1, (60, 1, 1, 2))], axis=1).astype("f4")


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
    coefficient, r2, held_out = reference(ridge, _deal(60, None, 4, 3))
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
