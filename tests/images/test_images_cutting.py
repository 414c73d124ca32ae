"""Patches against slices of a padded view."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dneuro.images.cutting import cut, padding_color
from dneuro.spec.network import Preprocessing

FILL = np.array([7, 8, 9], np.uint8)


@given(st.integers(-9, 12), st.integers(-9, 12), st.integers(1, 14), st.integers(1, 14))
def test_cut__is_a_slice_of_the_padded_view(top: int, left: int, height: int, width: int) -> None:
    view = np.random.default_rng(0).integers(10, 256, (6, 5, 3), np.uint8)
    padded = np.empty((6 + 60, 5 + 60, 3), np.uint8)
    padded[:] = FILL
    padded[30:36, 30:35] = view
    expected = padded[30 + top : 30 + top + height, 30 + left : 30 + left + width]
    np.testing.assert_array_equal(cut(view, (top, left, top + height, left + width), FILL), expected)


@pytest.mark.parametrize(
    ("said", "color"),
    [
        ({"mean": (0.485, 0.456, 0.406)}, [124, 116, 104]),
        ({}, [0, 0, 0]),
        ({"mean": 0.5}, [128, 128, 128]),
        ({"color": "grey", "mean": 0.1307}, [33]),
        ({"mean": (-1.0, 0.0, 3.0)}, [0, 0, 255]),
    ],
)
def test_padding_color__is_what_the_networks_zeros_stand_for(said: dict[str, object], color: list[int]) -> None:
    found = padding_color(Preprocessing.model_validate(said))
    assert (found.dtype, found.tolist()) == (np.uint8, color)
