"""How selective neurons are: against the definitions on the whole array, and against chance."""

from __future__ import annotations

import tracemalloc
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import dneuro as dn
from dneuro import events
from dneuro.analysis.chance import facets_by_chance, p_values
from dneuro.engine import ThreadExecutor
from dneuro.engine.device import process_bytes
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2, -1], [20, 25, 15, 4])
VALUES = np.maximum(RNG.standard_normal((64, 5, 2, 2)) + 2.0 * (LABELS[:, None, None, None] == 1), 0).astype("f4")
VALUES[:, 3] = 0
EXECUTOR = ThreadExecutor(2)


def layer(values: Any = VALUES, chunks: Any = None, **coords: Any) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    dims = ("image", "channel", "y", "x")[: values.ndim]
    known = {"label": ("image", LABELS)} | coords
    return xr.DataArray(data, dims=dims, coords=known, attrs={"class_names": ["cat", "dog", "owl", "emu"]})


@pytest.mark.parametrize("chunks", [None, (64, 1, 2, 2), (7, 5, 2, 2), (10, 2, 1, 2)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_selectivity__of_class_means(chunks: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 500)
    values = VALUES.astype(dtype)
    for per, pool, table in (
        ("channel", "mean", values.mean((2, 3), dtype="f8").astype("f4")),
        ("channel", "max", values.max((2, 3))),
        ("neuron", "mean", values.reshape(64, -1)),
    ):
        found = dn.selectivity(layer(values, chunks), per=per, pool=pool, client=EXECUTOR)  # type: ignore[arg-type]
        means = np.stack([table[c == LABELS].mean(0, dtype="f8") for c in range(3)], axis=1)
        best = means.max(1)
        rest = (means.sum(1) - best) / 2
        with np.errstate(invalid="ignore"):
            expected = (best - rest) / (best + rest)
        np.testing.assert_allclose(found["class_selectivity"].values.ravel(), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found["gini"].values.ravel(), dn.gini(means), rtol=1e-6, atol=1e-9)
        dead = ~table.any(axis=0)
        np.testing.assert_array_equal(found["preferred_class"].values.ravel(), np.where(dead, -1, means.argmax(1)))
        np.testing.assert_array_equal(found["flatness"].values.ravel() == -1, dead)
        assert "counted" not in found


def test_selectivity__leaves_out_images_that_could_not_be_read() -> None:
    values, status = VALUES.copy(), np.zeros(64, "u1")
    status[[0, 30]] = 1
    values[status == 1] = np.nan
    found = dn.selectivity(layer(values, status=("image", status)), client=EXECUTOR)
    x = layer().isel(image=np.flatnonzero(status == 0))
    xr.testing.assert_identical(found, dn.selectivity(x, client=EXECUTOR))
    with pytest.raises(ArrayError, match="none of the images that could be read has one"):
        dn.selectivity(layer(status=("image", (LABELS >= 0).astype("u1"))), client=EXECUTOR)


def test_selectivity__says_which_classes_have_no_images() -> None:
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.selectivity(layer(), client=EXECUTOR)
    assert any("1 of 4 classes have no images" in note for note in notes), notes
    assert found["gini"].max() <= 1 - 1 / 3 + 1e-12, "of three classes"


def test_selectivity__of_counts_is_compared_with_chance() -> None:
    counts = dn.cooccurrence(layer(), k=20, client=EXECUTOR)["count"]
    assert counts["class_size"].values.tolist() == [20, 25, 15, 0]
    found = dn.selectivity(counts, chance=300, seed=1)
    table = counts.values[:, :3]  # nothing is an emu
    np.testing.assert_array_equal(found["counted"], table.sum(1))
    np.testing.assert_allclose(found["mf"], dn.spectral_flatness(table) / dn.gini(table))
    live = found["counted"].values == 20
    assert live.sum() >= 3
    # An independent way to draw: shuffle all labels, take the first.
    rng = np.random.default_rng(7)
    drawn = np.stack([np.bincount(rng.permutation(LABELS[LABELS >= 0])[:20], minlength=3) for _ in range(2000)])
    chance = dn.spectral_flatness(drawn) / dn.gini(drawn)
    error = 4 * chance.std() / np.sqrt(300)
    assert np.abs(found["mf_chance"].values[live] - chance.mean()).max() < error
    assert np.abs(found["mf_chance_std"].values[live] - chance.std()).max() < 2 * error
    for value, p in zip(found["mf"].values[live], found["p_chance"].values[live], strict=True):
        assert p == pytest.approx((chance <= value).mean(), abs=0.12)
    xr.testing.assert_identical(found, dn.selectivity(counts, chance=300, seed=1))
    assert (dn.selectivity(counts, chance=300, seed=2)["mf_chance"] != found["mf_chance"])[live].all()
    assert not {"mf_chance", "p_chance"} & set(dn.selectivity(counts, chance=0))


def test_selectivity__of_dead_neurons_only() -> None:
    counts = xr.DataArray(np.zeros((3, 4), int), dims=("channel", "class"))
    found = dn.selectivity(counts)
    assert (found["flatness"] == -1).all()
    assert (found["preferred_class"] == -1).all()
    for name in ("gini", "mf", "entropy", "class_selectivity", "p_low", "mf_chance", "p_chance"):
        assert np.isnan(found[name]).all(), name


def test_selectivity__prefers_nothing_where_nothing_is_known() -> None:
    nan, inf = np.nan, np.inf
    means = [[1.0, 2, 3, nan], [nan, nan, nan, nan], [nan, 0, 0, nan], [nan, -1, 0, nan], [-inf, nan, nan, nan]]
    found = dn.selectivity(xr.DataArray(means, dims=("channel", "class")))
    assert found["preferred_class"].values.tolist() == [2, -1, -1, 2, -1]


@pytest.mark.parametrize("per", ["channel", "neuron"])
def test_selectivity__of_one_image_one_class_one_neuron(per: Any) -> None:
    x = xr.DataArray(np.ones((1, 1), "f4"), dims=("image", "channel"), coords={"label": ("image", [0])})
    found = dn.selectivity(x, per=per)
    assert found["gini"].values.ravel().tolist() == [0.0]
    assert np.isnan(found["class_selectivity"]).all()


@given(st.lists(st.integers(0, 12), min_size=1, max_size=10), st.integers(1, 30), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_chance__any_counts(counted: list[int], draws: int, seed: int) -> None:
    sizes = np.array([5, 0, 4, 3])
    values = np.linspace(0, 3, len(counted))
    values[0] = np.nan
    found = facets_by_chance(values, np.array(counted), sizes, draws=draws, seed=seed)
    some = (np.array(counted) > 0) & np.isfinite(values)
    assert (np.isfinite(found.p) == some).all()
    assert ((found.p[some] >= 1 / (1 + draws)) & (found.p[some] <= 1)).all()
    one = np.array(counted) == 1
    assert (found.mean[one] < 1e-4).all(), "one image lies in one class"


def test_p_values__as_a_normal_fitted_to_the_others() -> None:
    values = np.append(RNG.standard_normal(40) + 100, [np.nan, np.inf])
    low, high = p_values(values)
    for i in range(40):
        mean, spread = stats.norm.fit(np.delete(values[:40], i))
        assert low[i] == pytest.approx(stats.norm.cdf(values[i], mean, spread), rel=1e-9)
        assert high[i] == pytest.approx(stats.norm.sf(values[i], mean, spread), rel=1e-9)
    assert np.isnan([*low[40:], *high[40:]]).all()
    for few in ([], [1.0], [1.0, 2.0], [3.0] * 5):
        assert np.isnan(p_values(np.array(few))[0]).all()
    low, high = p_values(np.array([1.0, 1.0, 1.0, 2.0]))
    assert np.isnan(low[3]), "the others are all the same"
    assert np.isfinite(low[:3]).all()


def test_indices__keep_labels_and_read_lazily() -> None:
    lazy = layer(chunks=(16, 2, 2, 1))
    found = dn.gini(lazy, dim="channel")
    assert found.chunks is not None
    assert found.dims == ("image", "y", "x")
    np.testing.assert_allclose(found, dn.gini(np.moveaxis(VALUES, 1, -1)))
    assert dn.class_selectivity(xr.DataArray([[3.0, 1.0]], dims=("class", "channel")))[0].isnull()
    for function in (dn.gini, dn.spectral_flatness, dn.class_selectivity):
        with pytest.raises(ArrayError, match="none is named 'clas'") as caught:
            function(lazy, dim="clas")
        assert "image" in str(caught.value.hint)
        with pytest.raises(ArrayError, match="no rows"):
            function(np.float64(3))


def test_selectivity__refuses_what_it_cannot_use() -> None:
    with pytest.raises(ArrayError, match="none is named 'image'"):
        dn.selectivity(xr.DataArray(np.ones((3, 2)), dims=("a", "b")))
    with pytest.raises(ArrayError, match=r"needed is \(image, channel"):
        dn.selectivity(xr.DataArray(np.ones(3), dims="class"))
    with pytest.raises(ArrayError, match="holds bool"):
        dn.selectivity(xr.DataArray(np.ones((3, 2), bool), dims=("channel", "class")))
    with pytest.raises(ArrayError, match="chance=-1"):
        dn.selectivity(layer(), chance=-1)
    with pytest.raises(ArrayError, match="no coordinate 'label'"):
        dn.selectivity(layer().drop_vars("label"))
    values = VALUES.copy()
    values[3, 2, 1, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"image 3, neuron \(2, 1, 0\)"):
        dn.selectivity(layer(values), client=EXECUTOR)
    with pytest.raises(MemoryLimitError, match="selectivity needs"):
        dn.selectivity(layer(), client=ThreadExecutor(1, memory=2**20))


def test_plan__sizes_of_selectivity() -> None:
    assert dn.plan("selectivity", layer()).passes == 1
    counts = dn.cooccurrence(layer(), k=9, client=EXECUTOR)["count"]
    plan = dn.plan("selectivity", counts)
    assert plan.passes == 0
    assert plan.result_bytes >= dn.selectivity(counts).nbytes - 8 * 5


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", ["gini", "spectral_flatness", "class_selectivity"])
def test_index__is_planned(name: str, last: bool, counted: Any) -> None:
    values = np.random.default_rng(0).random((3000, 4096)).astype("f4")
    if last:
        x, reads = counted(values, (1000, 512), dims=("neuron", "class"))
    else:
        x, reads = counted(np.ascontiguousarray(values.T), (512, 1000), dims=("class", "neuron"))
    one = ThreadExecutor(1)
    plan = dn.plan(name, x, client=one)
    assert (plan.passes, plan.tasks, plan.read_bytes, plan.result_bytes) == (1, 3, values.nbytes, 8 * 3000)
    lazy = getattr(dn, name)(x)
    assert not reads
    tracemalloc.start()
    try:
        lazy.compute(scheduler="synchronous")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert set(reads.values()) == {1}
    assert peak <= plan.worker_bytes - process_bytes(one) <= 3 * peak
    here = dn.plan(name, values)
    assert (here.passes, here.read_bytes, here.result_bytes) == (0, 0, 8 * 3000)
    for wrong in (x.rename({"class": "sort"}), values[:, :0]):
        with pytest.raises(ArrayError):
            dn.plan(name, wrong)
