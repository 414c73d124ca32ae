"""Factors with their labels: unit columns of F, the largest part first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import View
from dneuro.analysis.nonnegative.arrays import Arrays
from dneuro.analysis.nonnegative.solve import Solution
from dneuro.errors import ArrayError


def label(found: Solution, arrays: Arrays, names: list[str]) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Return what all matrices share, and what belongs to each.

    F and O are known up to a factor and an order: F's columns are given unit length, as Saini & Papalexakis compare
    them, and the components come by the norm of what they add to the weighted matrices.
    """
    exact = found.factors.images.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=0)
    units = found.scales or (1.0,) * len(names)
    squares = sum(
        weight * np.sum(np.square(side, dtype=np.float64), axis=0) / unit**2
        for weight, side, unit in zip(arrays.weights, found.factors.neurons, units, strict=True)
    )
    sizes = lengths * np.sqrt(squares)
    order = np.argsort(-sizes, kind="stable")
    images = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0)[:, order]
    numbers = arrays.views[0].images
    coords = {
        "image": numbers if arrays.rows is None else numbers[arrays.rows],
        "component": np.arange(len(sizes)),
        "iteration": np.arange(1, 1 + len(found.losses)),
    }
    shared = xr.Dataset(
        {
            "image_weight": (("image", "component"), images.astype(arrays.dtype)),
            "size": ("component", sizes[order]),
            "loss": ("iteration", found.losses @ np.asarray(arrays.weights)),
        },
        coords=coords,
    )
    parts = {}
    for j, (name, seen) in enumerate(zip(names, arrays.views, strict=True)):
        side = _narrow(((found.factors.neurons[j] * lengths) / units[j])[:, order], arrays.dtype, name)
        parts[name] = _one(side, found.losses[:, j], seen)
        parts[name].attrs = {"layer": seen.layer, "weight": float(arrays.weights[j])}
        parts[name].attrs |= errors(found.losses[-1, j], found.totals[j, 1], arrays.images * seen.labels.count)
    return shared, parts


def _narrow(side: NDArray[np.float64], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Return weights in the dtype of the result, if it can hold them."""
    largest, most = float(side.max(initial=0.0)), float(np.finfo(dtype).max)
    if largest > most:
        raise ArrayError(
            f"{name or 'the array'}: a weight of a neuron is {largest:.3g}, {dtype} ends at {most:.3g}",
            hint="x.astype('float64'), or x / 1000",
        )
    return side.astype(dtype)


def _one(side: NDArray[Any], losses: NDArray[np.float64], seen: View) -> xr.Dataset:
    return xr.Dataset(
        {
            "neuron_weight": (("component", *seen.labels.dims), side.T.reshape(-1, *seen.labels.sizes)),
            "loss": ("iteration", losses),
        },
        coords=seen.labels.coords,
    )


def errors(loss: float, squares: float, entries: int) -> dict[str, float]:
    """Return ‖X‖²_F, ‖X − F Oᵀ‖_F, its share of ‖X‖_F, and per entry √(loss / entries)."""
    return {
        "total_squares": float(squares),
        "reconstruction_error": math.sqrt(loss),
        "relative_error": math.sqrt(loss / squares) if squares > 0 else 0.0,
        "rmse": math.sqrt(loss / entries),
    }
