"""How far every two neurons are apart, and the nearest of each: in a group of its own, for each takes its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock
from benchmarks.pairs import largest_difference, sample, sums
from benchmarks.question import Candidate, Question, analysis
from benchmarks.setting import Setting

NEIGHBOURS = 20
SUBTRACTIONS = 1e9
"""That SciPy does per second, on one core."""
FEW = 200
"""Seconds."""


def our_distances(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for distances."""
    call = analysis("similarity", setting.lazy(), clock, metric="euclidean")
    return lambda: call()["euclidean"].values


def cdist(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask SciPy, which subtracts every two neurons."""
    from scipy.spatial.distance import cdist as distances

    def call() -> Any:
        rows = setting.whole(clock).T.astype(np.float64)
        return distances(rows, rows)

    return call


def hours_of_subtracting(setting: Setting) -> str:
    """Return how long SciPy would be at it, where that is more than `FEW` seconds."""
    seconds = setting.neurons**2 * setting.images / SUBTRACTIONS
    return f"it would take about {seconds / 3600:.1f} h" if seconds > FEW else ""


def euclidean_distances(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn, which multiplies."""
    from sklearn.metrics import pairwise_distances

    return lambda: pairwise_distances(setting.whole(clock).T, metric="euclidean")


def our_neighbours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the nearest of each neuron; the matrix never exists."""
    call = analysis("similarity", setting.lazy(), clock, metric="pearson", neighbours=NEIGHBOURS)
    return lambda: call()["pearson_value"].values


def corrcoef_partition(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask NumPy for the matrix, then for its largest."""

    def call() -> Any:
        found = np.asarray(np.corrcoef(setting.whole(clock), rowvar=False, dtype=np.float64))
        np.fill_diagonal(found, -2)
        return np.sort(np.partition(found, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:], axis=1)[:, ::-1]

    return call


def true_distances(setting: Setting) -> NDArray[np.float64]:
    """Return those rows of the distances, in float64 throughout."""
    *both, products = sums(setting)
    left, right = ((mean**2 + std**2) * setting.images for mean, std in both)
    squared = left[:, None] + right - 2 * products
    squared[squared < 1e-9 * left[:, None]] = 0  # a neuron and itself
    distances: NDArray[np.float64] = np.sqrt(squared)
    return distances


QUESTIONS = (
    Question(
        "Distance of every two neurons",
        (
            Candidate("dneuro similarity", our_distances, "cluster"),
            Candidate("scikit-learn pairwise_distances, float32", euclidean_distances, "memory"),
            Candidate("SciPy cdist", cdist, "memory", hours_of_subtracting),
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
