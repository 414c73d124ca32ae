"""What all kernels share: pooling, the check for NaN, slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dneuro.errors import NonFiniteError
from dneuro.kernels.base import SLICE_ITEMS, check_finite, pool, row_slices, spans

MAKE = pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])


@given(st.integers(0, 50), st.integers(-3, 60))
def test_spans__cover_a_length_once(length: int, step: int) -> None:
    assert [i for some in spans(length, step) for i in range(length)[some]] == list(range(length))
    assert all(some.stop - some.start <= max(1, step) for some in spans(length, step))


def test_row_slices__are_bounded_by_elements() -> None:
    wide, narrow = np.broadcast_to(0, (3, 2 * SLICE_ITEMS)), np.broadcast_to(0, (5000, 1024))
    assert [some.stop - some.start for some in row_slices(wide)] == [1, 1, 1]
    assert max(some.stop - some.start for some in row_slices(narrow)) == 1024
    assert max(some.stop - some.start for some in row_slices(narrow, least=2000)) == 2000


@MAKE
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("items", [SLICE_ITEMS, 20])
def test_pool__maximum_with_its_first_position(
    make: Any, dtype: str, items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.kernels.base.SLICE_ITEMS", items)
    block = np.random.default_rng(0).integers(-3, 3, (7, 4, 3, 2)).astype(dtype)
    values, places = pool(make(block), "max")
    cells = block.reshape(7, 4, -1)
    np.testing.assert_array_equal(values, cells.max(2))
    np.testing.assert_array_equal(places, cells.argmax(2))
    assert np.asarray(values).dtype == block.dtype
    assert np.asarray(places).dtype == np.int32


def test_pool__maximum_of_float64_is_not_rounded() -> None:
    block = np.array([1.0, 1.0 + 1e-12, 1.0]).reshape(1, 1, 3, 1)
    values, places = pool(block, "max")
    assert values[0, 0] == 1.0 + 1e-12
    assert places is not None
    assert places[0, 0] == 1


@MAKE
def test_pool__mean_is_summed_in_float64(make: Any) -> None:
    block = np.random.default_rng(0).standard_normal((5, 3, 40, 40)).astype(np.float32) + np.float32(4096)
    values, places = pool(make(block), "mean")
    np.testing.assert_array_equal(values, block.astype("f8").mean((2, 3)).astype("f4"))
    assert places is None


def test_pool__leaves_channels_without_positions() -> None:
    block = np.ones((2, 3), np.float16)
    assert pool(block, "max") == (block, None)


@MAKE
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_check_finite__names_layer_image_and_neuron(make: Any, bad: float, dtype: str) -> None:
    block = np.zeros((4, 3, 2, 2), dtype)
    block[2, 1, 0, 1] = bad
    origin = {"image": np.array([10, 20, 30, 40]), "channel": np.array([5, 6, 7])}
    with pytest.raises(NonFiniteError, match=rf"features\.12: image 30, neuron \(6, 0, 1\) is {bad}") as caught:
        check_finite(make(block), origin, "features.12")
    assert caught.value.hint is not None
    assert "x['image'] != 30" in caught.value.hint


def test_check_finite__infinities_of_both_signs() -> None:
    block = np.array([[1, np.inf, -np.inf]], np.float32)
    with pytest.raises(NonFiniteError, match=r"activations: image 0, neuron \(1,\) is inf \(2 such"):
        check_finite(block, {"image": np.arange(1)}, "")


@MAKE
@pytest.mark.parametrize(("dtype", "large"), [("f2", 6e4), ("f4", 3e38), ("f8", 1e308)])
def test_check_finite__a_sum_may_overflow(make: Any, dtype: str, large: float) -> None:
    check_finite(make(np.full((50, 3), large, dtype)), {"image": np.arange(50)}, "")
