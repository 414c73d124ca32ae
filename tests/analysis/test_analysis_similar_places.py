"""Neighbours by offset against a count over all pairs."""

from __future__ import annotations

import itertools

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError

EXECUTOR = ThreadExecutor(2)
SHAPE = (3, 4, 2)


def layer() -> xr.DataArray:
    values = np.random.default_rng(5).normal(size=(30, *SHAPE)).astype("f4")
    values[:, 1, 2, 0] = 7  # constant: no neighbour of anybody
    return xr.DataArray(da.from_array(values, chunks=(8, 3, 4, 2)), dims=("image", "channel", "y", "x"))


def test_similar_places__counts_by_offset_and_channel() -> None:
    x = layer()
    found = dn.similar_places(x, neighbours=3, client=EXECUTOR)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(x.values.reshape(30, -1).astype("f8").T)
    np.fill_diagonal(r, np.nan)
    places = list(itertools.product(*map(range, SHAPE)))
    own, other = np.zeros((7, 3), int), np.zeros((7, 3), int)
    channels = np.zeros((3, 3), int)
    for first, row in enumerate(r):
        if np.isnan(row).all():
            continue
        for second in np.argsort(-np.nan_to_num(row, nan=-9))[:3]:
            (c, y, w), (d, v, u) = places[first], places[second]
            (own if c == d else other)[v - y + 3, u - w + 1] += 1
            channels[c, d] += 1
    np.testing.assert_array_equal(found["own"], own)
    np.testing.assert_array_equal(found["other"], other)
    np.testing.assert_array_equal(found["channel_pairs"], channels)
    assert found.attrs["pairs"] == 3 * 23
    assert found.attrs["own_share"] == own.sum() / (3 * 23)
    assert found["dy"].values.tolist() == list(range(-3, 4))


def test_similar_places__chance_is_that_of_all_pairs() -> None:
    found = dn.similar_places(layer(), neighbours=1, client=EXECUTOR)
    places = list(itertools.product(*map(range, SHAPE)))
    own, other = np.zeros((7, 3)), np.zeros((7, 3))
    for (c, y, w), (d, v, u) in itertools.permutations(places, 2):
        (own if c == d else other)[v - y + 3, u - w + 1] += 1
    scale = found.attrs["pairs"] / (own + other).sum()
    np.testing.assert_allclose(found["own_chance"], own * scale)
    np.testing.assert_allclose(found["other_chance"], other * scale)
    assert found.attrs["own_share_chance"] == pytest.approx(7 / 23)


def test_similar_places__are_asked_of_layers_with_positions() -> None:
    with pytest.raises(ArrayError, match="where neurons lie"):
        dn.similar_places(layer().isel(y=0, x=0), client=EXECUTOR)
    with pytest.raises(ArrayError, match="neighbours=0"):
        dn.plan("similar_places", layer(), neighbours=0)
