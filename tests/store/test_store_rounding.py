from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dneuro.store.rounding import to_bfloat16


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bfloat16__is_that_of_torch(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(to_bfloat16(values), expected)


def test_bfloat16__keeps_nan_and_the_upper_half() -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    values[2, 3] = np.nan
    rounded = to_bfloat16(values)
    assert rounded.dtype == np.float32
    assert np.isnan(rounded[2, 3])
    finite = ~np.isnan(values)
    assert not (rounded.view(np.uint32)[finite] & 0xFFFF).any()
    np.testing.assert_allclose(rounded[finite], values[finite], rtol=2**-8)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_bfloat16__keeps_the_shape(shape: tuple[int, ...]) -> None:
    assert to_bfloat16(np.ones(shape, np.float32)).shape == shape
