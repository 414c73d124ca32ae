"""Neurons by variance against NumPy on the whole array."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError

EXECUTOR = ThreadExecutor(2)
RNG = np.random.default_rng(3)
VALUES = np.maximum(RNG.normal(size=(40, 5, 3, 2)) * RNG.uniform(0.1, 3, (5, 3, 2)), 0).astype("f4")
VALUES[:, 2, 1, 1] = 0


def layer(chunks: int = 7) -> xr.DataArray:
    data = da.from_array(VALUES, chunks=(chunks, 2, 3, 2))
    return xr.DataArray(data, dims=("image", "channel", "y", "x"), coords={"label": ("image", np.arange(40) % 4)})


def standardised(how: str | None) -> np.ndarray:
    flat = VALUES.reshape(40, -1).astype("f8")
    if how == "image":
        return (flat - flat.mean(axis=1, keepdims=True)) / flat.std(axis=1, keepdims=True)
    return flat - flat.mean(axis=0) if how == "center" else flat


@pytest.mark.parametrize("how", ["image", "center", None])
def test_single_neurons__are_those_of_largest_variance(how: Any) -> None:
    found = dn.single_neurons(layer(), count=4, baseline=6, standardize=how, k=9, seed=2, client=EXECUTOR)
    z = standardised(how)
    np.testing.assert_allclose(found["variance"].values.ravel(), z.var(axis=0), atol=1e-10)
    assert found["neuron"].values[:4].tolist() == np.argsort(-z.var(axis=0), kind="stable")[:4].tolist()
    assert found["random"].values.tolist() == [False] * 4 + [True] * 6
    for number, neuron in enumerate(found["neuron"].values):
        order = np.argsort(-z[:, neuron], kind="stable")[:9]
        np.testing.assert_allclose(found["top_value"].values[number], z[order, neuron], atol=1e-10)
        place = tuple(int(found[f"{dim}_place"][number]) for dim in ("channel", "y", "x"))
        assert np.ravel_multi_index(place, (5, 3, 2)) == neuron
        raw = VALUES.reshape(40, -1)[:, neuron]
        assert found["raw_ties"][number] == (raw == raw.min()).sum()
        np.testing.assert_array_equal(found["top_label"][number], found["top_image"][number] % 4)


def test_single_neurons__overlap_and_chance() -> None:
    found = dn.single_neurons(layer(), count=5, baseline=5, k=8, client=EXECUTOR)
    tops = [set(row) for row in found["top_image"].values.tolist()]
    expected = [[len(a & b) / 8 for b in tops] for a in tops]
    np.testing.assert_allclose(found["overlap"], expected)
    assert found.attrs["chance"] == 8 / 40


def test_single_neurons__depend_neither_on_chunks_nor_on_others_in_the_draw() -> None:
    one, other = (dn.single_neurons(layer(chunks), k=5, count=3, baseline=3, client=EXECUTOR) for chunks in (5, 40))
    xr.testing.assert_allclose(one, other)
    other_seed = dn.single_neurons(layer(), k=5, count=3, baseline=3, seed=1, client=EXECUTOR)
    assert other_seed["neuron"].values[3:].tolist() != one["neuron"].values[3:].tolist()


def test_single_neurons__obey_a_selection_and_leave_dead_neurons_out_of_the_draw() -> None:
    chosen = dn.select(layer(), sample=11, seed=4)
    found = dn.single_neurons(chosen, count=2, baseline=29, standardize=None, k=3, client=EXECUTOR)
    assert 2 * 6 + 3 not in found["neuron"].values[2:], "it is always silent"
    assert found.attrs["images"] == 11
    assert set(found["top_image"].values.ravel()) <= set(np.flatnonzero(chosen["selected"].values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"standardize": "neuron"}, "variance 1"), ({"count": 31}, "count=31 of 30"), ({"k": 0}, "k=0")],
)
def test_single_neurons__refuse_what_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        dn.single_neurons(layer(), client=EXECUTOR, **settings)


def test_single_neurons__are_planned() -> None:
    assert dn.plan("single_neurons", layer(), count=2, baseline=2, client=EXECUTOR).passes == 2
