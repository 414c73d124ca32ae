"""Single- and multi-faceted neurons of several layers: against SciPy on whole tables, and limits worked out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import dneuro as dn
from dneuro import events
from dneuro.analysis.chance import least_flatness
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError

RNG = np.random.default_rng(0)
K = 40


def counts(neurons: int, classes: int, sharpness: float, **coords: Any) -> xr.DataArray:
    """CoF rows of neurons that answer to few classes (large sharpness) or many."""
    shares = RNG.dirichlet(np.full(classes, 1 / sharpness), neurons)
    rows = np.stack([RNG.multinomial(K, row) for row in shares])
    return xr.DataArray(rows, dims=("channel", "class"), coords=coords)


def indices(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Gini, flatness and MF of rows (neurons, N), each from another form of its definition."""
    n = rows.shape[1]
    gini = np.abs(rows[:, :, None] - rows[:, None, :]).mean((1, 2)) / (2 * rows.mean(1))
    flat = 2 ** (stats.entropy(rows + 1e-7, base=n, axis=1)) - 1
    return {"gini": gini, "flatness": flat, "mf": flat / gini}


TABLES = {"early": counts(60, 12, 0.3), "middle": counts(30, 12, 2.0), "late": counts(45, 12, 9.0)}


def found_of(tables: dict[str, xr.DataArray] = TABLES, **settings: Any) -> xr.DataTree:
    return dn.facets({name: dn.selectivity(table, chance=20) for name, table in tables.items()}, **settings)


@pytest.mark.parametrize("per_layer", [False, True])
def test_facets__as_worked_out_on_whole_tables(per_layer: bool) -> None:
    found = found_of(per_layer=per_layer, k=4, cutoff=0.1)
    wanted = {name: indices(table.values.astype(float)) for name, table in TABLES.items()}
    largest = max(one["mf"].max() for one in wanted.values())
    together = np.concatenate([one["mf"] for one in wanted.values()]).mean() / largest
    assert found.attrs["largest"] == pytest.approx(largest)
    assert found.attrs["layer_of_largest"] == "early"
    assert found["layer"].values.tolist() == list(TABLES)
    for place, (name, one) in enumerate(wanted.items()):
        mf = one["mf"] / largest
        threshold = mf.mean() if per_layer else together
        own, row = found[name].to_dataset(), found.to_dataset().isel(layer=place)
        np.testing.assert_allclose(own["mf"], mf, rtol=1e-9)
        np.testing.assert_allclose(own["mf_raw"], one["mf"], rtol=1e-9)
        np.testing.assert_array_equal(own["facet"], mf > threshold)
        p = []
        for i, value in enumerate(mf):
            mean, spread = stats.norm.fit(np.delete(mf, i))
            p.append((stats.norm.sf if value > threshold else stats.norm.cdf)(value, mean, spread))
        np.testing.assert_allclose(own["p"], p, rtol=1e-7)
        np.testing.assert_array_equal(own["significant"], np.array(p) < 0.1)
        np.testing.assert_array_equal(own["lowest"], np.argsort(mf, kind="stable")[:4])
        np.testing.assert_array_equal(own["highest"], np.argsort(-mf, kind="stable")[:4])
        assert float(row["threshold"]) == pytest.approx(threshold) == pytest.approx(own.attrs["threshold"])
        assert float(row["single_share"]) == pytest.approx((mf < threshold).mean())
        assert float(row["single_share"] + row["multi_share"]) == pytest.approx(1)
        assert int(row["single_significant"]) == ((np.array(p) < 0.1) & (mf < threshold)).sum()
        assert int(row["multi_significant"]) == ((np.array(p) < 0.1) & (mf > threshold)).sum()
        for index, values in (("mf", mf), ("gini", one["gini"]), ("flatness", one["flatness"])):
            mean, spread = stats.norm.fit(values)
            assert float(row[f"{index}_mean"]) == pytest.approx(mean)
            assert float(row[f"{index}_std"]) == pytest.approx(spread)
        assert (float(row["mf_min"]), float(row["mf_max"])) == pytest.approx((mf.min(), mf.max()))
    assert float(found["mf_max"].max()) == 1.0
    assert (found["neurons"].values == [60, 30, 45]).all()


def test_facets__fall_where_neurons_answer_to_fewer_classes() -> None:
    found = found_of()
    for name, rises in (("mf_mean", False), ("flatness_mean", False), ("multi_share", False), ("gini_mean", True)):
        steps = np.diff(found[name].values)
        assert (steps > 0).all() if rises else (steps < 0).all(), name


