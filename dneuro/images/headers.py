"""What reading a source's pictures takes of memory, told by their headers: nothing is decoded."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dneuro.errors import UnreadableImageError
from dneuro.images.files import FileSource
from dneuro.images.manifest import Manifest
from dneuro.images.memory import LEAST, PictureMemory, Share
from dneuro.images.sources import ImageSource
from dneuro.quantities import MiB
from dneuro.spec.network import Preprocessing

LOOKED_AT = 64
"""Files that are looked at, drawn evenly from the list, and as many of the largest: a large picture is a large file."""

READ = 256 * MiB
"""Bytes of files that are read for their headers at most; a file of more than a quarter of it is left out."""

_THREADS = 8
"""Files that are read side by side: those of an object store wait for the network."""


@dataclass(frozen=True)
class PictureSizes:
    """What pictures take while they are read, decoded and resized.

    Parameters
    ----------
    usual : int
        Bytes of a picture that is larger than nine of ten.
    largest : int
        Bytes of the largest one that was looked at.
    looked_at : int
        Number of those; 0 where nothing is known.
    """

    usual: int = LEAST
    largest: int = LEAST
    looked_at: int = 0

    def of(self, readers: int) -> int:
        """Return what so many threads hold that read at the same time: the largest, and the others usual ones."""
        return self.largest + (readers - 1) * self.usual


def picture_sizes(source: ImageSource, preprocessing: Preprocessing) -> PictureSizes:
    """Return what reading the pictures of a source takes, told by the headers of some.

    Parameters
    ----------
    source : ImageSource
        The images. Rows of an array have one size, so one is looked at; of files `LOOKED_AT` from all over the list and
        as many of the largest.
    preprocessing : Preprocessing
        What becomes of a picture while it is read.

    Notes
    -----
    A picture that was not looked at may take more: see `dneuro.images.memory.PictureMemory` for what comes of it.

    **Cost**: reads these files, some 15 MB of photographs; decodes none.
    """
    if not isinstance(source, FileSource):
        found = [_needed(source, 0, preprocessing)]
    else:
        numbers = _some(source.manifest)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="dneuro-headers") as pool:
            found = list(pool.map(lambda number: _needed(source, number, preprocessing), numbers))
    known = sorted(filter(None, found))
    if not known:
        return PictureSizes()
    return PictureSizes(known[math.ceil(0.9 * len(known)) - 1], known[-1], len(known))


def _some(manifest: Manifest) -> list[int]:
    """Return which files to look at."""
    sizes = np.array([int(size) for size in manifest.identity], np.int64)
    evenly = np.linspace(0, len(sizes) - 1, min(LOOKED_AT, len(sizes))).astype(np.int64)
    largest = np.argsort(-sizes, kind="stable")
    largest = largest[sizes[largest] <= READ // 4][:LOOKED_AT]
    numbers = [int(number) for number in dict.fromkeys((*evenly, *largest)) if sizes[number] <= READ // 4]
    return [number for number, so_far in zip(numbers, np.cumsum(sizes[numbers]), strict=True) if so_far <= READ]


class _KnownError(Exception):
    """What a picture takes is known, so nobody need decode it."""


class _Told(Share):
    """Notes what a picture would take, and stops there."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__(PictureMemory(), preprocessing)

    @property
    def needed(self) -> int:
        return self._needed

    def picture(self, width: int, height: int, decoding: int, where: str) -> None:
        super().picture(width, height, decoding, where)
        raise _KnownError

    def row(self, width: int, height: int, reading: int, where: str) -> None:
        super().row(width, height, reading, where)
        raise _KnownError


def _needed(source: ImageSource, number: int, preprocessing: Preprocessing) -> int:
    """Return what reading an image takes; 0 if it cannot be read."""
    share = _Told(preprocessing)
    with share:
        try:
            source.read(number, share)
        except (UnreadableImageError, OSError):  # what comes of it shows when it is read for good
            return 0
        except _KnownError:
            pass
        return share.needed
