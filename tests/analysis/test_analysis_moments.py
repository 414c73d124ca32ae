from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn


@pytest.mark.parametrize("per", ["channel", "image"])
def test_moments__variance_at_ten_thousand_standard_deviations(per: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float32 is wrong by more than the variance itself."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 10_000)
    values = (1e4 + np.random.default_rng(0).standard_normal((3000, 40))).astype("f4")
    found = dn.moments(xr.DataArray(da.from_array(values, chunks=(170, 40)), dims=("image", "channel")), per=per)
    axis = 0 if per == "channel" else 1
    np.testing.assert_allclose(found["variance"], values.var(axis, dtype="f8"), rtol=1e-10)
    np.testing.assert_allclose(found["mean"], values.mean(axis, dtype="f8"), rtol=1e-14)


def test_moments__float16_does_not_overflow() -> None:
    values = np.full((5000, 2), 60_000, "f2")
    values[::2, 1] = -60_000
    found = dn.moments(xr.DataArray(values, dims=("image", "channel")))
    assert found["mean"].values.tolist() == [60_000, 0]
    assert found["std"].values[0] == 0
    assert found["std"].values[1] == pytest.approx(60_000, abs=32)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("per", ["channel", "image"])
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.7, 12345.678])
def test_moments__what_is_constant_has_no_variance_at_all(dtype: str, per: Any, size: float) -> None:
    """To the last bit: of equal numbers the mean is rounded, and each of them lies beside it."""
    columns = np.full((997, 3), size, dtype)
    columns[:, 2] /= 2
    values = columns if per == "channel" else np.ascontiguousarray(columns.T)
    found = dn.moments(xr.DataArray(da.from_array(values, chunks=(100, 100)), dims=("image", "channel")), per=per)
    assert (found["variance"] == 0).all()
    assert (found["std"] == 0).all()
    np.testing.assert_array_equal(found["mean"], found["min"])
    np.testing.assert_array_equal(found["mean"], found["max"])
