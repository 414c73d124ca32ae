"""Independent components of many problems against scikit-learn's of each."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FastICA

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError
from dneuro.kernels.ica import _smaller_side
from dneuro.quantities import MiB

Array = np.ndarray
EXECUTOR = ThreadExecutor(2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1024)
    monkeypatch.setattr("dneuro.kernels.ica.BATCH_ITEMS", 5000)


def mixed(problems: int, samples: int, features: int, sources: int, seed: int = 0) -> Array:
    """Independent sources, mixed differently in every problem."""
    rng = np.random.default_rng(seed)
    hidden = rng.laplace(size=(problems, samples, sources))
    return hidden @ rng.standard_normal((problems, sources, features)) + rng.standard_normal((problems, 1, features))


def labelled(values: Array, chunks: int | None = 2) -> xr.DataArray:
    dims = ("channel", "sample", "row", "column")[: values.ndim]
    x = xr.DataArray(values, dims=dims)
    return x if chunks is None else x.chunk(channel=chunks)


def alike(a: Array, b: Array) -> float:
    """The least |cos| between matched columns."""
    a, b = (side / np.linalg.norm(side, axis=0) for side in (a, b))
    return float(np.abs(a.T @ b).max(axis=1).min())


@pytest.mark.parametrize("fun", ["logcosh", "exp", "cube"])
@pytest.mark.parametrize("shape", [(600, 12), (150, 400)])
def test_ica__is_scikit_learns_up_to_order_and_sign(fun: Any, shape: tuple[int, int]) -> None:
    values = mixed(5, *shape, 3)
    found = dn.ica(labelled(values), rank=3, fun=fun, tol=1e-10, max_iter=2000, client=EXECUTOR)
    assert found["converged"].all()
    for problem in range(5):
        theirs = FastICA(3, fun=fun, whiten="unit-variance", tol=1e-10, max_iter=2000, random_state=1)
        theirs.fit(values[problem])
        assert alike(found["mixing"][problem].values.T, theirs.mixing_) > 1 - 1e-6
        np.testing.assert_allclose(found["mean"][problem], theirs.mean_, rtol=1e-9, atol=1e-12)


def test_ica__takes_samples_apart_and_puts_them_together_again() -> None:
    values = mixed(4, 80, 30, 5).reshape(4, 80, 5, 6)
    found = dn.ica(labelled(values), rank=5, client=EXECUTOR)
    assert found["mixing"].dims == found["component"].dims == ("channel", "component", "row", "column")
    centred = values - found["mean"].values[:, None]
    source = np.einsum("bsyx,bkyx->bsk", centred, found["component"].values)
    np.testing.assert_allclose(source, found["source"], atol=1e-9)
    np.testing.assert_allclose(np.einsum("bsk,bkyx->bsyx", source, found["mixing"].values), centred, atol=1e-9)
    covariance = np.einsum("bsk,bsl->bkl", source, source) / 80
    np.testing.assert_allclose(covariance, np.broadcast_to(np.eye(5), (4, 5, 5)), atol=1e-10)
    sizes = np.linalg.norm(found["mixing"].values.reshape(4, 5, -1), axis=2)
    assert (np.diff(sizes, axis=1) <= 0).all()
    flat = found["mixing"].values.reshape(20, -1)
    assert (flat[np.arange(20), np.abs(flat).argmax(1)] > 0).all()


@given(
    st.integers(1, 6), st.integers(2, 12), st.integers(1, 7), st.sampled_from(["f2", "f4", "f8", "u1"]), st.data()
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_ica__a_problem_gives_the_same_wherever_it_lies(
    problems: int, samples: int, features: int, dtype: str, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = (20 * rng.random((problems, samples, features))).astype(dtype)
    rank = data.draw(st.integers(1, min(samples, features)))
    whole = dn.ica(labelled(values, None), rank=rank, max_iter=20, client=EXECUTOR)
    cut = dn.ica(labelled(values, data.draw(st.integers(1, problems))), rank=rank, max_iter=20, client=EXECUTOR)
    for name in whole:
        np.testing.assert_array_equal(cut[name], whole[name], err_msg=str(name))
    for problem in range(problems):
        exact = values[problem].astype("f8")
        there = min(rank, samples - 1, np.linalg.matrix_rank(exact - exact.mean(0)))  # centred, rounding or not
        known = np.isfinite(whole["mixing"].values[problem]).all(axis=1)
        assert known.sum() == whole["rank"][problem] == there
        assert known[:there].all()


def test_ica__degenerate_problems_are_flagged_and_harm_no_other() -> None:
    values = mixed(5, 60, 10, 4)
    alone = dn.ica(labelled(values[2:3], None), rank=3, seed=1, client=EXECUTOR)
    values[0] = 0.1  # constant
    values[1, :, 1:] = values[1, :, :1]  # one direction
    values[4, 2:] = values[4, 0]  # two different samples
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = dn.ica(labelled(values), rank=3, seed=1, client=EXECUTOR)
    assert found["rank"].values.tolist() == [0, 1, 3, 3, 1]
    assert not found["converged"][0]
    assert np.isnan(found["mixing"].values[0]).all()
    assert np.isnan(found["mixing"].values[1, 1:]).all()
    direction = found["mixing"].values[1, 0]
    np.testing.assert_allclose(direction, direction[0], rtol=1e-9)
    assert "3 of 5 problems have fewer than 3 components" in [event.message for event in seen]
    np.testing.assert_allclose(found["mean"][0], 0.1)
    same = dn.ica(labelled(values[:3], None), rank=3, seed=1, client=EXECUTOR)
    np.testing.assert_array_equal(same["mixing"][2], found["mixing"][2])
    assert alike(alone["mixing"][0].values.T, found["mixing"][2].values.T) > 0.999


def test_ica__seed_is_that_of_the_rotation() -> None:
    x = labelled(mixed(3, 40, 10, 4))
    first, again, other = (dn.ica(x, rank=3, max_iter=1, seed=seed, client=EXECUTOR) for seed in (0, 0, 1))
    assert first["mixing"].values.tobytes() == again["mixing"].values.tobytes()
    assert not np.allclose(first["mixing"], other["mixing"])
    assert not first["converged"].any()


def test_ica__half_steps_end_what_goes_round_in_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples of nothing in particular; what is found stays as it is under a whole step."""
    values = np.random.default_rng(3).random((40, 60, 20))
    calm = dn.ica(labelled(values), rank=6, client=EXECUTOR)
    assert calm["converged"].all()
    monkeypatch.setattr("dneuro.kernels.ica.CALM", 10**9)
    whole = dn.ica(labelled(values), rank=6, client=EXECUTOR)
    circling = ~whole["converged"].values
    assert circling.mean() > 0.1
    for problem in np.flatnonzero(~circling & (whole["iterations"].values <= 50)):
        np.testing.assert_array_equal(calm["mixing"][problem], whole["mixing"][problem])
    for problem in np.flatnonzero(circling):
        source = calm["source"].values[problem]  # of variance 1, about 0
        g = np.tanh(source)
        step = g.T @ source / len(source) - np.diag((1 - g**2).mean(axis=0))
        u, _, v = np.linalg.svd(step)
        assert np.abs(np.abs(np.diag(u @ v)) - 1).max() < 1e-3


