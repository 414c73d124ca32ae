"""Co-occurrence above a quantile: both ways to find it, to the last bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dneuro as dn
from dneuro import events
from dneuro.analysis.quantiles import beyond
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError, UsageError
from dneuro.quantities import GiB

EXECUTOR = ThreadExecutor(2)
MODULE = sys.modules["dneuro.analysis.cooccurrence"]  # the package names the function so
RNG = np.random.default_rng(0)
LABELS = RNG.integers(-1, 4, 300)


@pytest.fixture(params=["by top images", "digit by digit"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "digit by digit":
            patch.setattr(MODULE, "LONGEST", 0)
        patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 2000)
        yield request.param


def labelled(values: Any, labels: Any = None, chunks: Any = None) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    coords = {"label": ("image", LABELS[: len(values)] if labels is None else labels)}
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: values.ndim], coords=coords, name="layer")


def check(found: xr.Dataset, table: np.ndarray, labels: np.ndarray, quantile: float) -> None:
    """Compare with `numpy.quantile` and counting; table is images × features."""
    threshold = np.quantile(table, quantile, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found["threshold"].values.ravel(), threshold)
    classes = found.sizes["class"]
    expected = [
        np.bincount(labels[(column > t) & (column > 0) & (labels >= 0)], minlength=classes)
        for column, t in zip(table.T, threshold, strict=True)
    ]
    np.testing.assert_array_equal(found["count"].values.reshape(-1, classes), expected)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("per", ["channel", "neuron"])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_cooccurrence__above_a_quantile(way: str, dtype: str, per: Any, quantile: float) -> None:
    values = np.maximum(RNG.integers(-9, 9, (300, 4, 2, 2)) / 4 + RNG.standard_normal((300, 4, 2, 2)), -1).astype(dtype)
    values[:, 3] = 0
    x = labelled(values, chunks=(70, 3, 2, 1))
    assert dn.plan("cooccurrence", x, quantile=quantile, per=per).method == way
    found = dn.cooccurrence(x, quantile=quantile, per=per, client=EXECUTOR)
    check(found, (values.max((2, 3)) if per == "channel" else values.reshape(300, -1)), LABELS, quantile)
    assert found["count"].dtype == np.int64
    assert found["threshold"].dtype == np.float32
    assert found.attrs["parameters"]["quantile"] == quantile


@pytest.mark.parametrize("chunks", [(300, 6), (7, 6), (50, 1), ((1, 199, 100), 4)])
def test_cooccurrence__above_a_quantile_under_any_chunking(way: str, chunks: Any) -> None:
    values = RNG.choice(np.array([-0.0, 0.0, 0.5, 1.0], "f4"), (300, 6))  # nearly all ties
    whole = dn.cooccurrence(labelled(values), quantile=0.6, client=ThreadExecutor(1))
    cut = dn.cooccurrence(labelled(values, chunks=chunks), quantile=0.6, client=EXECUTOR)
    xr.testing.assert_identical(whole, cut)
    check(cut, values, LABELS, 0.6)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cooccurrence__both_ways_agree(data: st.DataObject) -> None:
    images, neurons = data.draw(st.integers(2, 20)), data.draw(st.integers(1, 4))
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 65504.0, 0.1])
    values = np.array(data.draw(st.lists(some, min_size=images * neurons, max_size=images * neurons)))
    values = values.reshape(images, neurons).astype(data.draw(st.sampled_from(["f2", "f4"])))
    quantile = data.draw(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9]))
    status = np.array(data.draw(st.lists(st.booleans(), min_size=images, max_size=images)))
    if (~status).sum() - np.ceil(np.float64(quantile) * (~status).sum()) < 1:
        return
    x = labelled(values, np.arange(images) % 3 - 1).assign_coords(status=("image", status.astype("u1")))
    found = dn.cooccurrence(x, quantile=quantile, client=EXECUTOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "LONGEST", 0)
        xr.testing.assert_identical(found, dn.cooccurrence(x, quantile=quantile, client=EXECUTOR))
    check(found, values[~status] + 0, (np.arange(images) % 3 - 1)[~status], quantile)


def test_cooccurrence__takes_the_way_that_fits() -> None:
    x = labelled(da.zeros((1000, 20_000), chunks=(50, 20_000), dtype="f4"), np.zeros(1000, int))
    plan = dn.plan("cooccurrence", x, quantile=0.01, client=ThreadExecutor(1, memory=64 * GiB))
    assert (plan.method, plan.passes) == ("by top images", 1)
    other = dn.plan("cooccurrence", x, quantile=0.01, client=ThreadExecutor(1, memory=GiB))
    assert (other.method, other.passes) == ("digit by digit", 5)
    assert other.worker_bytes < GiB < plan.worker_bytes
    assert dn.plan("cooccurrence", x.astype("f2"), quantile=0.01, client=ThreadExecutor(1, memory=GiB)).passes == 3
    with pytest.raises(MemoryLimitError):
        dn.cooccurrence(x, quantile=0.01, client=ThreadExecutor(1, memory=2**20))


@pytest.mark.parametrize(
    ("quantile", "images", "above"), [(0.99, 100, 1), (0.7, 10, 3), (0.29, 100, 71), (0.999, 5000, 5)]
)
def test_beyond__takes_the_fraction_as_it_is_written(quantile: float, images: int, above: int) -> None:
    assert beyond(quantile, images) == above


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, 1, "0.5", float("nan"), True])
def test_beyond__refuses_what_is_no_quantile(quantile: Any) -> None:
    with pytest.raises(ArrayError, match="does not lie between 0 and 1"):
        beyond(quantile, 10)


def test_cooccurrence__refuses_a_quantile_that_nothing_lies_above() -> None:
    x = labelled(np.ones((50, 2), "f4"))
    with pytest.raises(ArrayError, match=r"quantile=0.99 of 50 images: none lies above it") as caught:
        dn.cooccurrence(x, quantile=0.99)
    assert caught.value.hint == "quantile=0.98"
    assert dn.cooccurrence(x, quantile=0.98)["count"].sum() == 0, "all are equal: none is above"
    with pytest.raises(ArrayError, match="more images"):
        dn.cooccurrence(x[:1], quantile=0.5)
    with pytest.raises(ArrayError, match=r"k=3 and quantile=0\.9"):
        dn.cooccurrence(x, k=3, quantile=0.9)
    with pytest.raises(ArrayError, match="holds float64"):
        dn.cooccurrence(x.astype("f8"), quantile=0.9)
    with pytest.raises(NonFiniteError):
        dn.cooccurrence(x * np.float32(np.nan), quantile=0.9)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_cooccurrence__digit_by_digit_keeps_the_array_or_reads_it_anew(
    counted: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "LONGEST", 0)
    values, roomy, found = RNG.standard_normal((300, 6)).astype(dtype), ThreadExecutor(2, memory=GiB), {}
    plans = {}
    for persist in ("auto", True, False):
        x, reads = counted(values, (70, 3))
        x = x.assign_coords(label=("image", LABELS))
        said: list[events.Event] = []
        with events.listening(said.append):
            plans[persist] = dn.plan("cooccurrence", x, quantile=0.5, persist=persist, client=roomy)
            assert not reads
            found[persist] = dn.cooccurrence(x, quantile=0.5, persist=persist, client=roomy)
        assert [event.data["persisted"] for event in said if event.data] == [persist is not False]
        assert set(reads.values()) == {plans[persist].passes if persist is False else 1}
        xr.testing.assert_identical(found[persist], found["auto"])
    assert plans["auto"].worker_bytes == plans[True].worker_bytes == plans[False].worker_bytes + values.nbytes
    with pytest.raises(UsageError, match="persist='often'"):
        dn.plan("cooccurrence", x, quantile=0.5, persist="often")
