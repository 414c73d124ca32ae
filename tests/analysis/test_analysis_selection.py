"""A selection changes which images an analysis sees, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.analysis import ANALYSES
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError

IMAGES, CHANNELS = 60, 5
CLASSES = ["cat", "dog", "crane", "crane"]


@pytest.fixture
def x() -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(IMAGES, CHANNELS, 2, 3)).astype(np.float32)
    status = np.zeros(IMAGES, np.uint8)
    status[[4, 33]] = 1
    values[status == 1] = np.nan
    labels = rng.integers(-1, 4, IMAGES)
    return xr.DataArray(
        da.from_array(values, chunks=(8, 2, 2, 3)),
        dims=("image", "channel", "y", "x"),
        coords={
            "image": np.arange(IMAGES),
            "filename": ("image", np.array([f"{number}.png" for number in range(IMAGES)], dtype=object)),
            "label": ("image", labels),
            "correct": ("image", (rng.random(IMAGES) < 0.5) & (labels >= 0) & (status == 0)),
            "status": ("image", status),
        },
        attrs={"layer": "conv", "class_names": CLASSES},
    )


def chosen(x: xr.DataArray) -> list[int]:
    return np.flatnonzero(x["selected"].values).tolist()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"correct": "no"}, "correct='no'"),
        ({"correct": 1}, "correct=1"),
        ({"classes": "cat"}, "classes='cat': a list of names or numbers"),
        ({"classes": 3}, "classes=3: a list"),
        ({"classes": []}, "a list of names"),
        ({"images": [[1]]}, r"images: \[1\] is neither a name nor a number"),
        ({"images": [True]}, "images: True is neither"),
        ({"images": np.array([0.5])}, "images: 0.5 is neither"),
    ],
)
def test_select__takes_no_other_words(asked: dict[str, Any], message: str) -> None:
    x = xr.DataArray(np.eye(3, dtype="f4"), dims=("image", "channel"),
                     coords={"label": ("image", [0, 1, 1]), "correct": ("image", [True, False, True])})  # fmt: skip
    with pytest.raises(ArrayError, match=message) as caught:
        dn.select(x, **asked)
    assert caught.value.hint


def test_select__takes_arrays_of_numbers() -> None:
    x = xr.DataArray(np.eye(3, dtype="f4"), dims=("image", "channel"), coords={"label": ("image", [0, 1, 1])})
    assert dn.select(x, classes=np.array([1])).selected.values.tolist() == [False, True, True]
    assert dn.select(x, images=np.flatnonzero([1, 0, 1])).selected.values.tolist() == [True, False, True]


def test_select__takes_what_fits_every_condition(x: xr.DataArray) -> None:
    label, correct = x["label"].values, x["correct"].values
    readable = x["status"].values == 0
    assert chosen(dn.select(x, correct=True)) == np.flatnonzero(correct).tolist()
    assert chosen(dn.select(x, correct=False)) == np.flatnonzero(readable & ~correct & (label >= 0)).tolist()
    assert chosen(dn.select(x, classes=["cat", 1])) == np.flatnonzero(readable & np.isin(label, [0, 1])).tolist()
    assert chosen(dn.select(x, classes=["crane"])) == np.flatnonzero(readable & (label >= 2)).tolist()
    assert chosen(dn.select(x, images=[7, "9.png", 4])) == [7, 9], "what could not be read never takes part"
    both = dn.select(x, correct=True, classes=["dog"])
    assert chosen(both) == np.flatnonzero(correct & (label == 1)).tolist()
    assert both.attrs["selection"] == {"correct": True, "classes": ["dog"], "images": len(chosen(both)), "of": IMAGES}
    narrower = dn.select(dn.select(x, correct=True), classes=["dog"])
    assert chosen(narrower) == chosen(both)
    assert narrower.attrs["selection"]["within"] == dn.select(x, correct=True).attrs["selection"]


def test_select__draws_a_sample_that_the_seed_repeats(x: xr.DataArray) -> None:
    one, same, other = (dn.select(x, sample=20, seed=seed) for seed in (3, 3, 4))
    assert len(chosen(one)) == 20
    assert chosen(one) == chosen(same) != chosen(other)
    assert set(chosen(dn.select(x, sample=7, seed=3))) < set(chosen(one)), "a larger sample holds the smaller"
    assert {4, 33}.isdisjoint(chosen(dn.select(x, sample=58)))
    right = dn.select(x, correct=True, sample=5)
    assert set(chosen(right)) < set(chosen(dn.select(x, correct=True)))


CALLS: dict[str, dict[str, Any]] = {
    "moments": {},
    "top_images": {"k": 4},
    "cooccurrence": {"k": 4},
    "svd": {"rank": 3},
    "nmf": {"rank": 2, "max_iter": 20},
    "similarity": {},
    "selectivity": {"chance": 5},
    "random_projections": {"directions": 4, "k": 3},
    "clusters": {"count": 2},
    "kmeans": {"count": 2},
    "single_neurons": {"count": 2, "baseline": 1, "k": 3},
}
OTHERS = {"similar_places", "regression", "connections", "patch_components"}
"""Those that take something else than one array of any layer."""


@pytest.mark.parametrize("name", CALLS)
def test_select__is_as_if_the_others_were_not_there(name: str, x: xr.DataArray, threads: ThreadExecutor) -> None:
    if name == "nmf":
        x = abs(x).assign_attrs(x.attrs)
    selected = dn.select(x, correct=True)
    assert 4 < len(chosen(selected)) < 50
    found = ANALYSES[name](selected, client=threads, **CALLS[name])
    alone = ANALYSES[name](x.isel(image=chosen(selected)).compute(), client=threads, **CALLS[name])
    assert found.attrs["selection"] == selected.attrs["selection"]
    assert "selection" not in alone.attrs
    if "image" in found.dims:  # some name those that took part, some all
        found = found.sel(image=alone["image"])
    xr.testing.assert_allclose(found, alone, rtol=1e-9)


def test_select__every_analysis_says_it() -> None:
    assert CALLS.keys() | OTHERS == ANALYSES.keys()
    of_weights = {"connections"}  # no images are asked
    assert {name for name, analysis in ANALYSES.items() if not hasattr(analysis, "__wrapped__")} == of_weights
    assert all("client" in inspect.signature(analysis).parameters for analysis in ANALYSES.values())


@pytest.mark.parametrize("chunk", [4, 8])
def test_select__reads_no_chunk_without_a_chosen_image(chunk: int, threads: ThreadExecutor) -> None:
    read: set[int] = set()

    def block(number: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        read.add(int(number.ravel()[0]))
        return np.repeat(number.astype(np.float32), chunk, axis=0)[:, :, None] * np.ones((1, 1, 3), np.float32)

    numbers = da.arange(IMAGES // chunk, chunks=1).reshape(-1, 1)
    values = da.map_blocks(block, numbers, chunks=((chunk,) * (IMAGES // chunk), (1,), (3,)), new_axis=2,
                           meta=np.empty((0, 0, 0), np.float32))[:, 0]  # fmt: skip
    x = xr.DataArray(values, dims=("image", "channel"))
    total = x.sizes["image"]
    read.clear()
    few = dn.select(x, images=[0, 1, chunk * 5 + 1, total - 1])
    found = dn.moments(few, client=threads)
    assert read == {0, 5, IMAGES // chunk - 1}
    plan, whole = (dn.plan("moments", some, client=threads) for some in (few, x))
    assert plan.read_bytes == 3 * chunk * 3 * 4 < whole.read_bytes == x.nbytes
    assert (plan.passes, plan.worker_bytes) == (whole.passes, whole.worker_bytes)
    assert found["count"].values.tolist() == [4, 4, 4]
    np.testing.assert_allclose(found["mean"].values, (0 + 0 + 5 + IMAGES // chunk - 1) / 4)


@pytest.mark.parametrize(
    ("conditions", "message", "hint"),
    [
        ({"classes": ["cta"]}, "class 'cta' is unknown", "did you mean 'cat'"),
        ({"classes": [9]}, "class 9 is unknown", "0 to 3"),
        ({"classes": "cat"}, "a list of names or numbers", "classes="),
        ({"images": ["9.pgn"]}, "image '9.pgn' is unknown", "9.png"),
        ({"images": [99]}, "image 99 is unknown", "0 to 59"),
        ({"images": [4]}, "the selection is empty: of 58 images 1 images named leaves 0", "leave out"),
        ({"sample": 59}, "sample=59 of 58 images", "sample=58"),
        ({"sample": 0}, "at least 1", ""),
    ],
)
def test_select__refuses_what_cannot_be(
    x: xr.DataArray, conditions: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ArrayError) as caught:
        dn.select(x, **conditions)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_select__needs_predictions_for_correct(x: xr.DataArray) -> None:
    with pytest.raises(ArrayError, match="does not say which images were classified correctly") as caught:
        dn.select(x.drop_vars("correct"), correct=True)
    assert "predictions: true" in str(caught.value.hint)


def test_select__leaves_the_array_as_it_is(x: xr.DataArray) -> None:
    selected = dn.select(x, correct=True)
    assert selected.shape == x.shape
    assert "selected" not in x.coords
    part: Callable[..., xr.DataArray] = selected.isel
    assert part(image=selected["selected"]).sizes["image"] == len(chosen(selected))
