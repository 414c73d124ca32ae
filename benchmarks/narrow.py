"""The whole spectrum of a narrow layer, centred: nothing is truncated, so that small singular values count too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question, analysis
from benchmarks.setting import Setting

NEURONS = 256


def narrowed(setting: Setting) -> Setting:
    """Return the same number of images of few neurons; the array is made where it is not there."""
    path = setting.path.with_name(f"{setting.images}x{NEURONS}.zarr")
    narrow = replace(setting, path=path, neurons=NEURONS)
    narrow.make()
    return narrow


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for all of them."""
    call = analysis("svd", narrowed(setting).lazy(), clock, rank="all", standardize="center")
    return lambda: call()["singular_value"].values


def dask_ml_pca(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask-ml for its PCA of tall arrays."""
    from dask_ml.decomposition import PCA

    x = _tall(setting)
    return lambda: PCA(svd_solver="tsqr").fit(x).singular_values_


def dask_ml_truncated(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask-ml for its truncated SVD of tall arrays; it does not give the last one."""
    from dask_ml.decomposition import TruncatedSVD

    x = _tall(setting)
    return lambda: TruncatedSVD(NEURONS - 1, algorithm="tsqr").fit(x - x.mean(axis=0)).singular_values_


def dask_svd(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask for its SVD of tall arrays."""
    import dask.array as da

    x = _tall(setting)
    return lambda: da.linalg.svd(x - x.mean(axis=0))[1].compute()


def scikit_learn(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn for its PCA, decomposed in full."""
    from sklearn.decomposition import PCA

    narrow = narrowed(setting)
    return lambda: PCA(svd_solver="full").fit(narrow.whole(clock)).singular_values_


def incremental_pca(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn for its PCA that reads batches."""
    import zarr
    from sklearn.decomposition import IncrementalPCA

    narrow = narrowed(setting)

    def call() -> Any:
        array, model = zarr.open_array(narrow.path, mode="r"), IncrementalPCA()
        for start in range(0, narrow.images, 1024):
            rows = np.asarray(array[start : start + 1024])
            if len(rows) >= NEURONS:
                model.partial_fit(rows)
        return model.singular_values_

    return call


def _tall(setting: Setting) -> Any:
    return narrowed(setting).dask().rechunk({1: -1})


def truth(setting: Setting) -> Any:
    """Return the singular values of all of it, in float64."""
    x = narrowed(setting).whole(Clock()).astype("f8")
    return np.linalg.svd(x - x.mean(axis=0), compute_uv=False)


def error(found: Any, true: Any) -> float:
    """Return the largest error of a singular value, as a share of it."""
    count = min(len(found), len(true))
    return float(np.max(np.abs(found[:count] - true[:count]) / true[:count]))


QUESTIONS = (
    Question(
        f"All singular values of {NEURONS} neurons, centred",
        (
            Candidate("dneuro svd, rank=all", ours, "cluster"),
            Candidate("dneuro svd, rank=all", ours, "threads"),
            Candidate("dask-ml PCA, tsqr", dask_ml_pca, "cluster"),
            Candidate("dask-ml TruncatedSVD, tsqr, all but the last", dask_ml_truncated, "cluster"),
            Candidate("da.linalg.svd", dask_svd, "cluster"),
            Candidate("scikit-learn PCA, full", scikit_learn, "memory"),
            Candidate("scikit-learn IncrementalPCA, batches of 1,024", incremental_pca, "memory"),
        ),
        error=error,
        reference=truth,
    ),
)