def test_ica__warns_of_what_has_not_converged() -> None:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        dn.ica(labelled(mixed(3, 40, 10, 4)), rank=3, max_iter=1, client=EXECUTOR)
    assert [e.message for e in seen if e.kind == "warning"] == ["3 of 3 problems not converged (max_iter=1)"]


def test_ica__keeps_names_and_dtype() -> None:
    x = labelled(mixed(3, 20, 6, 3).astype("f4")).assign_coords(channel=[7, 8, 9]).assign_attrs(layer="conv1")
    found = dn.ica(x.transpose("row", "sample", "channel").transpose("channel", ...), rank=2, client=EXECUTOR)
    assert found["channel"].values.tolist() == [7, 8, 9]
    assert found["mixing"].dtype == "f4"
    assert found.attrs["layer"] == "conv1"
    assert found.attrs["parameters"]["rank"] == 2
    assert dn.ica(x.astype("f8"), rank=2, client=EXECUTOR)["mixing"].dtype == "f8"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 7}, "rank=7 of 20 samples × 6 features"),
        ({"fun": "tanh"}, "fun='tanh' is unknown"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": 0}, "tol=0"),
    ],
)
def test_ica__what_cannot_be_asked(wrong: dict[str, Any], message: str) -> None:
    x = labelled(mixed(2, 20, 6, 3))
    with pytest.raises(ArrayError, match=message):
        dn.ica(x, **{"rank": 2, **wrong})
    with pytest.raises(ArrayError, match=message):
        dn.plan("ica", x, **{"rank": 2, **wrong})
    with pytest.raises(ArrayError, match=r"ica takes an xarray\.DataArray \(problem, sample, features…\)"):
        dn.ica(x.rename(sample="image"))
    with pytest.raises(ArrayError, match="a ndarray"):
        dn.ica(x.values)  # type: ignore[arg-type]


