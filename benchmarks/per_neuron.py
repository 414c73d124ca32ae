"""Moments and top images of every neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question, analysis
from benchmarks.reading import BARE_READ
from benchmarks.setting import Setting

K = 100


def our_moments(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro, as a user calls it."""
    call = analysis("moments", setting.lazy(), clock)
    return lambda: call()["variance"].values


def variance(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask NumPy in float64."""
    return lambda: setting.whole(clock).var(axis=0, dtype=np.float64)


def dask_variance(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask in float64."""
    return lambda: setting.dask().var(axis=0, dtype=np.float64).compute()


def our_top(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro: both ends, with the images, since that is what it gives."""
    call = analysis("top_images", setting.lazy(), clock, k=K)
    return lambda: call()["top_value"].values


def argpartition(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask NumPy: one end."""

    def call() -> Any:
        x = setting.whole(clock)
        top = np.take_along_axis(x, np.argpartition(x, -K, axis=0)[-K:], axis=0)
        return np.sort(top, axis=0)[::-1].T

    return call


def argtopk(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask: the images of one end; their values need a second look."""
    import dask.array as da

    def call() -> NDArray[Any]:
        x = setting.dask()
        return np.asarray(da.topk(x, K, axis=0).compute().T)

    return call


def dask_argtopk(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask: the images of one end, without their values."""
    import dask.array as da

    return lambda: da.argtopk(setting.dask(), K, axis=0).compute().T


def largest_difference(found: Any, true: Any) -> float:
    """Return the largest difference as a share of the largest value; NaN where an answer holds no values."""
    return float(np.abs(found - true).max() / np.abs(true).max()) if found.dtype.kind == "f" else float("nan")


QUESTIONS = (
    Question(
        "Moments of every neuron",
        (
            Candidate("dneuro moments", our_moments, "cluster"),
            Candidate("dneuro moments", our_moments, "threads"),
            *BARE_READ,
            Candidate("NumPy var, float64", variance, "memory"),
            Candidate("dask var, float64", dask_variance, "cluster"),
        ),
        error=largest_difference,
        large=True,
    ),
    Question(
        f"The {K} images that excite every neuron most",
        (
            Candidate("dneuro top_images, both ends", our_top, "cluster"),
            Candidate("dneuro top_images, both ends", our_top, "threads"),
            *BARE_READ,
            Candidate("NumPy argpartition, one end", argpartition, "memory"),
            Candidate("da.topk, one end, values alone", argtopk, "cluster"),
            Candidate("da.argtopk, one end, images alone", dask_argtopk, "cluster"),
        ),
        error=largest_difference,
        large=True,
    ),
)
