"""Small layers of numbers above 0, in blocks, and what became of them: for all tests of factorisations."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

Array = np.ndarray


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    """Arrays this small would be one block otherwise, and panels of neurons never be worth it."""
    patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 512)
    patch.setattr("dneuro.analysis.nonnegative.reads.BLOCK_BYTES", 16)


def parts(images: int = 40, neurons: int = 24, seed: int = 0, dtype: str = "f8") -> Array:
    """Activations that are nearly made of four parts."""
    rng = np.random.default_rng(seed)
    made = rng.random((images, 4)) ** 2 @ rng.random((4, neurons)) ** 2 + 0.2 * rng.standard_normal((images, neurons))
    return np.maximum(made, 0).astype(dtype)


def labelled(values: Array, chunks: Any = None, **coords: Any) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=(*chunks, *values.shape[2:])[: values.ndim])
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: values.ndim], coords=coords)


def coupled(dtype: str = "f8") -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    amounts = rng.random((40, 3)) ** 2
    pixels, layer = amounts @ rng.random((3, 24)), 9 * amounts @ rng.random((3, 10)) + rng.random((40, 10))
    return pixels.reshape(40, 2, 3, 4).astype(dtype), layer.astype(dtype)


def product(found: xr.Dataset) -> Array:
    weights = found["neuron_weight"].transpose("component", ...).values
    return found["image_weight"].values.astype("f8") @ weights.reshape(len(weights), -1).astype("f8")