def test_facets__limits_of_the_paper() -> None:
    """One class only; m equal classes of N; a row of zeros; all classes alike."""
    n = 1000
    rows = np.zeros((5, n), int)
    rows[0, 7] = 100  # one class
    rows[1, :100] = 1  # a hundred of a thousand, alike
    rows[2, :10] = 10
    rows[4] = 1  # all alike; row 3 counts nothing
    selectivity = dn.selectivity(xr.DataArray(rows, dims=("channel", "class")), chance=0)
    np.testing.assert_allclose(selectivity["gini"], [0.999, 0.9, 0.99, np.nan, 0], atol=1e-12)
    np.testing.assert_allclose(selectivity["flatness"], [0, 2 ** (2 / 3) - 1, 2 ** (1 / 3) - 1, -1, 1], atol=2e-4)
    found = dn.facets({"conv": selectivity})
    own = found["conv"].to_dataset()
    assert float(own["mf_raw"][1]) == pytest.approx(0.653, abs=5e-4)
    assert own["facet"].values.tolist() == [0, 1, 0, -1, 1], "what has no MF is on no side; an endless one is"
    assert np.isinf(own["mf"][4])
    assert np.isnan(own["mf"][3])
    assert found.attrs["largest"] == pytest.approx(0.653, abs=5e-4)
    assert int(found["without_mf"][0]) == 1
    assert float(found["single_share"][0]) == 0.5
    assert own["lowest"].values.tolist() == [0, 2, 1, 4, -1]
    assert own["highest"].values.tolist() == [4, 1, 2, 0, -1]
    assert float(found["mf_mean"][0]) == pytest.approx(float(own["mf"][:3].mean())), "of those that are finite"


def test_facets__labels_by_chance_over_a_thousand_classes() -> None:
    rows = np.stack([np.bincount(RNG.integers(0, 1000, 100), minlength=1000) for _ in range(200)])
    size = np.full(1000, 1300)  # ImageNet's training images
    table = xr.DataArray(rows, dims=("channel", "class"), coords={"class_size": ("class", size)})
    found = dn.facets({"conv": dn.selectivity(table, chance=200, seed=3)})
    scale = found.attrs["largest"]
    assert float(found["mf_chance"][0]) * scale == pytest.approx(0.635, abs=2e-3)
    assert float(found["mf_chance_std"][0]) * scale == pytest.approx(0.007, abs=1e-3)
    assert float(found["mf_mean"][0]) == pytest.approx(float(found["mf_chance"][0]), abs=3e-3)
    sure = int((found["single_significant"] + found["multi_significant"])[0])
    assert sure < 0.2 * 200, "most lie where chance puts them"


def test_facets__warn_where_classes_are_smaller_than_what_is_counted() -> None:
    rows = np.zeros((3, 1000), int)
    rows[:, :2] = 50
    rows[2, :50] = 2
    rows[2, 0] = 2
    small = xr.DataArray(rows, dims=("channel", "class"), coords={"class_size": ("class", np.full(1000, 50))})
    large = small.assign_coords(class_size=("class", np.full(1000, 100)))
    warned: list[events.Event] = []
    with events.listening(lambda event: warned.append(event) if event.kind == "warning" else None):
        found = dn.facets({"conv": dn.selectivity(small, chance=0)})
        assert float(found["flatness_least"][0]) == pytest.approx(0.072, abs=5e-4)
        assert float(found["conv"]["mf_raw"][0]) == pytest.approx(0.072 / 0.998, abs=5e-4), "as one-sided as can be"
        assert [event.step for event in warned] == ["facets"]
        assert "flatness cannot fall below 0.072" in warned[0].message
        assert "k of cooccurrence" in warned[0].message
        dn.facets({"conv": dn.selectivity(large, chance=0)})
    assert len(warned) == 1


@pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 2, 1), (1, 1, 4), (2, 0, 6)])
def test_least_flatness__is_that_of_no_possible_row(sizes: tuple[int, ...]) -> None:
    """Against every row that there can be."""
    every = np.array(list(itertools.product(*(range(size + 1) for size in sizes))))
    flat = dn.spectral_flatness(every)
    wanted = [flat[every.sum(1) == total].min() for total in range(sum(sizes) + 1)]
    found = least_flatness(np.arange(sum(sizes) + 1), np.array(sizes))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_facets__of_neurons_with_positions_and_names() -> None:
    rows = RNG.integers(0, 5, (3, 2, 2, 6))
    table = xr.DataArray(rows, dims=("channel", "y", "x", "class"), coords={"channel": [4, 7, 9]})
    found = dn.facets({"conv": dn.selectivity(table, chance=0)}, k=3)
    own = found["conv"].to_dataset()
    assert own["mf"].dims == ("channel", "y", "x")
    assert own["channel"].values.tolist() == [4, 7, 9]
    first = np.unravel_index(int(own["lowest"][0]), (3, 2, 2))
    assert float(own["mf"].values[first]) == float(own["mf"].min())


