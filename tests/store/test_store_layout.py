from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dneuro.store import layout
from dneuro.store.layout import BUFFER_BYTES, CHUNK_BYTES, REGISTRY, ArrayPlan, LayerPlan

units = st.integers(0, 9).map(lambda power: 1 << power)
sizes = st.integers(1, 4096)
shapes = st.one_of(
    st.tuples(sizes), st.tuples(sizes, st.integers(1, 224)), st.tuples(sizes, st.integers(1, 224), st.integers(1, 224))
)
dtypes = st.sampled_from(["float32", "float16"])


def assert_units_share_no_chunk(plan: ArrayPlan, unit: int) -> None:
    borders = range(0, plan.shape[0], unit)
    assert all(start % plan.chunks[0] == 0 for start in borders), plan


@given(shapes, st.sampled_from([2, 4]), units)
def test_chunks__are_cut_at_the_borders_of_units(shape: tuple[int, ...], itemsize: int, unit: int) -> None:
    images, channels, *positions = layout.chunks(shape, itemsize, unit)
    assert unit % images == 0
    assert 1 <= channels <= shape[0]
    assert tuple(positions) == shape[1:], "positions are never cut"


@given(shapes, st.sampled_from([2, 4]), units)
def test_chunks__and_rows_of_chunks_stay_within_their_bytes(
    shape: tuple[int, ...], itemsize: int, unit: int
) -> None:
    images, channels, *positions = layout.chunks(shape, itemsize, unit)
    assert images == 1 or images * math.prod(shape) * itemsize <= BUFFER_BYTES
    assert channels == 1 or images * channels * math.prod(positions) * itemsize <= CHUNK_BYTES
    # and no smaller than they must be: twice as many images would be too large, or more than a unit
    assert 2 * images > unit or 2 * images * math.prod(shape) * itemsize > BUFFER_BYTES


@given(shapes, st.sampled_from(["full", "max", "mean", "stats"]), dtypes, st.integers(1, 5000), units)
def test_layer__has_arrays_that_the_registry_knows_cut_at_unit_borders(
    shape: tuple[int, ...], keep: str, dtype: str, images: int, unit: int
) -> None:
    plans = LayerPlan("features.12", keep, shape, dtype).arrays(images, unit)
    dims = ("channel", "y", "x")[: len(shape)]
    names = {
        "full": ["activation"],
        "mean": ["activation_mean"],
        "max": ["activation_max", *(f"activation_{dim}" for dim in dims[1:])],
        "stats": [],
    }
    assert [plan.name for plan in plans] == names[keep]
    for plan in plans:
        meaning = REGISTRY[plan.name]
        expected = tuple(dim for known in meaning.dims for dim in (dims if known == "..." else (known,)))
        assert plan.dims == expected
        assert plan.dtype == (meaning.dtype or dtype)
        assert plan.shape == (images, *shape[: len(plan.dims) - 1])
        assert plan.nbytes == np.dtype(plan.dtype).itemsize * math.prod(plan.shape)
        assert plan.path == f"layers/features.12/{plan.name}"
        assert_units_share_no_chunk(plan, unit)


@given(st.integers(1, 5000), units, st.booleans(), st.booleans(), st.sampled_from([(), (28, 28, 1), (112, 75, 3)]))
def test_root__has_arrays_that_the_registry_knows_cut_at_unit_borders(
    images: int, unit: int, predictions: bool, labels: bool, picture: tuple[int, ...]
) -> None:
    plans = layout.root_arrays(images, unit, predictions=predictions, labels=labels, picture=picture)
    names = {"status", "checksum"}
    names |= {"prediction"} if predictions else set()
    names |= {"correct"} if predictions and labels else set()
    names |= {"picture"} if picture else set()
    assert {plan.name for plan in plans} == names
    for plan in plans:
        assert plan.dims == REGISTRY[plan.name].dims
        assert plan.dtype == REGISTRY[plan.name].dtype
        assert plan.shape[0] == images
        assert_units_share_no_chunk(plan, unit)


@given(st.integers(1, 10_000_000))
def test_images_per_unit__is_a_power_of_two(images: int) -> None:
    unit = layout.images_per_unit(images)
    assert unit & (unit - 1) == 0
    assert 16 <= unit <= 512
    if unit > 16:
        assert images / unit >= 16, "so that some sixteen units can be worked on side by side"


def test_row_bytes__is_what_a_writer_holds() -> None:
    (plan,) = LayerPlan("conv", "full", (64, 56, 56), "float16").arrays(1000, 512)
    assert plan.row_bytes == plan.chunks[0] * 64 * 56 * 56 * 2 <= BUFFER_BYTES


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_registry__says_what_each_array_means(name: str) -> None:
    meaning = REGISTRY[name]
    assert meaning.text
    assert "image" in meaning.dims or meaning.dims == ("class",)
    assert meaning.dtype in ("", "string") or np.dtype(meaning.dtype)
