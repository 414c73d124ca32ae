"""Whether the images are still those that a store was made of."""

from __future__ import annotations

import numpy as np
import zarr

from dneuro.errors import FingerprintError
from dneuro.extract.pipeline import Batch, source_of
from dneuro.extract.work import ExtractWork
from dneuro.store.files import opened_by_zarr


class SameImages:
    """Holds what an earlier run has read of a unit's images against what is read now.

    A list of images knows their names and sizes; a file that was replaced by another of the same size shows only in
    its content. Layers that are added later must be of the same images as those that are there.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    start, stop : int
        Images of the unit; their checksums and status are in the store.
    """

    def __init__(self, work: ExtractWork, start: int, stop: int) -> None:
        store = opened_by_zarr(work.store)
        self._start = start
        self._checksums = np.asarray(zarr.open_array(store, path="checksum", mode="r")[start:stop])
        self._readable = np.asarray(zarr.open_array(store, path="status", mode="r")[start:stop]) != 1
        self._store, self._names = work.store, source_of(work).manifest.names

    def check(self, batch: Batch) -> None:
        """Refuse images that are not those of the earlier run.

        Raises
        ------
        FingerprintError
            With the first of them.
        """
        rows = batch.numbers - self._start
        before, now = self._readable[rows], batch.readable
        other = (before != now) | (before & now & (self._checksums[rows] != batch.pictures.checksums))
        if not other.any():
            return
        first = int(np.flatnonzero(other)[0])
        why = "has another content than"
        if before[first] != now[first]:
            why = "can be read, which it could not" if now[first] else "cannot be read any more, as it could"
        told = dict(batch.pictures.reasons).get(str(self._names[batch.numbers[first]]))
        raise FingerprintError(
            f"image {batch.numbers[first]}, {self._names[batch.numbers[first]]}, {why} when {self._store} was made; "
            "nothing is added to a store of other images" + (f" ({told})" if told else ""),
            hint="bring the images back as they were, or give the job another store:",
        )
