"""How alike every two neurons are: the matrix, and the nearest of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting

ROWS = 128
"""Rows of a matrix that are compared: whole matrices are too large to travel between processes."""
NEIGHBOURS = 20


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the matrix in memory."""
    import dneuro as dn

    x = setting.lazy()
    return lambda: dn.similarity(x, metric="pearson")["pearson"].values


def ours_in_a_file(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the matrix as a Zarr array."""
    import dneuro as dn

    x, folder = setting.lazy(), tempfile.TemporaryDirectory(dir=setting.path.parent)
    out = Path(folder.name) / "pearson.zarr"

    def call() -> Any:
        found = dn.similarity(x, metric="pearson", out=out)["pearson"]
        found.attrs["folder"] = folder  # stays until the values were read
        return found

    return call


def ours_in_float64(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the matrix, multiplied in float64."""
    import dneuro as dn

    x = setting.lazy()
    return lambda: dn.similarity(x, metric="pearson", precision="float64")["pearson"].values


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


def our_distances(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for distances."""
    import dneuro as dn

    x = setting.lazy()
    return lambda: dn.similarity(x, metric="euclidean")["euclidean"].values


def cdist(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask SciPy, which subtracts every two neurons."""
    from scipy.spatial.distance import cdist as distances

    def call() -> Any:
        rows = setting.whole(clock).T.astype(np.float64)
        return distances(rows, rows)

    return call


def euclidean_distances(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn, which multiplies."""
    from sklearn.metrics import pairwise_distances

    return lambda: pairwise_distances(setting.whole(clock).T, metric="euclidean")


def our_neighbours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the nearest of each neuron; the matrix never exists."""
    import dneuro as dn

    x = setting.lazy()
    return lambda: dn.similarity(x, metric="pearson", neighbours=NEIGHBOURS)["pearson_value"].values


def corrcoef_partition(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask NumPy for the matrix, then for its largest."""

    def call() -> Any:
        found = np.asarray(np.corrcoef(setting.whole(clock), rowvar=False, dtype=np.float64))
        np.fill_diagonal(found, -2)
        return np.sort(np.partition(found, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:], axis=1)[:, ::-1]

    return call


def sample(found: Any) -> NDArray[np.float64]:
    """Return some rows of a matrix."""
    return np.asarray(found[:: max(1, found.shape[0] // ROWS)], dtype=np.float64)


def true_correlations(setting: Setting) -> NDArray[np.float64]:
    """Return those rows of the correlations, in float64 throughout."""
    left, right = _moments(setting)
    products = _products(setting)
    covariance = products / setting.images - np.outer(left[0], right[0])
    correlations: NDArray[np.float64] = covariance / np.outer(left[1], right[1])
    return correlations


def true_distances(setting: Setting) -> NDArray[np.float64]:
    """Return those rows of the distances, in float64 throughout."""
    left, right = ((mean**2 + std**2) * setting.images for mean, std in _moments(setting))
    squared = left[:, None] + right - 2 * _products(setting)
    squared[squared < 1e-9 * left[:, None]] = 0  # a neuron and itself
    distances: NDArray[np.float64] = np.sqrt(squared)
    return distances


def _moments(setting: Setting) -> tuple[Any, Any]:
    total, squares = np.zeros(setting.neurons), np.zeros(setting.neurons)
    for rows in _bands(setting):
        total += rows.sum(axis=0)
        squares += (rows**2).sum(axis=0)
    mean = total / setting.images
    both = mean, np.sqrt(squares / setting.images - mean**2)
    return tuple(sample(values) for values in both), both


def _products(setting: Setting) -> NDArray[np.float64]:
    return np.asarray(sum(sample(rows.T) @ rows for rows in _bands(setting)))


def _bands(setting: Setting) -> Any:
    import zarr

    array = zarr.open_array(setting.path, mode="r")
    for start in range(0, setting.images, 1024):
        yield np.asarray(array[start : start + 1024], dtype=np.float64)


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
    Question(
        "Distance of every two neurons",
        (
            Candidate("dneuro similarity", our_distances, "cluster"),
            Candidate("scikit-learn pairwise_distances, float32", euclidean_distances, "memory"),
            Candidate("SciPy cdist", cdist, "memory"),
        ),
        error=largest_difference,
        reference=true_distances,
        digest=sample,
    ),
    Question(
        f"The {NEIGHBOURS} nearest of every neuron, by Pearson",
        (
            Candidate("dneuro similarity, neighbours", our_neighbours, "cluster"),
            Candidate("NumPy corrcoef, float64, and partition", corrcoef_partition, "memory"),
        ),
        error=largest_difference,
        digest=sample,
    ),
)
