"""Images in one array: in an ``.npz`` file, or in a Zarr group."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError
from dneuro.images.containers import Container, get_array, open_container
from dneuro.images.decode import Picture
from dneuro.images.labels import MAX_CLASSES
from dneuro.images.manifest import Manifest, check_labels
from dneuro.images.memory import NO_LIMIT, Share
from dneuro.images.rows import read_row
from dneuro.images.sampling import draw
from dneuro.spec.images import ArrayImages


class ArraySource:
    """Rows of an array of uint8: (n, height, width), (n, height, width, 1) or (n, height, width, 3).

    Cost: listing reads the array (of a sample: its chunks) once, for the CRC-32 of each image. An ``.npz``
    file is compressed as a whole, so its images stay in memory, once per process, until another file is
    opened; of a Zarr array only the chunk that was read last is kept.
    """

    is_near = True

    def __init__(self, spec: ArrayImages, manifest: Manifest | None = None) -> None:
        container = open_container(Path(spec.root))
        self._where = f"{spec.root}: array {spec.images!r}"
        array = get_array(container, spec.images, spec.root)
        _check_images(array, self._where)
        self._rows = _Rows(array)
        self.held_bytes = self._rows.held_bytes
        self.manifest = self._list(spec, container) if manifest is None else manifest
        if len(self.manifest) and (last := int(self.manifest.indices.max())) >= len(self._rows):
            raise ImageSourceError(
                f"{self._where} has {len(self._rows):,} images, but the manifest lists one with index {last:,}"
            )

    def fetch(self, index: int) -> None:
        """Do nothing: what is near enough; see `ImageSource.fetch`."""

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        """Return picture and CRC-32 of its row; see `ImageSource.read`."""
        row = int(self.manifest.indices[index])
        return read_row(self._rows, row, self.manifest.identity[index], share, f"{self._where}, image {row}")

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        """Return the same; see `ImageSource.load`."""
        return self.read(index, share)

    def _list(self, spec: ArrayImages, container: Container) -> Manifest:
        count = len(self._rows)
        labels, class_names = _labels(spec, container, count)
        indices = draw(spec, count, self._where)
        width = max(4, len(str(count - 1)))
        return Manifest(
            names=np.array([f"image-{i:0{width}d}" for i in indices], object),
            labels=labels[indices],
            class_names=class_names,
            identity=np.array([self._identity(i) for i in indices.tolist()], object),
            indices=indices,
            source=spec.model_dump(mode="json"),
        )

    def _identity(self, row: int) -> str:
        try:
            return f"{zlib.crc32(self._rows[row].data):08x}"
        except MemoryError:
            raise
        except Exception as error:
            raise ImageSourceError(f"{self._where}: image {row} cannot be read: {error}") from error


class _Rows:
    """Rows of a NumPy or Zarr array, read by whole chunks, of which the last one is kept."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._step = int(array.chunks[0]) if hasattr(array, "chunks") else len(self)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.held_bytes = min(self._step, len(self)) * math.prod(self.shape[1:])
        self.reading_bytes = 2 * self.held_bytes if hasattr(array, "chunks") else 0  # another chunk, and packed
        self._last: tuple[int, NDArray[np.uint8]] = (-1, np.empty(0, np.uint8))

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        start = row - row % self._step
        kept, block = self._last  # taken and set as one, so that threads can share it
        if kept != start:
            block = np.asarray(self._array[start : start + self._step])
            self._last = (start, block)
        picture = block[row - start]
        return np.array(picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture, order="C")


def _check_images(array: Any, where: str) -> None:
    found = f"{where} is {array.dtype} of shape {tuple(array.shape)}"
    if array.dtype != np.uint8:
        raise ImageSourceError(
            f"{found}; pictures are uint8, from 0 (black) to 255",
            hint="if its values run from 0 to 1, store (255 * images).round().astype('uint8')",
        )
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        raise ImageSourceError(f"{found}; colours come last", hint="store numpy.moveaxis(images, 1, -1)")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise ImageSourceError(
            f"{found}; it must be (n, height, width), (n, height, width, 1) or (n, height, width, 3)"
        )
    if 0 in array.shape:
        raise ImageSourceError(f"{found}: there is not one pixel in it")


def _labels(
    spec: ArrayImages, container: Container, count: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    names = _class_names(spec, container)
    if spec.labels is None and "labels" not in container:
        return np.full(count, -1, np.int64), names
    key = spec.labels or "labels"
    labels = np.asarray(get_array(container, key, spec.root)[...])
    where = f"{spec.root}: array {key!r}"
    if labels.shape != (count,):
        raise ImageSourceError(
            f"{where} has shape {labels.shape}, but there are {count:,} images; one label per image is needed"
            if labels.ndim != 1
            else f"{where} has {len(labels):,} labels, but there are {count:,} images"
        )
    if labels.dtype.kind not in "iu":
        raise ImageSourceError(
            f"{where} is {labels.dtype}; labels are integers, indices into the class names",
            hint="names, indices = numpy.unique(labels, return_inverse=True) makes indices of names",
        )
    check_labels(labels, names, where)
    highest = int(labels.max())
    if highest >= MAX_CLASSES:
        raise ImageSourceError(
            f"{where} goes up to {highest:,}; labels number the classes 0, 1, …",
            hint="_, indices = numpy.unique(labels, return_inverse=True) numbers them",
        )
    return labels.astype(np.int64), names or tuple(str(label) for label in range(highest + 1))


def _class_names(spec: ArrayImages, container: Container) -> tuple[str, ...]:
    if spec.class_names is not None:
        return tuple(spec.class_names)
    if "class_names" not in container:
        return ()
    found = np.asarray(get_array(container, "class_names", spec.root)[...])
    if found.ndim != 1:
        raise ImageSourceError(f"{spec.root}: array 'class_names' has shape {found.shape}, not (classes,)")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in found.tolist())
