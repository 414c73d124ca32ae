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


def test_moments__constant_neurons_have_no_variance_at_all() -> None:
    values = np.full((997, 3), 0.1, "f4")
    found = dn.moments(xr.DataArray(da.from_array(values, chunks=(10, 3)), dims=("image", "channel")))
    assert (found["variance"] == 0).all()
    assert (found["mean"] == np.float32(0.1)).all()
