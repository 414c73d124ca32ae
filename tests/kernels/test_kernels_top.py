"""Top-k to the last bit: odd floats, ties, positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dneuro.kernels import TopK

FLOATS = st.floats(width=32, allow_nan=False)


def run(kernel: TopK, *blocks: Any, images: Any = None) -> dict[str, Any]:
    images = np.arange(len(blocks[0])) if images is None else images
    return kernel.finalise(kernel.update(kernel.start(), blocks, {"image": images}))


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 3)), elements=FLOATS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_topk__every_float_keeps_its_bits_and_its_order(table: Any, largest: bool) -> None:
    found = run(TopK(7, largest), table)
    order = np.argsort(-table if largest else table, axis=0, kind="stable")[:7]
    np.testing.assert_array_equal(found["image"], order)
    values = np.take_along_axis(table, order, 0) + np.float32(0)  # -0.0 ties with 0.0, and becomes it
    assert found["value"].tobytes() == values.tobytes()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("largest", [True, False])
def test_topk__nan_comes_last_at_either_end(make: Any, largest: bool) -> None:
    column = np.array([np.nan, 1, -np.inf, np.inf, -np.nan, 0], np.float32)[:, None]
    found = run(TopK(6, largest), make(column))
    ordered = [3, 1, 5, 2, 0, 4] if largest else [2, 5, 1, 3, 0, 4]
    assert found["image"][:, 0].tolist() == ordered
    np.testing.assert_array_equal(found["value"], column[ordered])


def test_topk__negative_zero_ties_with_zero() -> None:
    column = np.array([-0.0, 0.0, -0.0], np.float32)[:, None]
    assert run(TopK(2), column)["image"][:, 0].tolist() == [0, 1]
    assert run(TopK(2, largest=False), column)["image"][:, 0].tolist() == [0, 1]
    assert not np.signbit(run(TopK(2), column)["value"]).any()


def test_topk__large_image_numbers() -> None:
    images = np.array([0, 2**31 - 1, 2**31, 2**32 - 2])
    found = run(TopK(4), np.zeros((4, 1), np.float32), images=images)
    assert found["image"][:, 0].tolist() == images.tolist()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_topk__positions_go_with_their_values(make: Any) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (40, 3)).astype(np.float16)
    places = rng.integers(0, 100, (40, 3)).astype(np.int32)
    kernel = TopK(9)
    state = kernel.start()
    for rows in (slice(0, 3), slice(3, 30), slice(30, 40)):
        state = kernel.update(state, (make(values[rows]), make(places[rows])), {"image": np.arange(40)[rows]})
    found = kernel.finalise(state)
    np.testing.assert_array_equal(found["position"], np.take_along_axis(places, found["image"], 0))
    np.testing.assert_array_equal(found["value"], np.take_along_axis(values, found["image"], 0))


def test_topk__wide_blocks_are_worked_through_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(1).integers(-5, 5, (30, 17)).astype(np.float32)
    expected = run(TopK(4), table)
    monkeypatch.setattr("dneuro.kernels.top.SLICE_ITEMS", 64)
    found = run(TopK(4), table)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
