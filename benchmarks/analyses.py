"""The analyses on one array: dneuro from the store, its peers with everything in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import measure, timed

RANK = 16
K = 100


def make(path: Path, images: int, neurons: int) -> None:
    """Write a sparse, ReLU-like array with a falling spectrum, as chunks of dneuro's own layout."""
    import zarr

    from dneuro.store.creating import CODEC
    from dneuro.store.layout import chunks

    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((64, neurons)) / np.arange(1, 65)[:, None]
    shape = chunks((neurons,), 4, 512)
    array = zarr.create_array(path, shape=(images, neurons), chunks=shape, dtype="f4", compressors=CODEC)
    for start in range(0, images, 512):
        rows = min(512, images - start)
        values = rng.standard_normal((rows, 64)) @ loadings + 0.3 * rng.standard_normal((rows, neurons))
        array[start : start + rows] = np.maximum(values, 0)


def lazy(path: Path) -> Any:
    """Return the array as dneuro sees it."""
    import dask.array as da
    import xarray as xr

    return xr.DataArray(da.from_zarr(str(path)), dims=("image", "channel"), name="features")


def whole(path: Path) -> NDArray[np.float32]:
    """Return the array in memory; reading it counts for the peers, as they cannot do without."""
    import zarr

    return np.asarray(zarr.open_array(path, mode="r")[:])


def ours(path: Path, analysis: str, parameters: dict[str, Any]) -> Any:
    """Time dneuro on threads."""
    import dneuro as dn

    x = lazy(path)
    return timed(lambda: _numbers(getattr(dn, analysis)(x, **parameters)))


def _numbers(result: Any) -> NDArray[np.float64]:
    for name in ("singular_value", "pearson", "top_value", "variance"):
        if name in result:
            return np.asarray(result[name].values, dtype=np.float64)
    raise ValueError(f"nothing to compare in {list(result)}")


def peer_svd(path: Path) -> Any:
    """Time scikit-learn's randomized SVD."""
    from sklearn.utils.extmath import randomized_svd

    def run() -> Any:
        x = whole(path)
        x -= x.mean(axis=1, keepdims=True)
        x /= x.std(axis=1, keepdims=True)
        return np.asarray(randomized_svd(x, RANK, random_state=0)[1], dtype=np.float64)

    return timed(run)


def peer_similarity(path: Path) -> Any:
    """Time NumPy's correlation in float64."""
    return timed(lambda: np.corrcoef(whole(path), rowvar=False, dtype=np.float64))


def peer_top(path: Path) -> Any:
    """Time NumPy's partition, then a sort of what is left."""

    def run() -> Any:
        x = whole(path)
        top = np.take_along_axis(x, np.argpartition(-x, K, axis=0)[:K], axis=0)
        return np.sort(top, axis=0)[::-1].T.astype(np.float64)

    return timed(run)


def peer_moments(path: Path) -> Any:
    """Time NumPy's variance in float64."""
    return timed(lambda: whole(path).var(axis=0, dtype=np.float64))


CASES: list[tuple[str, str, dict[str, Any], str, Any]] = [
    ("moments", "moments", {}, "NumPy var, float64", peer_moments),
    (f"top {K} images", "top_images", {"k": K}, "NumPy argpartition", peer_top),
    (f"SVD rank {RANK}", "svd", {"rank": RANK}, "scikit-learn randomized_svd", peer_svd),
    ("Pearson", "similarity", {"metric": "pearson"}, "NumPy corrcoef, float64", peer_similarity),
]


def rows(folder: Path, images: int, neurons: int) -> list[list[str]]:
    """Measure every case; return the rows of the table."""
    path = folder / "array.zarr"
    make(path, images, neurons)
    found = []
    for name, analysis, parameters, peer, run in CASES:
        mine = measure(ours, path, analysis, parameters)
        other = measure(run, path)
        error = np.nanmax(np.abs(mine.value - other.value)) / max(np.nanmax(np.abs(other.value)), 1e-300)
        found.append([
            name, f"{mine.seconds:.2f}", f"{mine.peak / 2**20:.0f}", peer, f"{other.seconds:.2f}",
            f"{other.peak / 2**20:.0f}", f"{mine.seconds / other.seconds:.2f}", f"{error:.0e}",
        ])  # fmt: skip
    return found
