"""Indices of rows against their definitions, and the limits that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from dneuro.kernels import indices

ROWS = st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=1, max_size=8)


@pytest.mark.parametrize(("m", "n"), [(1, 1000), (100, 1000), (10, 10), (3, 7), (1, 2)])
def test_indices__of_m_equal_classes_of_n(m: int, n: int) -> None:
    rows = np.zeros((1, n))
    rows[0, n - m :] = 1e4  # far above the offset
    flat, sparse = indices.flatness(rows), indices.gini(rows)
    assert sparse[0] == pytest.approx(1 - m / n, abs=1e-12)
    assert flat[0] == pytest.approx(2 ** (np.log(m) / np.log(n)) - 1, abs=1e-5)
    assert indices.entropy(rows)[0] == pytest.approx(np.log2(m), abs=1e-12)
    facets = indices.multifacetedness(flat, sparse)[0]
    assert facets == (np.inf if m == n else pytest.approx(flat[0] / (1 - m / n)))


def test_multifacetedness__as_the_paper_has_it() -> None:
    rows = np.zeros((1, 1000))
    rows[0, :100] = 1
    facets = indices.multifacetedness(indices.flatness(rows), indices.gini(rows))
    assert facets[0] == pytest.approx(0.653, abs=5e-4)


def test_multifacetedness__of_labels_by_chance() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([np.bincount(rng.integers(0, 1000, 100), minlength=1000) for _ in range(400)])
    facets = indices.multifacetedness(indices.flatness(rows), indices.gini(rows))
    assert facets.mean() == pytest.approx(0.635, abs=2e-3)
    assert facets.std() == pytest.approx(0.007, abs=1e-3)


@given(ROWS, st.sampled_from([1.0, 1e-3, 1e200]))
@settings(max_examples=100, deadline=None)
def test_indices__as_their_definitions(rows: list[list[int]], scale: float) -> None:
    table = np.array(rows, dtype=np.float64) * scale
    for row, sparse, bits in zip(table, indices.gini(table), indices.entropy(table), strict=True):
        if not row.any():
            assert np.isnan(sparse)
            assert np.isnan(bits)
            continue
        # Half the mean difference of two entries, by the mean: another form of the same index.
        apart = np.abs(row[:, None] - row[None, :]).mean()
        assert sparse == pytest.approx(apart / (2 * row.mean()), abs=1e-12)
        assert 0 <= sparse <= 1 - 1 / 6 + 1e-12
        assert bits == pytest.approx(scipy_entropy(row / row.max(), base=2), abs=1e-12)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_flatness__as_its_definition(rows: list[list[int]]) -> None:
    for row, found in zip(np.array(rows), indices.flatness(rows), strict=True):
        if not row.any():
            assert found == -1
            continue
        shares = (row + 1e-7) / (row + 1e-7).sum()
        assert np.log2(found + 1) == pytest.approx(-(shares * np.log2(shares)).sum() / np.log2(6), abs=1e-12)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_class_selectivity__as_its_definition(rows: list[list[int]]) -> None:
    for row, found in zip(np.array(rows), indices.class_selectivity(rows), strict=True):
        best = int(row.argmax())
        others = np.delete(row, best).mean()
        if row[best] + others == 0:
            assert np.isnan(found)
        else:
            assert found == pytest.approx((row[best] - others) / (row[best] + others), abs=1e-15)


def test_class_selectivity__leaves_out_classes_without_images() -> None:
    nan = np.nan
    rows = [[3, nan, 1], [nan, nan, 1], [nan, nan, nan], [2, -1, -2], [2, -1, 1], [-1, -1, -1], [1e-300, 0, 0]]
    expected = [0.5, nan, nan, nan, 1, nan, 1]
    np.testing.assert_array_equal(indices.class_selectivity(rows), expected)


@pytest.mark.parametrize("bad", [-1.0, -1e-9, np.nan, np.inf])
def test_indices__of_what_is_no_share_are_nan(bad: float) -> None:
    rows = [[1.0, bad, 2.0], [1.0, 1.0, 2.0]]
    for index in (indices.gini, indices.flatness, indices.entropy):
        found = index(rows)
        assert np.isnan(found[0])
        assert np.isfinite(found[1])


@pytest.mark.parametrize("row", [[-1.0, 0.0], [-1.0, -2.0], [np.nan, 0.0], [-1.0, np.inf, 0.0]])
def test_indices__of_rows_without_anything_above_0_are_nan_without_a_warning(row: list[float]) -> None:
    """As the mean activations per class of a layer before its ReLU."""
    for index in (indices.gini, indices.entropy, indices.flatness):
        assert np.isnan(index(row)).all()
        assert np.isfinite(index([row, [1.0] * len(row)])).tolist() == [False, True]


def test_indices__of_one_class() -> None:
    rows = [[5.0], [0.0]]
    np.testing.assert_array_equal(indices.gini(rows), [0, np.nan])
    np.testing.assert_array_equal(indices.flatness(rows), [np.nan, -1])
    np.testing.assert_array_equal(indices.entropy(rows), [0, np.nan])
    np.testing.assert_array_equal(indices.class_selectivity(rows), [np.nan, np.nan])


def test_indices__slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((4, 50, 7)).astype("f4")
    for index in (indices.gini, indices.flatness, indices.entropy, indices.class_selectivity):
        whole = index(rows)
        assert whole.shape == (4, 50)
        with monkeypatch.context() as patch:
            patch.setattr(indices, "SLICE_ITEMS", 30)
            np.testing.assert_array_equal(index(rows), whole)
