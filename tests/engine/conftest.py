from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr


class Counted:
    """An array that counts how often each part of it is read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.reads: Counter[tuple[tuple[int, int], ...]] = Counter()
        self._lock = threading.Lock()

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        place = tuple(some.indices(length)[:2] for some, length in zip(where, self.shape, strict=True))
        if all(start < stop for start, stop in place):  # dask asks for nothing, to see the type
            with self._lock:
                self.reads[place] += 1
        return self.values[where]


@pytest.fixture
def counted() -> Any:
    """Return a function that makes a DataArray of values, and the `Counter` of the reads of its chunks."""

    def make(values: np.ndarray, chunks: Any, dims: tuple[str, ...] = ("image", "channel", "y", "x")) -> Any:
        array = Counted(values)
        lazy = da.from_array(array, chunks=chunks, name=False, fancy=False)
        return xr.DataArray(lazy, dims=dims[: values.ndim]), array.reads

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A client of two worker processes with little memory."""
    import dask
    from distributed import Client, LocalCluster

    quiet = {"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False}
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit="400MiB",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as running,
        Client(running) as client,
    ):
        yield client
