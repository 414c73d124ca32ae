"""Non-negative factorisations: however cut, of any shape, unit and content, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import labelled, parts, product, small_blocks

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError
from dneuro.quantities import MiB

EXECUTOR = ThreadExecutor(2)
CUTS = pytest.mark.parametrize("chunks", [(40, 24), (7, 5), (40, 3), (1, 24), None], ids=str)


@pytest.fixture(autouse=True)
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


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


@CUTS
@pytest.mark.parametrize(
    "names",
    [("sample", "cell"), ("cell", "sample"), ("component", "iteration"), ("dim_0", "dim_1"), ("loss", "input_loss")],
)
def test_nmf__features_may_have_any_names(chunks: Any, names: tuple[str, str]) -> None:
    values = parts().reshape(40, 24, 1).repeat(2, axis=2)
    plain = labelled(values, chunks)
    asked: dict[str, Any] = {"rank": 3, "max_iter": 3, "tol": 0, "client": EXECUTOR}
    wanted = dn.nmf(plain.rename(y="place"), **asked)
    found = dn.nmf(plain.rename(channel=names[0], y=names[1]), **asked)
    dims = found["neuron_weight"].dims
    assert len({*dims, "image"}) == 4
    assert [str(dim).replace("input_", "") for dim in dims[1:]] == [name.replace("input_", "") for name in names]
    np.testing.assert_array_equal(found["neuron_weight"], wanted["neuron_weight"])
    both = dn.coupled_nmf({"a": plain.rename(channel=names[0], y=names[1]), "b": plain[:, :6]}, **asked)
    assert both["a"]["neuron_weight"].dims == dims


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


def test_plan__of_panels_counts_every_position_of_a_channel() -> None:
    """Cut at the same places, the same table takes the same memory, whatever its dims are called."""
    values = np.zeros((40, 8, 16, 16), "f2")
    asked: dict[str, Any] = {"rank": 20, "init": "random", "client": EXECUTOR}
    layer = dn.plan("nmf", labelled(values, (40, 2)), **asked)
    table = dn.plan("nmf", labelled(values.reshape(40, -1), (40, 512)), **asked)
    assert layer.method == table.method == "hals, panels of neurons"
    assert layer == table


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


def test_nmf__goes_on_where_several_images_have_one_number() -> None:
    x = labelled(parts(), (9, 24)).assign_coords(image=np.tile(np.arange(20), 2))  # two stores, one after the other
    asked: dict[str, Any] = {"rank": 3, "tol": 0, "client": EXECUTOR}
    short = dn.nmf(x, max_iter=4, **asked)
    more = dn.nmf(x, init=short, max_iter=2, **asked)
    named = short.assign_coords(image=np.arange(40))
    wanted = dn.nmf(x.assign_coords(image=np.arange(40)), init=named, max_iter=2, **asked)
    np.testing.assert_array_equal(more["image_weight"], wanted["image_weight"])
    with pytest.raises(ArrayError, match=r"init= is about several images of one number \(0\)") as caught:
        dn.nmf(x[::-1], init=short, **asked)
    assert caught.value.hint is not None
    backwards = dn.nmf(x.assign_coords(image=np.arange(40))[::-1], init=named, max_iter=2, **asked)
    np.testing.assert_allclose(backwards["loss"], wanted["loss"], rtol=1e-4)


WAYS = [("hals", "compressed"), ("hals", "random"), ("hals", "nndsvda"), ("mu", "nndsvda"), ("mu", "random")]
UNITS = [(chunks, *way, power) for i, chunks in enumerate([(9, 24), (40, 3)]) for j, way in enumerate(WAYS)
         for power in ([120, -33] if (i + j) % 2 else [58, -100])]  # fmt: skip
"""Each power with each way, and with each way of reading."""


@pytest.mark.parametrize(("chunks", "update", "init", "power"), UNITS)
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


def test_nmf__whose_weights_float32_cannot_hold_says_so() -> None:
    x = labelled(np.full((40, 24), 3e38, "f4"))
    with pytest.raises(ArrayError, match="float32 ends at") as caught:
        dn.nmf(x, rank=1, max_iter=2, client=EXECUTOR)
    assert "float64" in str(caught.value.hint)
    found = dn.nmf(x.astype("f8"), rank=1, max_iter=2, client=EXECUTOR)
    assert found.attrs["relative_error"] < 1e-6
