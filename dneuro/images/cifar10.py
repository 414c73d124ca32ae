"""CIFAR-10 as it is published: pickles or records, in the archive or unpacked."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError
from dneuro.images.batches import read_pickled
from dneuro.images.decode import Picture
from dneuro.images.local import is_folder
from dneuro.images.manifest import Manifest
from dneuro.images.memory import NO_LIMIT, Share
from dneuro.images.rows import list_rows, read_row
from dneuro.spec.images import Cifar10Images

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""As ``batches.meta`` names them."""

ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_MAX_BATCH = 256 * 1024**2  # an official one has 31 MB


class Cifar10Source:
    """Colour pictures of 32 × 32 pixels.

    Cost: the pictures of a split (154 or 31 MB) stay in memory, once per process, until another one is opened.
    The archive is unpacked in memory only.
    """

    is_near = True

    def __init__(self, spec: Cifar10Images, manifest: Manifest | None = None) -> None:
        self._where = f"{spec.root}: {spec.split}"
        self._pictures, labels = _open(Path(spec.root), spec.split)
        self.held_bytes = self._pictures.nbytes
        self.manifest = list_rows(spec, self._pictures, labels, CLASSES) if manifest is None else manifest

    def fetch(self, index: int) -> None:
        """Do nothing: what is near enough; see `ImageSource.fetch`."""

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        """Return picture and CRC-32 of its pixels, row by row with colours last; see `ImageSource.read`."""
        row = int(self.manifest.indices[index])
        return read_row(self._pictures, row, self.manifest.identity[index], share, f"{self._where} image {row}")

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        """Return the same; see `ImageSource.load`."""
        return self.read(index, share)


def _open(root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    place = _place(root, split)
    status = place.stat()
    return _read(place, split, status.st_mtime_ns, status.st_size)


def _place(root: Path, split: str) -> Path:
    """Return the archive, or the folder that holds the batches."""
    if not is_folder(root):
        return root
    first = _BATCHES[split][0]
    for folder in FOLDERS:
        if any((root / folder / (first + end)).is_file() for end in ("", ".bin")):
            return root / folder
    for archive in ARCHIVES:
        if (root / archive).is_file():
            return root / archive
    raise ImageSourceError(
        f"{root} has no {first} nor {first}.bin, here or in {FOLDERS[1]}", hint=f"set root: to {' or '.join(ARCHIVES)}"
    )


@lru_cache(maxsize=1)
def _read(place: Path, split: str, mtime_ns: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pictures (n, 32, 32, 3) and labels (n,) of a split."""
    wanted = _BATCHES[split]
    found: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    for name, content in _contents(place, {name + end for name in wanted for end in ("", ".bin")}):
        where = f"{place}: {name}"
        pixels, labels = (_records if name.endswith(".bin") else read_pickled)(content, where)
        if pixels.shape != (len(labels), _PIXELS) or len(labels) == 0 or int(labels.max()) >= len(CLASSES):
            raise ImageSourceError(
                f"{where} is not CIFAR-10's: pixels of shape {pixels.shape}, {len(labels):,} labels up to "
                f"{int(labels.max(initial=0))}"
            )
        found.setdefault(name.removesuffix(".bin"), (pixels, labels))
    absent = [name for name in wanted if name not in found]
    if absent:
        raise ImageSourceError(
            f"{place} has no {', '.join(absent)}, so it is not the whole of CIFAR-10's {split} images",
            hint="fetch it again",
        )
    pictures = np.concatenate([found[name][0] for name in wanted]).reshape(-1, *_SHAPE)
    return np.ascontiguousarray(np.moveaxis(pictures, 1, -1)), np.concatenate([found[name][1] for name in wanted])


def _contents(place: Path, names: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of these names, of an archive or of a folder."""
    if place.is_dir():
        for name in sorted(names):
            if (place / name).is_file():
                yield name, (place / name).read_bytes()
        return
    try:
        with tarfile.open(place, "r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in names or not member.isreg():
                    continue
                if member.size > _MAX_BATCH:
                    raise ImageSourceError(f"{place}: {name} has {member.size:,} bytes; the limit is {_MAX_BATCH:,}")
                file = archive.extractfile(member)
                assert file is not None
                yield name, file.read()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ImageSourceError(
            f"{place} is no archive, or a damaged one: {error}", hint=f"set root: to {' or '.join(ARCHIVES)}"
        ) from error


def _records(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels and labels of the binary version: records of one byte and 3,072."""
    if len(content) % (1 + _PIXELS):
        raise ImageSourceError(
            f"{where} has {len(content):,} bytes, no multiple of {1 + _PIXELS:,}", hint="fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]
