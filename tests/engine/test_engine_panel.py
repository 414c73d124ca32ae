"""Merged here or on the workers, in whatever order: the same bits."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from dneuro.engine import reduce
from dneuro.kernels import ImageMoments, Moments, Scores, Standardise, Step, TopK

VALUES = np.random.default_rng(0).standard_normal((130, 12)).astype("f4")
Q = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 3)))[0]


def kernels() -> dict[str, Any]:
    return {
        "moments": Moments(), "images": ImageMoments(), "top": TopK(5),
        "step": Step(Standardise("image"), Q, True), "scores": Scores(Standardise(None), Q),
    }  # fmt: skip


def run(threads: Any, **options: Any) -> dict[str, Any]:
    x = xr.DataArray(da.from_array(VALUES, chunks=(10, 12)), dims=("image", "channel"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 64)
        return reduce((x,), kernels(), threads, **options)


def test_reduce__small_states_are_merged_here_to_the_same_bits(
    threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run(threads)
    monkeypatch.setattr("dneuro.engine.plan.SMALL", 0)
    there = run(threads)
    for kernel, results in here.items():
        for name, values in results.items():
            assert values.tobytes() == there[kernel][name].tobytes(), (kernel, name)


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_reduce__rows_of_images_come_in_their_order(threads: Any, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr("dneuro.engine.plan.SMALL", small)
    found = run(threads)["scores"]
    np.testing.assert_array_equal(found["image"], np.arange(130))
    np.testing.assert_allclose(found["score"], VALUES @ Q, rtol=1e-6, atol=1e-6)


def test_reduce__reads_one_block_in_so_many(threads: Any) -> None:
    found = run(threads, every=4)
    taken = np.concatenate([np.arange(i, i + 10) for i in range(0, 130, 40)])
    np.testing.assert_array_equal(found["scores"]["image"], taken)
    np.testing.assert_allclose(found["moments"]["mean"], VALUES[taken].mean(0, dtype="f8"), rtol=1e-6)