@pytest.mark.parametrize("dim", ["rank", "layer", "mf", "lowest", "neurons"])
def test_facets__of_neurons_whose_dim_has_a_name_of_the_result(dim: str) -> None:
    table = TABLES["late"].assign_coords(channel=np.arange(45) + 7)
    plain = dn.facets({"conv": dn.selectivity(table, chance=0)})["conv"].to_dataset()
    found = dn.facets({"conv": dn.selectivity(table.rename(channel=dim), chance=0)})["conv"].to_dataset()
    (other,) = found["mf"].dims
    assert other == (dim if dim == "neurons" else f"input_{dim}")
    np.testing.assert_array_equal(found[other], plain["channel"])
    np.testing.assert_array_equal(found["mf"], plain["mf"])


def test_facets__of_a_layer_that_is_called_as_the_result_calls_something() -> None:
    found = found_of()
    for name in map(str, [*found.to_dataset().variables, "."]):
        with pytest.raises(ArrayError, match=f"'{name}' ") as caught:
            dn.plan("facets", {name: GOOD})
        assert caught.value.hint
        with pytest.raises(ArrayError):
            dn.facets({name: GOOD})


def test_facets__of_activations_say_nothing_of_chance() -> None:
    x = xr.DataArray(RNG.random((20, 4)), dims=("image", "channel"), coords={"label": ("image", np.arange(20) % 4)})
    found = dn.facets({"fc": dn.selectivity(x)})
    assert not {"mf_chance", "flatness_least"} & set(found.data_vars)
    assert float(found["mf_max"][0]) == 1.0


def test_facets__of_dead_neurons_only() -> None:
    dead = dn.selectivity(xr.DataArray(np.zeros((3, 4), int), dims=("channel", "class")))
    found = dn.facets({"one": dead, "two": dn.selectivity(TABLES["late"])})
    assert int(found["without_mf"][0]) == 3
    assert np.isnan(found["mf_mean"][0])
    assert float(found["single_share"][0]) == float(found["multi_share"][0]) == 0
    assert (found["one"]["lowest"] == -1).all()
    alone = dn.facets({"one": dead})
    assert np.isnan(alone["threshold"][0])
    assert (alone["one"]["facet"] == -1).all()
    assert alone.attrs["layer_of_largest"] == ""


def test_facets__of_one_class_say_that_there_are_none() -> None:
    one = dn.selectivity(xr.DataArray(np.full((3, 1), 10), dims=("channel", "class")))
    warned: list[events.Event] = []
    with events.listening(lambda event: warned.append(event) if event.kind == "warning" else None):
        found = dn.facets({"one": one})
    assert [event.message for event in warned] == [
        "no neuron has an MF: nothing was counted, or all images are of one class"
    ]
    assert (found["one"]["facet"] == -1).all()


GOOD = dn.selectivity(TABLES["late"], chance=0)


@pytest.mark.parametrize(
    ("results", "settings", "message"),
    [
        ({}, {}, "an empty mapping"),
        (GOOD, {}, "got Dataset"),
        ([GOOD], {}, "got list"),
        ({"conv": GOOD["mf"]}, {}, "layer conv: expected a dataset, got DataArray"),
        ({"conv": GOOD.drop_vars(["gini", "p_low"])}, {}, "layer conv: the dataset has no gini, p_low"),
        ({3: GOOD}, {}, "3 is no name of a layer"),
        ({"a/b": GOOD}, {}, "'a/b' is no name"),
        ({"conv": GOOD}, {"cutoff": 0}, "cutoff=0"),
        ({"conv": GOOD}, {"cutoff": 1.0}, "cutoff=1.0"),
        ({"conv": GOOD}, {"k": 0}, "k=0"),
        ({"conv": GOOD}, {"per_layer": "yes"}, "per_layer='yes'"),
    ],
)
def test_facets__refuse_what_cannot_be(results: Any, settings: dict[str, Any], message: str) -> None:
    for call in (lambda: dn.facets(results, **settings), lambda: dn.plan("facets", results, **settings)):
        with pytest.raises(ArrayError) as caught:
            call()
        assert message in caught.value.message
        assert caught.value.hint


def test_facets__plan_says_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dn.plan("facets", {"conv": GOOD})
    assert (plan.passes, plan.read_bytes, plan.worker_bytes) == (0, 0, 0)
    assert plan.driver_bytes > plan.result_bytes > 26 * 45
    with pytest.raises(MemoryLimitError, match="in the driver"):
        dn.facets({"conv": GOOD}, client=ThreadExecutor(1, memory=100))
