"""Writing a unit's chunks and proving that they arrived."""

from __future__ import annotations

import itertools
import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dneuro.errors import StoreError
from dneuro.store.files import Location, opened_by_zarr
from dneuro.store.layout import ArrayPlan


def _open(store: Location, path: str) -> Any:
    """Open an array for writing; on a disk only if its metadata are others than a moment ago."""
    if not isinstance(store, Path):
        return _writable(store, path)
    about = (store / path / "zarr.json").stat()
    return _opened(store, path, (about.st_ino, about.st_mtime_ns))


@lru_cache(maxsize=256)
def _opened(store: Path, path: str, version: tuple[int, int]) -> Any:
    return _writable(store, path)


def _writable(store: Location, path: str) -> Any:
    """Open an array whose chunks are written whatever they hold.

    Zarr would leave out a chunk that is as it was created. To find that out it compares all of each, which takes longer
    than compressing it; and one that is lost could not be told from one that is left out.
    """
    return zarr.open_array(opened_by_zarr(store), path=path, mode="r+").with_config({"write_empty_chunks": True})


class RowWriter:
    """Collects the rows of one array within one unit and writes them chunk row by chunk row.

    Parameters
    ----------
    store : Path or RemotePath
        The store.
    plan : ArrayPlan
        The array.
    start, stop : int
        Images of the unit; `start` lies on a chunk border.

    Notes
    -----
    Each chunk row is read back after it was written. `checksum` is the CRC-32 over the whole unit's rows.
    """

    def __init__(self, store: Location, plan: ArrayPlan, start: int, stop: int) -> None:
        self._array = _open(store, plan.path)
        self._store, self._plan = store, plan
        self._first, self._next, self._stop = start, start, stop
        self._buffer = np.empty((min(plan.chunks[0], stop - start), *plan.shape[1:]), dtype=plan.dtype)
        self._filled = 0
        self.checksum = 0

    def add(self, rows: NDArray[Any]) -> None:
        """Take the next rows (images, …) of the unit."""
        while len(rows):
            count = min(len(rows), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rows[:count]
            self._filled += count
            rows = rows[count:]
            if self._filled == min(len(self._buffer), self._stop - self._next):
                self._flush()

    def finish(self) -> int:
        """Return the checksum, once all rows of the unit have been written."""
        if self._next != self._stop:
            raise StoreError(f"{self._plan.path}: {self._stop - self._next} rows of the unit are missing")
        return self.checksum

    def files(self) -> list[Path]:
        """Return the chunks that were written; none in an object store, which keeps what it has taken."""
        if not isinstance(self._store, Path):
            return []
        shape, chunks = self._array.shape, self._array.chunks
        rows = range(self._first // chunks[0], math.ceil(self._next / chunks[0]))
        rest = (range(math.ceil(length / chunk)) for length, chunk in zip(shape[1:], chunks[1:], strict=True))
        name = self._array.metadata.encode_chunk_key
        return [self._store / self._plan.path / name(place) for place in itertools.product(rows, *rest)]

    def _flush(self) -> None:
        part = self._buffer[: self._filled]
        region = slice(self._next, self._next + self._filled)
        self._array[region] = part
        back = zlib.crc32(np.ascontiguousarray(self._array[region]).data, self.checksum)
        self.checksum = zlib.crc32(part.data, self.checksum)
        if back != self.checksum:
            raise StoreError(
                f"{self._plan.path}, images {region.start} to {region.stop - 1}: what was read back is not what was "
                "written",
                hint="check the disk or file system under the store",
            )
        self._next += self._filled
        self._filled = 0
