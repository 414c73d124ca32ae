"""Whether the images are still those that a store was made of."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator

import numpy as np
import zarr
from numpy.typing import NDArray

from dneuro.errors import FingerprintError
from dneuro.extract.pipeline import Batch, source_of
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.store.files import opened_by_zarr


class SameImages:
    """Holds what an earlier run has read of a unit's images against what is read now.

    A list of images knows their names and sizes; a file that was replaced by another of the same size shows only in
    its content. Layers that are added later must be of the same images as those that are there, and so must the
    entries per image that are made again.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    number : int
        The unit's.
    parts : collection of str
        What is extracted of it now. Markers that are withdrawn for it must be there still.

    Notes
    -----
    The store has a checksum of each image, and the markers of layers one of all these checksums: it says of which
    images a layer is, and whether the checksums in the store are as they were written. Where they are not, some image
    that is another is noticed, but not which; of a layer that has no such marker, as in older stores, nothing is known
    once the entries per image are not done any more.
    """

    def __init__(self, work: ExtractWork, number: int, parts: Collection[str]) -> None:
        self._work = work
        self._start, self._stop = work.plan.span(number)
        self._wanted = set(_told(work, number, parts))
        stored = _stored(work, self._start, self._stop) if self._wanted or IMAGES not in parts else None
        as_written = stored is not None and (not self._wanted or zlib.crc32(stored.data) in self._wanted)
        self._before = stored if as_written else None
        self.seen = 0
        """CRC-32 over the checksums of all images so far."""

    def check(self, batch: Batch) -> None:
        """Refuse images that are not those of the earlier run.

        Raises
        ------
        FingerprintError
            With the first of them.
        """
        now = np.ascontiguousarray(batch.pictures.checksums)
        self.seen = zlib.crc32(now.data, self.seen)
        if self._before is None:
            return
        before = self._before[batch.numbers - self._start]
        if np.array_equal(before, now):
            return
        first = int(np.flatnonzero(before != now)[0])
        why = "has another content than"
        if not before[first]:  # 0 stands for what could not be read
            why = "can be read, which it could not"
        elif not batch.readable[first]:
            why = "cannot be read any more, as it could"
        name = source_of(self._work).manifest.names[batch.numbers[first]]
        told = dict(batch.pictures.reasons).get(str(name))
        self._refuse(f"image {batch.numbers[first]}, {name}, {why}", f" ({told})" if told else "")

    def settle(self) -> None:
        """Refuse the images, all of which have been checked, where it is only known that some of them are others.

        Raises
        ------
        FingerprintError
            With the unit.
        """
        if self._wanted and self.seen not in self._wanted:
            why = "which of them cannot be told, for the checksums in the store are not those that were written"
            self._refuse(f"of images {self._start} to {self._stop - 1} some have another content than", f" ({why})")

    def _refuse(self, what: str, more: str) -> None:
        raise FingerprintError(
            f"{what} when {self._work.store} was made; nothing is added to a store of other images{more}",
            hint="bring the images back as they were, or give the job another store:",
        )


def _told(work: ExtractWork, number: int, parts: Collection[str]) -> Iterator[int]:
    """Yield what markers have as the CRC-32 over the checksums of a unit's images: of all layers of the store."""
    if IMAGES not in parts:
        marker = work.unit(IMAGES, number).read() or {}
        told = [marker.get("checksums", {}).get("checksum")]
    else:
        told = [marker.get("images_crc32") for marker in work.markers_of_layers(number)]
    yield from (crc for crc in told if crc is not None)


def _stored(work: ExtractWork, start: int, stop: int) -> NDArray[np.uint32] | None:
    """Return the checksums that the store has of images; None if they cannot be read."""
    try:
        return np.ascontiguousarray(zarr.open_array(opened_by_zarr(work.store), path="checksum", mode="r")[start:stop])
    except OSError:
        raise
    except Exception:  # damaged: each codec has errors of its own
        return None
