"""A bare read: what no pass over the array can beat with the same number of hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import Clock
from benchmarks.question import Candidate
from benchmarks.setting import Setting


def read(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Read and decode every chunk, and forget it: on two threads, or on the workers."""
    import concurrent.futures

    import zarr
    from distributed import get_client

    chunks = _chunks(setting)
    try:
        client = get_client()
    except ValueError:
        array = zarr.open_array(setting.path, mode="r")
        pool = concurrent.futures.ThreadPoolExecutor(setting.workers)
        return lambda: sum(pool.map(lambda where: len(np.asarray(array[where])), chunks))
    # As many chunks per task as a pass of dneuro takes: the time is that of reading, not of a scheduler.
    shares = [chunks[i::64] for i in range(64)]
    return lambda: sum(client.gather(client.map(_read_some, [str(setting.path)] * 64, shares, pure=False)))


def _chunks(setting: Setting) -> list[tuple[slice, slice]]:
    import zarr

    height, width = zarr.open_array(setting.path, mode="r").chunks
    return [
        (slice(row, row + height), slice(column, column + width))
        for row in range(0, setting.images, height)
        for column in range(0, setting.neurons, width)
    ]


def _read_some(path: str, chunks: list[tuple[slice, slice]]) -> int:
    import zarr

    array = zarr.open_array(path, mode="r")
    return sum(len(np.asarray(array[where])) for where in chunks)


BARE_READ = (
    Candidate("a bare read of all chunks", read, "threads"),
    Candidate("a bare read of all chunks", read, "cluster"),
)
