"""Random projections against the matrix product on the whole array."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError

EXECUTOR = ThreadExecutor(2)
RNG = np.random.default_rng(0)
VALUES = np.maximum(RNG.standard_normal((90, 6, 2, 2)) + RNG.standard_normal((6, 2, 2)), 0).astype("f4")
VALUES[:, 2] = 0
STANDARDIZE = st.sampled_from(["image", "neuron", "center", None])


def layer(values: Any = VALUES, chunks: Any = None, **coords: Any) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: values.ndim], coords=coords, name="layer")


def standardised(table: np.ndarray, how: str | None) -> np.ndarray:
    if how == "image":
        spread = np.where(np.ptp(table, axis=1) > 0, table.std(1), np.inf)
        return (table - table.mean(1, keepdims=True)) / spread[:, None]
    z = table - table.mean(0) if how else table
    return z / np.where(np.ptp(table, axis=0) > 0, table.std(0), np.inf) if how == "neuron" else z


@given(st.data(), STANDARDIZE, st.sampled_from(["gaussian", "uniform"]), st.sampled_from(["f2", "f4", "f8"]))
@settings(max_examples=60, deadline=None)
def test_random_projections__as_a_product(data: st.DataObject, how: Any, entries: Any, dtype: str) -> None:
    images, neurons = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    values = np.maximum(np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((images, neurons)), 0)
    values = values.astype(dtype)
    if data.draw(st.booleans()):
        values[:, 0] = 3.5
    chunks = (data.draw(st.integers(1, images)), data.draw(st.integers(1, neurons)))
    status = np.zeros(images, "u1")
    if images > 1 and data.draw(st.booleans()):
        status[data.draw(st.integers(0, images - 1))] = 1
    numbers, labels = np.arange(images) * 7, np.arange(images) % 3
    x = layer(values, chunks, status=("image", status), image=numbers, label=("image", labels))
    k = data.draw(st.integers(1, 15))
    found = dn.random_projections(x, directions=9, entries=entries, standardize=how, k=k, seed=4, client=EXECUTOR)
    z = standardised(values[status == 0].astype("f8"), how)
    v = found["vector"].values
    assert v.shape == (9, neurons)
    score = z @ v.T
    np.testing.assert_allclose(found["score"], score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["mean"], score.mean(0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["variance"], score.var(0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["neuron_variance"], z.var(0), rtol=0, atol=1e-10)
    own = found["score"].values
    read = numbers[status == 0]
    for end, sign in (("top", -1), ("bottom", 1)):
        order = np.argsort(sign * own, axis=0, kind="stable")[:k].T
        np.testing.assert_array_equal(found[f"{end}_image"], read[order])
        np.testing.assert_array_equal(found[f"{end}_label"], labels[status == 0][order])
        np.testing.assert_array_equal(found[f"{end}_value"], np.take_along_axis(own.T, order, 1))
    np.testing.assert_array_equal(found["image"], read)
    limit = np.quantile(found["variance"], 0.9)
    np.testing.assert_array_equal(found["kept"], found["variance"] >= limit)
    assert found.attrs["cutoff"] == limit


@pytest.mark.parametrize("how", ["image", "neuron", "center", None])
def test_random_projections__do_not_depend_on_the_chunking(how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 500)
    whole = dn.random_projections(layer(), directions=20, standardize=how, client=ThreadExecutor(1))
    for chunks in ((7, 6, 2, 2), (90, 1, 2, 1), ((1, 80, 9), 4, 1, 2)):
        cut = dn.random_projections(layer(chunks=chunks), directions=20, standardize=how, client=EXECUTOR)
        xr.testing.assert_allclose(whole, cut, rtol=1e-10, atol=1e-12)
        xr.testing.assert_identical(whole["vector"], cut["vector"])
        for name in ("kept", "top_image", "bottom_image"):
            xr.testing.assert_identical(whole[name], cut[name])


def test_directions__are_seeded_unit_vectors() -> None:
    few = dn.random_projections(layer(), directions=5, seed=3, client=EXECUTOR)
    many = dn.random_projections(layer(), directions=50, seed=3, client=EXECUTOR)
    np.testing.assert_array_equal(few["vector"], many["vector"][:5])
    np.testing.assert_allclose((many["vector"] ** 2).sum(("channel", "y", "x")), 1)
    assert abs(float(many["vector"].mean())) < 0.03
    other = dn.random_projections(layer(), directions=5, seed=4, client=EXECUTOR)
    assert (other["vector"] != few["vector"]).all()
    uniform = dn.random_projections(layer(), directions=50, entries="uniform", client=EXECUTOR)["vector"]
    assert 0 <= uniform.min() < 0.02
    assert 0.98 < uniform.max() < 1


def test_variance__along_a_direction_is_that_of_a_neuron_on_average() -> None:
    found = dn.random_projections(layer(), directions=4000, standardize="center", client=EXECUTOR)
    assert float(found["variance"].mean()) == pytest.approx(float(found["neuron_variance"].mean()), rel=0.03)
    assert int(found["kept"].sum()) == 400
    some = dn.random_projections(layer(), directions=40, cutoff=0.3, standardize="center", client=EXECUTOR)
    np.testing.assert_array_equal(some["kept"], some["variance"] >= 0.3)
    all_of_them = dn.random_projections(layer(), directions=40, quantile=0.0, client=EXECUTOR)
    assert all_of_them["kept"].all()


def test_variance__of_uniform_entries_is_a_twelfth_of_all_variances() -> None:
    """What the paper's cut-off is measured by: an image standardised over its neurons sums to 0, whatever v's mean."""
    found = dn.random_projections(layer(), directions=4000, entries="uniform", standardize="image", client=EXECUTOR)
    assert float(found["variance"].mean()) == pytest.approx(float(found["neuron_variance"].sum()) / 12, rel=0.03)


def test_plan__of_random_projections() -> None:
    x = layer(chunks=(30, 6, 2, 2), label=("image", np.zeros(90, int)))
    plan = dn.plan("random_projections", x, directions=7, k=5)
    found = dn.random_projections(x, directions=7, k=5, client=EXECUTOR)
    assert plan.result_bytes == found.nbytes
    assert plan.passes == 1
    assert dn.plan("random_projections", x, standardize="neuron").passes == 2
    assert dn.plan("random_projections", x, standardize="center").passes == 1
    with pytest.raises(MemoryLimitError, match="random_projections needs"):
        dn.random_projections(x, client=ThreadExecutor(1, memory=2**20))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"directions": 0}, "directions=0"),
        ({"directions": 2.0}, r"directions=2\.0"),
        ({"k": 0}, "k=0"),
        ({"entries": "normal"}, "entries='normal'"),
        ({"standardize": "row"}, "standardize='row'"),
        ({"cutoff": -1.0}, r"cutoff=-1\.0"),
        ({"cutoff": float("nan")}, "cutoff=nan"),
        ({"quantile": 1.5}, r"quantile=1\.5"),
        ({"quantile": 0.5, "cutoff": 1.0}, "only one can say what is kept"),
    ],
)
def test_random_projections__refuse_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        dn.random_projections(layer(), **wrong)


def test_random_projections__name_the_place_of_nan() -> None:
    values = VALUES.copy()
    values[5, 1, 1, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer: image 5, neuron \(1, 1, 0\)"):
        dn.random_projections(layer(values), client=EXECUTOR)
