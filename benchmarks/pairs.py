"""How alike every two neurons are: the matrix of their correlations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question, analysis
from benchmarks.setting import Setting

ROWS = 128
"""Rows of a matrix that are compared: whole matrices are too large to travel between processes."""


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the matrix in memory."""
    call = analysis("similarity", setting.lazy(), clock, metric="pearson")
    return lambda: call()["pearson"].values


def ours_in_a_file(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the matrix as a Zarr array."""
    folder = tempfile.TemporaryDirectory(dir=setting.path.parent)
    write = analysis("similarity", setting.lazy(), clock, metric="pearson", out=Path(folder.name) / "pearson.zarr")

    def call() -> Any:
        found = write()["pearson"]
        found.attrs["folder"] = folder  # stays until the values were read
        return found

    return call


def ours_in_float64(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the matrix, multiplied in float64."""
    call = analysis("similarity", setting.lazy(), clock, metric="pearson", precision="float64")
    return lambda: call()["pearson"].values


def corrcoef(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask NumPy, in float64."""
    return lambda: np.corrcoef(setting.whole(clock), rowvar=False, dtype=np.float64)


def corrcoef_float32(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask NumPy, in float32."""
    return lambda: np.corrcoef(setting.whole(clock), rowvar=False, dtype=np.float32)


def dask_corrcoef(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask."""
    import dask.array as da

    return lambda: da.corrcoef(setting.dask(), rowvar=False).compute()


def sample(found: Any) -> NDArray[np.float64]:
    """Return some rows of a matrix."""
    return np.asarray(found[:: max(1, found.shape[0] // ROWS)], dtype=np.float64)


def true_correlations(setting: Setting) -> NDArray[np.float64]:
    """Return those rows of the correlations, in float64 throughout."""
    left, right, products = sums(setting)
    covariance = products / setting.images - np.outer(left[0], right[0])
    correlations: NDArray[np.float64] = covariance / np.outer(left[1], right[1])
    return correlations


def sums(setting: Setting) -> tuple[Any, Any, NDArray[np.float64]]:
    """Return (mean, standard deviation) of some neurons, and of all, and the products of some with all: in float64."""
    import zarr

    array = zarr.open_array(setting.path, mode="r")
    total, squares = np.zeros(setting.neurons), np.zeros(setting.neurons)
    products = np.zeros((len(sample(total)), setting.neurons))
    for start in range(0, setting.images, 1024):
        rows = np.asarray(array[start : start + 1024], dtype=np.float64)
        total += rows.sum(axis=0)
        squares += np.einsum("ij,ij->j", rows, rows)
        products += sample(rows.T) @ rows
    mean = total / setting.images
    both = mean, np.sqrt(squares / setting.images - mean**2)
    return tuple(sample(values) for values in both), both, products


def largest_difference(found: Any, true: Any) -> float:
    """Return the largest difference, as a share of the largest value."""
    return float(np.nanmax(np.abs(found - true)) / np.nanmax(np.abs(true)))


QUESTIONS = (
    Question(
        "Pearson of every two neurons",
        (
            Candidate("dneuro similarity", ours, "cluster"),
            Candidate("dneuro similarity, to a file", ours_in_a_file, "cluster"),
            Candidate("dneuro similarity", ours, "threads"),
            Candidate("dneuro similarity, float64", ours_in_float64, "cluster"),
            Candidate("NumPy corrcoef, float64", corrcoef, "memory"),
            Candidate("NumPy corrcoef, float32", corrcoef_float32, "memory"),
            Candidate("da.corrcoef", dask_corrcoef, "cluster"),
        ),
        error=largest_difference,
        reference=true_correlations,
        digest=sample,
    ),
)
