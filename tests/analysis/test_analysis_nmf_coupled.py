"""Several arrays over the same images, factorised together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_layers import coupled, labelled, parts, small_blocks

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError

EXECUTOR = ThreadExecutor(2)


@pytest.fixture(autouse=True)
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


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


def test_coupled__arrays_must_be_of_the_same_images_and_have_names() -> None:
    pixels, layer = (labelled(values, (9, 10)) for values in coupled())
    with pytest.raises(ArrayError, match="b has 39 images, a 40"):
        dn.coupled_nmf({"a": pixels, "b": layer[:39]}, rank=2)
    with pytest.raises(ArrayError, match="in another order"):
        dn.coupled_nmf({"a": pixels, "b": layer.assign_coords(image=np.arange(40)[::-1])}, rank=2)
    with pytest.raises(ArrayError, match="arrays of the same name: conv, conv"):
        dn.coupled_nmf([pixels.assign_attrs(layer="conv"), layer.assign_attrs(layer="conv")], rank=2)
    for name in ("size", "loss", "image", "component", ".", "a/b"):
        with pytest.raises(ArrayError, match=f"'{name}' cannot name a part of the result") as caught:
            dn.coupled_nmf({"a": pixels, name: layer}, rank=2)
        assert "{'one': x" in str(caught.value.hint)
    with pytest.raises(ArrayError, match="takes several arrays, not one"):
        dn.coupled_nmf(pixels, rank=2)  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match="takes several arrays, not none"):
        dn.coupled_nmf([], rank=2)
    with pytest.raises(ArrayError, match="weights="):
        dn.coupled_nmf({"a": pixels, "b": layer}, rank=2, weights=[1, -1])
    with pytest.raises(ArrayError, match="weights='same' is unknown"):
        dn.coupled_nmf({"a": pixels, "b": layer}, rank=2, weights="same")


NAMES = np.array([f"{number:02}.png" for number in range(40)])
NAMED: dict[str, np.ndarray] = {
    "text": NAMES,
    "objects": NAMES.astype(object),
    "floats": np.linspace(0, 1, 40),
    "dates": np.datetime64("2026-01-01", "ns") + np.arange(40) * np.timedelta64(1, "D"),
    "numbers": np.arange(40) + 7,
}


@pytest.mark.parametrize("kind", NAMED)
def test_coupled__images_go_by_whatever_their_coordinate_holds(kind: str) -> None:
    pixels, layer = (labelled(values, (9, 10)) for values in coupled())
    names = NAMED[kind]
    one, other = pixels.assign_coords(image=names), layer.assign_coords(image=names)
    asked: dict[str, Any] = {"rank": 2, "max_iter": 2, "tol": 0, "client": EXECUTOR}
    expected = dn.coupled_nmf({"a": pixels, "b": layer}, **asked)
    found = dn.coupled_nmf({"a": one, "b": other}, **asked)
    np.testing.assert_array_equal(found["image_weight"].values, expected["image_weight"].values)
    with pytest.raises(ArrayError, match="in another order") as caught:
        dn.coupled_nmf({"a": one, "b": other.isel(image=slice(None, None, -1))}, **asked)
    assert "xr.align" in str(caught.value.hint)


def test_coupled__images_with_names_are_not_those_with_numbers() -> None:
    pixels, layer = (labelled(values, (9, 10)) for values in coupled())
    xs = {"a": pixels.assign_coords(image=NAMES), "b": layer.assign_coords(image=np.arange(40))}
    with pytest.raises(ArrayError, match="if as many, then others") as caught:
        dn.coupled_nmf(xs, rank=2)
    assert "0, … of the one and 00.png, … of the other" in str(caught.value.hint)
    xs["b"] = xs["b"].assign_coords(image=xs["a"]["image"])
    assert dn.plan("coupled_nmf", xs, rank=2).passes


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
