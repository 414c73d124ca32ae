"""Non-negative factorisations against the paper's updates in plain NumPy, and against scikit-learn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import NMF

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, FingerprintError, MemoryLimitError, NonFiniteError, StoreError
from dneuro.quantities import MiB

Array = np.ndarray
EXECUTOR = ThreadExecutor(2)
EPSILON = 1e-12
CUTS = pytest.mark.parametrize("chunks", [(40, 24), (7, 5), (40, 3), (1, 24), None], ids=str)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays this small would be one block otherwise, and panels of neurons never be worth it."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 512)
    monkeypatch.setattr("dneuro.analysis.nonnegative.reads.BLOCK_BYTES", 16)


def parts(images: int = 40, neurons: int = 24, seed: int = 0, dtype: str = "f8") -> Array:
    """Activations that are nearly made of four parts."""
    rng = np.random.default_rng(seed)
    made = rng.random((images, 4)) ** 2 @ rng.random((4, neurons)) ** 2 + 0.2 * rng.standard_normal((images, neurons))
    return np.maximum(made, 0).astype(dtype)


def labelled(values: Array, chunks: Any = None, **coords: Any) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=(*chunks, *values.shape[2:])[: values.ndim])
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: values.ndim], coords=coords)


def started(seed: int, rank: int, images: int, *neurons: int) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(seed)
    return rng.random((images, rank)), [rng.random((count, rank)) for count in neurons]


def papers_updates(xs: list[Array], weights: list[float], rank: int, iterations: int) -> tuple[Array, list[Array]]:
    """F ← F ∗ Σ XO / (Σ F OᵀO + ε), then each O ← O ∗ XᵀF / (O FᵀF + ε)."""
    f, os = started(0, rank, len(xs[0]), *(x.shape[1] for x in xs))
    for _ in range(iterations):
        above = sum(w * x @ o for w, x, o in zip(weights, xs, os, strict=True))
        below = sum(w * f @ (o.T @ o) for w, o in zip(weights, os, strict=True))
        f = f * above / (below + EPSILON)
        os = [o * (x.T @ f) / (o @ (f.T @ f) + EPSILON) for x, o in zip(xs, os, strict=True)]
    return f, os


def plain_hals(x: Array, rank: int, iterations: int, sweeps: int) -> tuple[Array, Array]:
    """Every column to its best given the others, F first."""
    f, (o,) = started(0, rank, *x.shape)

    def sweep(one: Array, other: Array, table: Array) -> None:
        for _, k in itertools.product(range(sweeps), range(rank)):
            rest = table - np.delete(one, k, 1) @ np.delete(other, k, 1).T
            one[:, k] = np.maximum(rest @ other[:, k] / (other[:, k] @ other[:, k]), 0)

    for _ in range(iterations):
        sweep(f, o, x)
        sweep(o, f, x.T)
    return f, o


def product(found: xr.Dataset) -> Array:
    weights = found["neuron_weight"].transpose("component", ...).values
    return found["image_weight"].values.astype("f8") @ weights.reshape(len(weights), -1).astype("f8")


@CUTS
def test_nmf__mu_is_the_papers(chunks: Any) -> None:
    values = parts()
    found = dn.nmf(labelled(values, chunks), rank=3, update="mu", init="random", max_iter=7, tol=0, client=EXECUTOR)
    f, (o,) = papers_updates([values], [1.0], 3, 7)
    np.testing.assert_allclose(product(found), f @ o.T, rtol=1e-10)
    sizes = np.linalg.norm(f, axis=0) * np.linalg.norm(o, axis=0)
    order = np.argsort(-sizes)
    np.testing.assert_allclose(found["image_weight"], (f / np.linalg.norm(f, axis=0))[:, order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["size"], sizes[order], rtol=1e-10)
    np.testing.assert_allclose(found["loss"][-1], ((values - f @ o.T) ** 2).sum(), rtol=1e-9)
    assert found["loss"].sizes == {"iteration": 7}


@CUTS
def test_nmf__hals_is_column_by_column(chunks: Any) -> None:
    values = parts()
    found = dn.nmf(labelled(values, chunks), rank=3, init="random", sweeps=2, max_iter=5, tol=0, client=EXECUTOR)
    f, o = plain_hals(values, 3, 5, 2)
    np.testing.assert_allclose(product(found), f @ o.T, rtol=1e-8, atol=1e-10)


@CUTS
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("update", ["hals", "mu"])
def test_nmf__is_the_same_however_it_is_cut(chunks: Any, dtype: str, update: Any) -> None:
    values = parts(dtype=dtype)
    whole = dn.nmf(labelled(values, (40, 24)), rank=3, update=update, max_iter=6, tol=0, client=EXECUTOR)
    found = dn.nmf(labelled(values, chunks), rank=3, update=update, max_iter=6, tol=0, client=EXECUTOR)
    exact = dtype == "f8"
    np.testing.assert_allclose(product(found), product(whole), rtol=0, atol=1e-9 if exact else 2e-4)
    np.testing.assert_allclose(found["loss"], whole["loss"], rtol=1e-9 if exact else 1e-4)
    assert found["neuron_weight"].dtype == ("f8" if exact else "f4")


def test_nmf__reads_panels_where_chunks_hold_all_images_once_per_iteration_and_once_before(counted: Any) -> None:
    values = parts()
    for chunks, extra, how in (((5, 24), 0, "blocks of images"), ((40, 3), 1, "panels of neurons")):
        x, reads = counted(values, chunks)
        found = dn.nmf(x, rank=2, init="random", max_iter=4, tol=0, persist=False, client=EXECUTOR)
        assert set(reads.values()) == {4 + extra}
        assert found.attrs["passes"] == 4 + extra == dn.plan("nmf", x, rank=2, init="random", max_iter=4).passes
        assert found.attrs["method"] == f"hals, {how}"


@pytest.mark.parametrize("solver", ["cd", "mu"])
def test_nmf__is_no_worse_than_scikit_learn(solver: str) -> None:
    values = parts(120, 50)
    theirs = NMF(4, solver=solver, init="nndsvda", max_iter=50, tol=0, random_state=0).fit(values).reconstruction_err_
    ours = dn.nmf(labelled(values, (30, 50)), rank=4, max_iter=50, tol=0, client=EXECUTOR)
    assert ours.attrs["reconstruction_error"] <= theirs * 1.001
    sooner = dn.nmf(labelled(values, (30, 50)), rank=4, max_iter=25, tol=0, client=EXECUTOR)
    assert sooner.attrs["reconstruction_error"] <= theirs * 1.005


def test_nmf__start_is_scikit_learns() -> None:
    """After one multiplicative update of each factor; scikit-learn updates W first too."""
    values = parts(60, 30)
    theirs = NMF(3, solver="mu", init="nndsvda", max_iter=1, tol=0, random_state=0)
    left = theirs.fit_transform(values)
    ours = dn.nmf(labelled(values, (20, 30)), rank=3, update="mu", max_iter=1, tol=0, client=EXECUTOR)
    expected = left @ theirs.components_
    assert np.linalg.norm(product(ours) - expected) <= 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("update", ["hals", "mu"])
def test_nmf__loss_never_rises_and_is_that_of_the_factors(update: Any) -> None:
    values = parts(70, 30)
    found = dn.nmf(labelled(values, (16, 30)), rank=5, update=update, max_iter=40, tol=0, client=EXECUTOR)
    losses = found["loss"].values
    assert (np.diff(losses) <= 1e-12 * losses[0]).all()
    error = np.linalg.norm(values - product(found))
    assert found.attrs["reconstruction_error"] == pytest.approx(error, rel=1e-9)
    assert found.attrs["relative_error"] == pytest.approx(error / np.linalg.norm(values), rel=1e-9)
    assert found.attrs["rmse"] == pytest.approx(error / np.sqrt(values.size), rel=1e-9)
    singular = np.linalg.svd(values, compute_uv=False)
    assert losses[-1] >= (singular[5:] ** 2).sum(), "no factorisation of this rank is closer"


def test_nmf__of_rank_1_is_the_first_singular_pair() -> None:
    values = parts(50, 20)
    found = dn.nmf(labelled(values, (9, 20)), rank=1, tol=1e-12, client=EXECUTOR)
    u, s, v = np.linalg.svd(values)
    np.testing.assert_allclose(product(found), s[0] * np.outer(np.abs(u[:, 0]), np.abs(v[0])), atol=1e-5)
    assert found.attrs["converged"]


def test_nmf__stops_on_tolerance_and_says_when_it_has_not() -> None:
    seen: list[events.Event] = []
    x = labelled(parts(), (10, 24))
    with events.listening(seen.append):
        found = dn.nmf(x, rank=3, tol=1e-3, client=EXECUTOR)
        assert found.attrs["converged"]
        assert not [event for event in seen if event.kind == "warning"]
        errors = np.sqrt(found["loss"].values)
        steps = -np.diff(errors) / np.linalg.norm(parts())
        assert steps[-1] <= 1e-3
        assert (steps[:-1] > 1e-3).all()
        stopped = dn.nmf(x, rank=3, tol=1e-9, max_iter=2, client=EXECUTOR)
    assert not stopped.attrs["converged"]
    warnings = [event.message for event in seen if event.kind == "warning"]
    assert warnings == ["not converged after 2 iterations (max_iter)"]


def test_nmf__finds_the_parts() -> None:
    """Images that each show some of four patterns that do not overlap."""
    rng = np.random.default_rng(3)
    patterns = np.kron(np.eye(4), np.ones(6)).reshape(4, 6, 2, 2)
    amounts = rng.random((90, 4)) * (rng.random((90, 4)) < 0.5)
    x = labelled(np.einsum("ik,kcyx->icyx", amounts, patterns).astype("f4"), (20, 6))
    found = dn.nmf(x, rank=4, client=EXECUTOR)
    assert found["neuron_weight"].dims == ("component", "channel", "y", "x")
    masks = found["neuron_weight"].values.reshape(4, -1)
    masks = masks / masks.max(1, keepdims=True)
    assert sorted(map(tuple, (masks > 0.5).astype(int))) == sorted(map(tuple, patterns.reshape(4, -1).astype(int)))
    np.testing.assert_allclose(np.linalg.norm(found["image_weight"], axis=0), 1, rtol=1e-6)
    assert (np.diff(found["size"]) <= 0).all()
    assert found.attrs["relative_error"] < 1e-3


def test_nmf__dead_neurons_and_silent_images_have_no_weight() -> None:
    values = parts()
    values[:, 5] = 0
    values[11] = 0
    for chunks in ((9, 24), (40, 4)):
        for update in ("hals", "mu"):
            found = dn.nmf(labelled(values, chunks), rank=3, update=update, client=EXECUTOR)  # type: ignore[arg-type]
            assert np.isfinite(found["image_weight"]).all()
            np.testing.assert_allclose(found["neuron_weight"][:, 5], 0, atol=1e-12)
            np.testing.assert_allclose(found["image_weight"][11], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("update", "init"),
    [("hals", "compressed"), ("hals", "nndsvda"), ("hals", "random"), ("mu", "nndsvda"), ("mu", "random")],
)
def test_nmf__of_nothing(update: Any, init: Any) -> None:
    found = dn.nmf(labelled(np.zeros((12, 6), "f4"), (5, 6)), rank=2, update=update, init=init, client=EXECUTOR)
    assert found.attrs["reconstruction_error"] == pytest.approx(0, abs=1e-6)
    assert found.attrs["relative_error"] == 0
    assert np.isfinite(found["image_weight"]).all()


@given(
    st.integers(1, 12), st.integers(1, 9), st.sampled_from(["f2", "f4", "f8"]), st.sampled_from(["hals", "mu"]),
    st.sampled_from([None, "nndsvda", "random"]), st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_nmf__of_any_shape(images: int, neurons: int, dtype: str, update: Any, init: Any, data: st.DataObject) -> None:
    values = parts(images, neurons, data.draw(st.integers(0, 99)), dtype)
    rank = data.draw(st.integers(1, min(images, neurons)))
    chunks = data.draw(st.integers(1, images)), data.draw(st.integers(1, neurons))
    found = dn.nmf(labelled(values, chunks), rank=rank, update=update, init=init, max_iter=8, client=EXECUTOR)
    for name in ("image_weight", "neuron_weight"):
        assert np.isfinite(found[name]).all()
        assert (found[name] >= 0).all()
    exact = values.astype("f8")
    error = np.linalg.norm(exact - product(found))
    size = np.linalg.norm(exact)
    np.testing.assert_allclose(found.attrs["reconstruction_error"], error, atol=3e-3 * size + 1e-9)
    assert error <= size * (1 + 1e-6)


def test_nmf__refuses_negative_activations_and_says_where_and_what_to_do() -> None:
    values = parts(12, 6).reshape(12, 3, 2, 1)
    values[7, 2, 1, 0] = -0.5
    for chunks in ((4, 3), (12, 1)):
        x = labelled(values, chunks, image=np.arange(12) * 11).assign_attrs(layer="conv2")
        with pytest.raises(ArrayError, match=r"conv2: image 77, neuron \(2, 1, 0\) is -0\.5; a non-negative") as caught:
            dn.nmf(x, rank=2, client=EXECUTOR)
        assert "x.clip(min=0)" in str(caught.value.hint)
        dn.nmf(x.clip(min=0), rank=2, max_iter=2, tol=0, client=EXECUTOR)


@pytest.mark.parametrize("chunks", [(4, 3), (12, 1)])
def test_nmf__nan_names_the_place_in_panels_too(chunks: Any) -> None:
    values = parts(12, 6).reshape(12, 3, 2, 1)
    values[7, 2, 1, 0] = np.nan
    x = labelled(values, chunks).assign_attrs(layer="conv2")
    with pytest.raises(NonFiniteError, match=r"conv2: image 7, neuron \(2, 1, 0\) is nan"):
        dn.nmf(x, rank=2, client=EXECUTOR)


@pytest.mark.parametrize("chunks", [(12, 24), (40, 3)])
def test_nmf__masked_images_are_left_out(chunks: Any) -> None:
    values = parts()
    gone = np.isin(np.arange(40), [0, 13, 14, 39])
    spoilt = np.where(gone[:, None], np.nan, values)
    x = labelled(spoilt, chunks, status=("image", gone.astype("u1")))
    found = dn.nmf(x, rank=3, max_iter=5, tol=0, client=EXECUTOR)
    expected = dn.nmf(labelled(values[~gone]), rank=3, max_iter=5, tol=0, client=EXECUTOR)
    assert found["image"].values.tolist() == np.flatnonzero(~gone).tolist()
    np.testing.assert_allclose(product(found), product(expected), atol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 25}, "rank=25 of 40 images × 24 neurons"),
        ({"rank": 0}, "rank=0"),
        ({"update": "als"}, "update='als' is unknown"),
        ({"init": "svd"}, "init='svd' is unknown"),
        ({"sweeps": 0}, "sweeps=0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": -1}, "tol=-1"),
    ],
)
def test_nmf__what_cannot_be_asked(wrong: dict[str, Any], message: str) -> None:
    for ask in (dn.nmf, lambda x, **asked: dn.plan("nmf", x, **asked)):
        with pytest.raises(ArrayError, match=message) as caught:
            ask(labelled(parts()), **{"rank": 2, **wrong})
        assert caught.value.hint


def test_nmf__that_cannot_fit_is_refused_before_anything_is_read(counted: Any) -> None:
    x, reads = counted(np.zeros((2000, 3000), "f4"), (2000, 3000))
    small = ThreadExecutor(2, memory=280 * MiB)
    with pytest.raises(MemoryLimitError, match=r"nmf needs .* nothing was started") as caught:
        dn.nmf(x, rank=1000, client=small)
    assert "lower rank" in str(caught.value.hint)
    assert not reads


def test_nmf__goes_on_from_an_earlier_result() -> None:
    x = labelled(parts(), (9, 24))
    long = dn.nmf(x, rank=3, max_iter=9, tol=0, client=EXECUTOR)
    short = dn.nmf(x, rank=3, max_iter=4, tol=0, client=EXECUTOR)
    more = dn.nmf(x, rank=3, init=short, max_iter=5, tol=0, client=EXECUTOR)
    # Components have been ordered, and column by column the order matters a little.
    np.testing.assert_allclose(more["loss"][-1], long["loss"][-1], rtol=1e-2)
    assert more["loss"][0] < short["loss"][-1]
    with pytest.raises(ArrayError, match="init= has factors of"):
        dn.nmf(x, rank=2, init=short, client=EXECUTOR)
    with pytest.raises(ArrayError, match="init= "):
        dn.nmf(labelled(parts(40, 20)), rank=3, init=short, client=EXECUTOR)


class StoppedError(Exception):
    """What a killed run looks like from within."""


def stop_after(iterations: int) -> Any:
    def listen(event: events.Event) -> None:
        if event.kind == "progress" and event.what == "iterations" and event.done == iterations:
            raise StoppedError

    return listen


@pytest.mark.parametrize("chunks", [(9, 24), (40, 3)])
def test_checkpoint__goes_on_from_the_last_iteration(
    chunks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.nonnegative.checkpoint.EVERY", 0.0)
    x, path = labelled(parts(), chunks), tmp_path / "state.npz"
    asked: dict[str, Any] = {"rank": 3, "max_iter": 8, "tol": 0, "client": EXECUTOR}
    with pytest.raises(StoppedError), events.listening(stop_after(5)):
        dn.nmf(x, checkpoint=path, **asked)
    found = dn.nmf(x, checkpoint=path, **asked)
    assert found.attrs["passes"] == 1 + 8 - 4, "of the fifth iteration nothing was kept, of four all; one read looks"
    straight = dn.nmf(x, **asked)
    np.testing.assert_allclose(found["loss"], straight["loss"], rtol=1e-12)
    np.testing.assert_allclose(found["neuron_weight"], straight["neuron_weight"], rtol=1e-9, atol=1e-12)
    longer = dn.nmf(x, checkpoint=path, **{**asked, "max_iter": 10})
    assert longer.attrs["passes"] == 1 + 2
    assert longer["loss"].sizes == {"iteration": 10}


@pytest.mark.parametrize("chunks", [(9, 24), (40, 3)])
@pytest.mark.parametrize("ended", ["max_iter", "tol"])
def test_checkpoint__that_is_finished_is_of_its_own_activations_only(chunks: Any, ended: str, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    values = parts(dtype="f4")

    def layer(some: Array, cut: Any) -> xr.DataArray:
        return labelled(some, cut).rename("relu")  # else each has the name of its dask array

    stop: dict[str, Any] = {"max_iter": 4, "tol": 0} if ended == "max_iter" else {"max_iter": 500, "tol": 1e-3}
    asked = {"rank": 3, "checkpoint": path, "client": EXECUTOR, **stop}
    first = dn.nmf(layer(values, chunks), **asked)
    for other in (100 * parts(seed=1, dtype="f4"), 1e20 * values, values[::-1].copy(), values[:, ::-1].copy()):
        with pytest.raises(FingerprintError, match="not those that the kept state was made of"):
            dn.nmf(layer(other.astype("f4"), chunks), **asked)
    for same in (chunks, (40, 24), (40, 5)):
        again = dn.nmf(layer(values, same), **asked)
        assert again.attrs["passes"] == 1
        np.testing.assert_array_equal(again["neuron_weight"], first["neuron_weight"])
    if ended == "max_iter":
        fewer = dn.nmf(layer(values, chunks), **{**asked, "max_iter": 2})
        assert fewer.attrs["iterations"] == 4, "no iteration is undone"


def test_checkpoint__is_of_its_own_images_only(tmp_path: Path) -> None:
    """Twins: the activations of the two classes are the same, the images are not."""
    half = parts(20)
    x = labelled(np.concatenate([half, half]), (9, 24), label=("image", np.repeat([0, 1], 20)))
    asked: dict[str, Any] = {"rank": 3, "max_iter": 3, "tol": 0, "checkpoint": tmp_path / "s.npz", "client": EXECUTOR}
    dn.nmf(dn.select(x, classes=[0]), **asked)
    with pytest.raises(FingerprintError, match="is not the state of this factorisation"):
        dn.nmf(dn.select(x, classes=[1]), **asked)


def test_checkpoint__that_is_not_whole_or_nowhere_says_so(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"rank": 2, "max_iter": 2, "tol": 0, "client": EXECUTOR}
    path = tmp_path / "state.npz"
    dn.nmf(labelled(parts()), checkpoint=path, **asked)
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files if name != "neurons-0"}
    np.savez(path, **kept)
    with pytest.raises(FingerprintError, match="is not the state"):
        dn.nmf(labelled(parts()), checkpoint=path, **asked)
    below = tmp_path / "file"
    below.write_text("no folder")
    for wrong in (tmp_path, below / "state.npz"):
        with pytest.raises(StoreError, match="checkpoint=") as caught:
            dn.nmf(labelled(parts()), checkpoint=wrong, **asked)
        assert "state.npz" in str(caught.value.hint)
    for nothing in (5, "", True):
        with pytest.raises(ArrayError, match="checkpoint="):
            dn.nmf(labelled(parts()), checkpoint=nothing, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunks", [(9, 24), (40, 3)])
@pytest.mark.parametrize(("update", "init"), [("hals", "compressed"), ("hals", "random"), ("hals", "nndsvda"),
                                              ("mu", "nndsvda"), ("mu", "random")])  # fmt: skip
@pytest.mark.parametrize("power", [120, 58, -33, -100])
def test_nmf__of_any_unit_is_the_same(chunks: Any, update: Any, init: Any, power: int) -> None:
    """Of numbers beyond 2^±10 nothing but their unit differs: 2^power cancels to the last bit."""
    values = parts(dtype="f4")
    asked: dict[str, Any] = {"rank": 3, "update": update, "init": init, "max_iter": 5, "tol": 0, "client": EXECUTOR}
    near = dn.nmf(labelled(values * np.float32(2.0**15), chunks), **asked)
    far = dn.nmf(labelled(values * np.float32(2.0**power), chunks), **asked)
    np.testing.assert_array_equal(far["image_weight"], near["image_weight"])
    np.testing.assert_array_equal(far["neuron_weight"], np.ldexp(near["neuron_weight"], power - 15))
    np.testing.assert_array_equal(far["loss"], np.ldexp(near["loss"], 2 * (power - 15)))
    assert far.attrs["relative_error"] == near.attrs["relative_error"] < 0.5
    plain = dn.nmf(labelled(values, chunks), **asked)
    assert far.attrs["relative_error"] == pytest.approx(plain.attrs["relative_error"], rel=0.1)


@pytest.mark.parametrize("chunks", [(9, 24), (40, 3)])
@pytest.mark.parametrize("update", ["hals", "mu"])
@pytest.mark.parametrize("weights", [None, "equal"])
def test_coupled__of_very_different_units(chunks: Any, update: Any, weights: Any) -> None:
    values = parts(dtype="f4")
    xs = {"large": labelled(values[:, :14] * np.float32(1e20), chunks),
          "small": labelled(values[:, 14:] * np.float32(1e-20), chunks)}  # fmt: skip
    found = dn.coupled_nmf(xs, rank=4, weights=weights, update=update, max_iter=30, tol=0, client=EXECUTOR)
    for name in xs:
        assert np.isfinite(found[name]["neuron_weight"]).all()
        assert found[name].attrs["relative_error"] < 0.6
    assert np.isfinite(found["loss"]).all()


def test_nmf__whose_weights_float32_cannot_hold_says_so() -> None:
    x = labelled(np.full((40, 24), 3e38, "f4"))
    with pytest.raises(ArrayError, match="float32 ends at") as caught:
        dn.nmf(x, rank=1, max_iter=2, client=EXECUTOR)
    assert "float64" in str(caught.value.hint)
    found = dn.nmf(x.astype("f8"), rank=1, max_iter=2, client=EXECUTOR)
    assert found.attrs["relative_error"] < 1e-6


def test_checkpoint__of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    dn.nmf(labelled(parts()), rank=3, max_iter=2, tol=0, checkpoint=path, client=EXECUTOR)
    with pytest.raises(FingerprintError, match="is not the state of this factorisation"):
        dn.nmf(labelled(parts()), rank=2, checkpoint=path, client=EXECUTOR)
    with pytest.raises(FingerprintError, match="their sums differ"):
        dn.nmf(labelled(parts(seed=1)), rank=3, max_iter=4, tol=0, checkpoint=path, client=EXECUTOR)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FingerprintError, match="is not the state"):
        dn.nmf(labelled(parts()), rank=3, checkpoint=path, client=EXECUTOR)


def coupled(dtype: str = "f8") -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    amounts = rng.random((40, 3)) ** 2
    pixels, layer = amounts @ rng.random((3, 24)), 9 * amounts @ rng.random((3, 10)) + rng.random((40, 10))
    return pixels.reshape(40, 2, 3, 4).astype(dtype), layer.astype(dtype)


@pytest.mark.parametrize("weights", [None, [1.0, 0.25]])
@pytest.mark.parametrize("chunks", [((40, 2), (40, 10)), ((7, 2), (7, 10)), ((7, 1), (5, 3)), ((40, 1), (40, 2))])
def test_coupled__is_the_papers(weights: Any, chunks: Any) -> None:
    pixels, layer = coupled()
    xs = {"pixels": labelled(pixels, chunks[0]), "conv": labelled(layer, chunks[1])}
    tree = dn.coupled_nmf(
        xs, rank=3, weights=weights, update="mu", init="random", max_iter=6, tol=0, client=EXECUTOR
    )
    tables = [pixels.reshape(40, -1), layer]
    f, os = papers_updates(tables, weights or [1.0, 1.0], 3, 6)
    shared = tree.to_dataset()
    for j, (name, o) in enumerate(zip(("pixels", "conv"), os, strict=True)):
        part = shared.drop_vars("loss").merge(tree[name].to_dataset())
        np.testing.assert_allclose(product(part), f @ o.T, rtol=1e-9)
        error = np.linalg.norm(tables[j] - f @ o.T)
        assert tree[name].attrs["reconstruction_error"] == pytest.approx(error, rel=1e-8)
        assert tree[name]["loss"][-1] == pytest.approx(error**2, rel=1e-8)
        assert tree[name].attrs["weight"] == (weights or [1, 1])[j]
    assert tree["pixels/neuron_weight"].dims == ("component", "channel", "y", "x")
    weighted = sum(w * tree[name]["loss"].values for w, name in zip(weights or [1, 1], ("pixels", "conv"), strict=True))
    np.testing.assert_allclose(shared["loss"], weighted, rtol=1e-12)
    assert tree.attrs["reconstruction_error"] == pytest.approx(np.sqrt(weighted[-1]), rel=1e-12)


def test_coupled__is_nmf_of_the_arrays_side_by_side() -> None:
    pixels, layer = coupled()
    side_by_side = np.hstack([pixels.reshape(40, -1), 2 * layer])
    tree = dn.coupled_nmf(
        [labelled(pixels, (9, 2)).rename("a"), labelled(layer, (9, 10)).rename("b")],
        rank=3, weights=[1, 4], max_iter=10, tol=0, client=EXECUTOR,
    )  # fmt: skip
    one = dn.nmf(labelled(side_by_side, (9, 34)), rank=3, max_iter=10, tol=0, client=EXECUTOR)
    np.testing.assert_allclose(tree["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(tree["image_weight"], one["image_weight"], atol=1e-5)
    np.testing.assert_allclose(tree["size"], one["size"], rtol=1e-5)


def test_coupled__equal_weights_make_every_array_count_alike() -> None:
    pixels, layer = coupled()
    asked: dict[str, Any] = {"rank": 3, "weights": "equal", "max_iter": 6, "tol": 0, "client": EXECUTOR}
    once = dn.coupled_nmf({"a": labelled(pixels, (9, 2)), "b": labelled(layer, (9, 10))}, **asked)
    scaled = dn.coupled_nmf({"a": labelled(pixels, (9, 2)), "b": labelled(1000 * layer, (9, 10))}, **asked)
    np.testing.assert_allclose(once["loss"], scaled["loss"], rtol=1e-6)
    np.testing.assert_allclose(once.attrs["weights"], [1 / (pixels**2).sum(), 1 / (layer**2).sum()], rtol=1e-10)
    assert once.attrs["passes"] == 1 + 3 + 6


def test_coupled__reads_each_array_once_per_iteration(counted: Any) -> None:
    pixels, layer = coupled()
    (a, first), (b, second) = counted(pixels, (8, 2, 3, 4)), counted(layer, (16, 10))
    dn.coupled_nmf({"a": a, "b": b}, rank=2, init="random", max_iter=3, tol=0, persist=False, client=EXECUTOR)
    assert set(first.values()) == {3}
    assert set(second.values()) == {3}


@pytest.mark.parametrize("chunks", [(8, 10), (40, 4)])
def test_coupled__keeps_in_memory_what_fits_and_finds_the_same(counted: Any, chunks: Any) -> None:
    pixels, layer = coupled()
    (a, first), (b, second) = counted(pixels, (8, 2, 3, 4)), counted(layer, chunks)
    asked: dict[str, Any] = {"rank": 2, "init": "random", "max_iter": 3, "tol": 0}
    notes: list[events.Event] = []
    with events.listening(notes.append):
        kept = dn.coupled_nmf({"a": a, "b": b}, **asked, client=EXECUTOR)
    assert set(first.values()) == set(second.values()) == {1}
    assert sum(event.data == {"persisted": True} for event in notes) == 2
    with events.listening(notes.append):
        streamed = dn.coupled_nmf({"a": a, "b": b}, **asked, persist=False, client=EXECUTOR)
    np.testing.assert_array_equal(kept["image_weight"], streamed["image_weight"])
    plans = [dn.plan("coupled_nmf", {"a": a, "b": b}, **asked, persist=keep, client=EXECUTOR) for keep in (True, False)]
    assert plans[0].worker_bytes - plans[1].worker_bytes == a.nbytes + b.nbytes


def test_coupled__goes_on_from_a_checkpoint_and_from_a_result(tmp_path: Path) -> None:
    pixels, layer = coupled()
    xs = {"a": labelled(pixels, (9, 2)), "b": labelled(layer, (9, 10))}
    asked: dict[str, Any] = {"rank": 3, "tol": 0, "client": EXECUTOR, "checkpoint": tmp_path / "state.npz"}
    dn.coupled_nmf(xs, max_iter=3, **asked)
    found = dn.coupled_nmf(xs, max_iter=6, **asked)
    assert found.attrs["passes"] == 1 + 3
    more = dn.coupled_nmf(xs, rank=3, max_iter=2, tol=0, init=found, client=EXECUTOR)
    assert more["loss"][-1] < found["loss"][-1]


def test_coupled__arrays_must_be_of_the_same_images_and_have_names() -> None:
    pixels, layer = (labelled(values, (9, 10)) for values in coupled())
    with pytest.raises(ArrayError, match="b has 39 images, a 40"):
        dn.coupled_nmf({"a": pixels, "b": layer[:39]}, rank=2)
    with pytest.raises(ArrayError, match="in another order"):
        dn.coupled_nmf({"a": pixels, "b": layer.assign_coords(image=np.arange(40)[::-1])}, rank=2)
    with pytest.raises(ArrayError, match="arrays of the same name: conv, conv"):
        dn.coupled_nmf([pixels.assign_attrs(layer="conv"), layer.assign_attrs(layer="conv")], rank=2)
    with pytest.raises(ArrayError, match="takes several arrays, not one"):
        dn.coupled_nmf(pixels, rank=2)  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match="takes several arrays, not none"):
        dn.coupled_nmf([], rank=2)
    with pytest.raises(ArrayError, match="weights="):
        dn.coupled_nmf({"a": pixels, "b": layer}, rank=2, weights=[1, -1])
    with pytest.raises(ArrayError, match="weights='same' is unknown"):
        dn.coupled_nmf({"a": pixels, "b": layer}, rank=2, weights="same")


def test_coupled__leaves_out_images_that_one_of_the_arrays_lacks() -> None:
    pixels, layer = coupled()
    status = np.zeros(40, "u1")
    status[[3, 8]] = 1
    spoilt = layer.copy()
    spoilt[[3, 8]] = np.nan
    xs = {"a": labelled(pixels, (9, 2)), "b": labelled(spoilt, (9, 10), status=("image", status))}
    found = dn.coupled_nmf(xs, rank=2, max_iter=3, tol=0, client=EXECUTOR)
    kept = status == 0
    rest = {"a": labelled(pixels[kept]), "b": labelled(layer[kept])}
    expected = dn.coupled_nmf(rest, rank=2, max_iter=3, tol=0, client=EXECUTOR)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-8)
    assert found["image"].values.tolist() == np.flatnonzero(kept).tolist()
