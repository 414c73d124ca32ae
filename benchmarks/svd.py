"""The leading singular values of the images, each standardised over its neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question, analysis
from benchmarks.setting import Setting


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro, as a user calls it."""
    call = analysis("svd", setting.lazy(), clock, rank=setting.rank, standardize="image")
    return lambda: call()["singular_value"].values


def scikit_learn(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn for its randomized SVD with its defaults."""
    from sklearn.utils.extmath import randomized_svd

    def call() -> Any:
        x = _standardised(setting.whole(clock))
        return randomized_svd(x, setting.rank, random_state=0)[1]

    return call


def incremental_pca(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn for its PCA that reads batches; it centres the neurons, so its values are of another matrix."""
    import zarr
    from sklearn.decomposition import IncrementalPCA

    def call() -> Any:
        array = zarr.open_array(setting.path, mode="r")
        model = IncrementalPCA(setting.rank)
        for start in range(0, setting.images, 1024):
            rows = np.asarray(array[start : start + 1024])
            if len(rows) >= setting.rank:
                model.partial_fit(_standardised(rows))
        return model.singular_values_

    return call


def svd_compressed(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask for its randomized SVD, re-orthonormalised: by default it loses float32."""
    import dask.array as da

    def call() -> Any:
        z = _lazy(setting)
        return da.linalg.svd_compressed(z, setting.rank, n_power_iter=4, iterator="QR", seed=0)[1].compute()

    return call


def svd_compressed_as_it_is(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask for its randomized SVD with its defaults."""
    import dask.array as da

    return lambda: da.linalg.svd_compressed(_lazy(setting), setting.rank, seed=0)[1].compute()


def dask_ml(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dask-ml for its truncated SVD, randomized, with its defaults."""
    from dask_ml.decomposition import TruncatedSVD

    model = TruncatedSVD(setting.rank, algorithm="randomized", random_state=0)
    return lambda: model.fit(_lazy(setting)).singular_values_


def _standardised(x: NDArray[np.float32]) -> NDArray[np.float32]:
    x -= x.mean(axis=1, keepdims=True)
    x /= x.std(axis=1, keepdims=True)
    return x


def _lazy(setting: Setting) -> Any:
    x = setting.dask().rechunk({1: -1})
    return x.map_blocks(lambda rows: _standardised(rows.copy()), dtype="f4")


def truth(setting: Setting) -> Any:
    """Singular values in float64 on a space that many steps of scikit-learn have made far too good."""
    import zarr
    from sklearn.utils.extmath import randomized_svd

    z = _standardised(np.asarray(zarr.open_array(setting.path, mode="r")[:]))
    _, _, v = randomized_svd(
        z, setting.rank + 10, n_oversamples=40, n_iter=10, power_iteration_normalizer="QR", random_state=1
    )
    v = np.linalg.qr(v.T.astype("f8"))[0]
    scores = []
    for start in range(0, len(z), 1024):
        rows = np.asarray(zarr.open_array(setting.path, mode="r")[start : start + 1024], dtype="f8")
        scores.append((rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True) @ v)
    return np.linalg.svd(np.concatenate(scores), compute_uv=False)[: setting.rank]


def error(found: Any, true: Any) -> float:
    """Return the largest error of a singular value, as a share of it."""
    return float(np.max(np.abs(found - true) / true))


QUESTIONS = (
    Question(
        "SVD, rank {rank}, images standardised",
        (
            Candidate("dneuro svd", ours, "cluster"),
            Candidate("dneuro svd", ours, "threads"),
            Candidate("scikit-learn randomized_svd", scikit_learn, "memory"),
            Candidate("da.linalg.svd_compressed, iterator=QR, 4 steps", svd_compressed, "cluster"),
            Candidate("da.linalg.svd_compressed, iterator=QR, 4 steps", svd_compressed, "threads"),
            Candidate("da.linalg.svd_compressed, defaults", svd_compressed_as_it_is, "cluster"),
            Candidate("dask-ml TruncatedSVD, randomized", dask_ml, "cluster"),
            Candidate("scikit-learn IncrementalPCA, batches of 1,024", incremental_pca, "memory"),
        ),
        error=error,
        reference=truth,
        large=True,
    ),
)
