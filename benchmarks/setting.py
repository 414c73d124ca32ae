"""The array that all candidates get, in the form that each wants it, and the workers that some of them run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock


@dataclass(frozen=True)
class Setting:
    """What is measured on.

    Parameters
    ----------
    path : Path
        A Zarr array (images, neurons) of float32, chunked and coded as dneuro's stores are.
    images, neurons, rank : int
        Sizes.
    workers, memory : int
        Processes of the cluster, one thread each, and bytes of each.
    device : str
        What the group `devices` computes on.
    """

    path: Path
    images: int
    neurons: int
    rank: int
    workers: int
    memory: int
    device: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return 4 * self.images * self.neurons

    def make(self) -> None:
        """Write a sparse, ReLU-like array with a falling spectrum, half of it zeros; leave it if it is there."""
        import zarr

        from dneuro.spec.steps import DEFAULT_CODEC
        from dneuro.store.codecs import CODECS
        from dneuro.store.layout import chunks, images_per_unit

        if self.path.exists():
            return
        rng = np.random.default_rng(0)
        loadings = (rng.standard_normal((64, self.neurons)) / np.arange(1, 65)[:, None] ** 0.7).astype("f4")
        shape = chunks((self.neurons,), 4, images_per_unit(self.images))
        codec = CODECS[DEFAULT_CODEC]
        partial = self.path.with_name(self.path.name + ".partial")
        array = zarr.create_array(
            partial, shape=(self.images, self.neurons), chunks=shape, dtype="f4", compressors=codec, overwrite=True
        )
        for start in range(0, self.images, shape[0]):
            rows = min(shape[0], self.images - start)
            values = rng.standard_normal((rows, 64), "f4") @ loadings
            values += 0.5 * rng.standard_normal((rows, self.neurons), "f4")
            array[start : start + rows] = np.maximum(values - 0.3, 0)
        partial.rename(self.path)

    def dask(self) -> Any:
        """Return the array as dask sees it; read as `whole` reads it, not by way of fsspec, as a path would be."""
        import dask.array as da
        import zarr

        return da.from_zarr(zarr.open_array(self.path, mode="r"))

    def lazy(self) -> Any:
        """Return the array as dneuro sees it."""
        import xarray as xr

        return xr.DataArray(self.dask(), dims=("image", "channel"), name="features")

    def whole(self, clock: Clock) -> NDArray[np.float32]:
        """Return the array in memory. Reading counts, for the candidate cannot do without; it is shown beside."""
        import zarr

        with clock.read():
            return np.asarray(zarr.open_array(self.path, mode="r")[:])

    @contextlib.contextmanager
    def cluster(self) -> Iterator[Any]:
        """Start a LocalCluster as dask makes it, but for the number of workers and their memory."""
        import dask
        from distributed import Client, LocalCluster

        with (
            dask.config.set({"distributed.comm.timeouts.connect": "60s"}),
            LocalCluster(
                n_workers=self.workers, threads_per_worker=1, memory_limit=self.memory,
                host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50,
            ) as running,
            Client(running) as client,
        ):  # fmt: skip
            client.wait_for_workers(self.workers)
            client.run(_import)
            yield client


def _import() -> None:
    """Load on a worker what its tasks need: the time of imports is nobody's."""
    import dask.array  # noqa: F401
    import zarr  # noqa: F401

    import dneuro.analysis  # noqa: F401
