"""Where naive formulas lose their digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dneuro.kernels import CrossProducts, Kernel, Moments, Standardise


def run(kernel: Kernel, table: Any, block: int) -> dict[str, Any]:
    half = len(table) // 2
    states = []
    for start, stop in ((0, half), (half, len(table))):
        state = kernel.start()
        for i in range(start, stop, block):
            some = np.arange(i, min(i + block, stop))
            state = kernel.update(state, (table[some],), {"image": some})
        states.append(state)
    return kernel.finalise(kernel.merge(*states))


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("block", [7, 1000])
def test_moments__variance_at_ten_thousand_standard_deviations(make: Any, block: int) -> None:
    table = (1e4 + np.random.default_rng(0).standard_normal((20_000, 3))).astype(np.float32)
    naive = (table**2).mean(0) - table.mean(0) ** 2
    expected = np.var(table, axis=0, dtype=np.float64)
    assert (np.abs(naive / expected - 1) > 0.05).any(), "float32 alone would have failed"
    np.testing.assert_allclose(run(Moments(), make(table), block)["variance"], expected, rtol=1e-10)


def test_products__covariance_at_ten_thousand_standard_deviations() -> None:
    rng = np.random.default_rng(1)
    table = (1e4 + rng.standard_normal((5000, 3)) @ rng.standard_normal((3, 3))).astype(np.float32)
    table[:, 2] = 12345.678
    found = run(CrossProducts(), table, 100)
    covariance = found["products"] - np.outer(found["sum"], found["sum"]) / found["count"]
    expected = np.cov(table, rowvar=False, ddof=0, dtype=np.float64) * len(table)
    np.testing.assert_allclose(covariance[:2, :2], expected[:2, :2], rtol=1e-10)
    assert (covariance[2] == 0).all(), "a constant feature leaves nothing behind"


def test_products__float64_beyond_float32() -> None:
    table = np.random.default_rng(1).standard_normal((100, 3)) * 1e100
    found = run(CrossProducts(), table, 10)
    covariance = found["products"] - np.outer(found["sum"], found["sum"]) / found["count"]
    np.testing.assert_allclose(covariance, np.cov(table, rowvar=False, ddof=0) * 100, rtol=1e-10)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_standardise__rows_and_columns(make: Any) -> None:
    table = np.random.default_rng(2).standard_normal((6, 5)).astype(np.float32)
    table[1] = 0.1  # constant rows and columns, in numbers that are not binary fractions
    table[:, 3] = 0.1
    x = table.astype(np.float64)
    mean, std = x.mean(0), np.where(np.ptp(x, axis=0) > 0, x.std(0), 0)
    modes: dict[Any, Any] = {
        "image": (x - x.mean(1, keepdims=True)) / np.where(np.ptp(x, axis=1) > 0, x.std(1), np.inf)[:, None],
        "neuron": (x - mean) / np.where(std > 0, std, np.inf),
        "center": x - mean,
        None: x,
    }
    for mode, expected in modes.items():
        z = np.asarray(Standardise(mode, mean=mean, std=std).apply(make(table)))
        assert z.dtype == np.float64
        np.testing.assert_allclose(z, expected, rtol=1e-13, atol=1e-13, err_msg=str(mode))


@pytest.mark.parametrize("features", range(2, 40))
def test_standardise__rounding_of_a_mean_is_not_blown_up(features: int) -> None:
    """The mean of many times 0.1 is not always 0.1."""
    rows = np.array([0.1, -1e30, 1e-30, 0.0])[:, None] + np.zeros(features)
    assert np.abs(Standardise("image").apply(rows)).max() < 1e-10


def test_standardise__leaves_the_activations_alone() -> None:
    table = np.random.default_rng(2).standard_normal((6, 5))
    before = table.copy()
    for mode in ("image", "center", None):
        Standardise(mode, mean=np.ones(5)).apply(table)
    np.testing.assert_array_equal(table, before)


def test_standardise__neuron_needs_the_deviations() -> None:
    with pytest.raises(ValueError, match="std is not given"):
        Standardise("neuron", mean=np.ones(5)).apply(np.ones((2, 5)))


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("mode", ["image", "level"])
@pytest.mark.parametrize(("height", "width"), [(1, 20_000), (2, 50_000), (5, 200_000), (8, 20_001), (3, 2304)])
def test_standardise__constant_rows_are_zero_and_rows_that_vary_live(
    make: Any, single: bool, mode: Any, height: int, width: int
) -> None:
    """At tens of thousands of features the rounding of a mean in float32 is no longer small."""
    rng = np.random.default_rng(7)
    rows = np.repeat(rng.uniform(0.1, 10, (24, 1)), width, axis=1)
    rows[8:16] *= 1 + 1e-6 * rng.standard_normal((8, width))  # a few bits of float32
    rows[16:] *= 1 + 1e-3 * rng.standard_normal((8, width))  # a variance of 1e-6 of the squared mean
    rows[3, width // 3] *= 1.5  # one neuron of all
    rows = rows.astype("f4")
    true = rows.astype("f8")
    true -= true.mean(1, keepdims=True)
    constant = np.ptp(rows, axis=1) == 0
    assert constant.sum() == 7
    if mode == "image":
        true /= np.where(constant, 1, true.std(1))[:, None]
    true[constant] = 0
    found = np.vstack([
        np.asarray(Standardise(mode).apply(make(rows[i : i + height]), single=single)) for i in range(0, 24, height)
    ])  # fmt: skip
    assert (found[constant] == 0).all()
    spread = np.maximum(true.std(1, keepdims=True), 1e-30)
    np.testing.assert_allclose(found / spread, true / spread, rtol=1e-5, atol=1e-3 if single else 1e-9)


def test_standardise__a_row_of_float64_that_varies_in_its_last_bits_lives() -> None:
    rows = 3.0 + np.random.default_rng(8).integers(0, 3, (4, 20_000)) * 2.0**-51
    found = Standardise("image").apply(rows)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(1), 1, rtol=1e-9)