def test_ica__nan_names_problem_and_sample() -> None:
    values = mixed(4, 20, 6, 3)
    values[2, 7, 3] = np.nan
    with pytest.raises(NonFiniteError, match="problem 2, sample 7 holds NaN or infinity"):
        dn.ica(labelled(values), rank=2, client=EXECUTOR)


def test_ica__that_cannot_fit_is_refused() -> None:
    x = xr.DataArray(da.zeros((4, 1000, 50000), chunks=(1, 1000, 50000)), dims=("channel", "sample", "pixel"))
    with pytest.raises(MemoryLimitError, match="nothing was started"):
        dn.ica(x, client=ThreadExecutor(1, memory=400 * MiB))


@pytest.mark.parametrize("power", [-900, -500, 300, 1000])
def test_ica__does_not_depend_on_the_unit(power: int) -> None:
    """Powers of two cancel to the last bit, where squares of the numbers would leave the range of float64."""
    values = mixed(4, 60, 10, 3)
    values[2] = 0
    plain = dn.ica(labelled(values * 2.0**150), rank=3, client=EXECUTOR)
    found = dn.ica(labelled(np.ldexp(values, power)), rank=3, client=EXECUTOR)
    assert found["converged"].values.tolist() == [True, True, False, True]
    for name, by in (("mixing", power - 150), ("mean", power - 150), ("component", 150 - power), ("source", 0)):
        np.testing.assert_array_equal(found[name], np.ldexp(plain[name], by))
    usual = dn.ica(labelled(values), rank=3, client=EXECUTOR)
    np.testing.assert_allclose(found["source"], usual["source"], atol=1e-6)


@pytest.mark.parametrize(("dtype", "scale", "hint"), [("f4", 1e-41, "x.astype('float64')"), ("f8", 1e-310, "x / ")])
def test_ica__components_beyond_the_range_are_an_error(dtype: str, scale: float, hint: str) -> None:
    x = labelled((mixed(3, 40, 6, 2) * scale).astype(dtype))
    with pytest.raises(ArrayError, match=r"problem \d: its component is beyond what float\d\d holds") as caught:
        dn.ica(x, rank=2, client=EXECUTOR)
    assert hint in str(caught.value.hint)


def test_smaller_side__of_steep_problems_is_not_squared() -> None:
    """Of each problem by itself: a flat one in the same batch is computed from products."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((2, 20, 20)))
    right, _ = np.linalg.qr(rng.standard_normal((2, 300, 20)))
    sizes = np.stack([np.linspace(3, 1, 20), np.geomspace(1, 1e-12, 20)])
    x = left * sizes[:, None, :] @ np.swapaxes(right, 1, 2)
    u, found = _smaller_side(x, 8)
    np.testing.assert_allclose(found[0], sizes[0], rtol=1e-12)
    np.testing.assert_allclose(found[1, :12], sizes[1, :12], rtol=1e-7)
    np.testing.assert_allclose(np.abs(np.einsum("bsk,bsk->bk", u, left))[:, :8], 1, atol=1e-9)
