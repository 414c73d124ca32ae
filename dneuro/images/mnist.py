"""MNIST as it is published: four files in the IDX format, zipped or not."""

from __future__ import annotations

import gzip
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError
from dneuro.images.decode import Picture
from dneuro.images.local import is_folder
from dneuro.images.manifest import Manifest
from dneuro.images.memory import NO_LIMIT, Share
from dneuro.images.rows import list_rows, read_row
from dneuro.spec.images import MnistImages

FOLDERS = ("", "raw", "MNIST/raw")
"""Where the files may lie below the root; the last is how torchvision keeps them."""

_PREFIX = {"train": "train", "test": "t10k"}


class MnistSource:
    """Handwritten digits, 28 × 28 pixels, grey, white on black.

    Cost: the pictures of a split (47 or 7.8 MB) stay in memory, once per process, until another one is opened.
    """

    is_near = True

    def __init__(self, spec: MnistImages, manifest: Manifest | None = None) -> None:
        self._where = f"{spec.root}: {spec.split}"
        self._pictures, labels = _read(spec)
        digits = tuple("0123456789")
        self.held_bytes = self._pictures.nbytes
        self.manifest = list_rows(spec, self._pictures, labels, digits) if manifest is None else manifest

    def fetch(self, index: int) -> None:
        """Do nothing: what is near enough; see `ImageSource.fetch`."""

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        """Return picture and CRC-32 of its pixels; see `ImageSource.read`."""
        row = int(self.manifest.indices[index])
        return read_row(self._pictures, row, self.manifest.identity[index], share, f"{self._where} image {row}")

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        """Return the same; see `ImageSource.load`."""
        return self.read(index, share)


def _read(spec: MnistImages) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    root = Path(spec.root)
    if not is_folder(root):
        raise ImageSourceError(f"{root} is a file; source: mnist needs the folder of its four files")
    prefix = _PREFIX[spec.split]
    images, labels = _find(root, f"{prefix}-images", 3), _find(root, f"{prefix}-labels", 1)
    pictures, classes = (_stamped_idx(path) for path in (images, labels))
    if len(pictures) != len(classes):
        raise ImageSourceError(f"{images} has {len(pictures):,} images, {labels.name} has {len(classes):,} labels")
    if pictures.ndim != 3 or classes.ndim != 1 or pictures.size == 0 or int(classes.max()) > 9:
        raise ImageSourceError(
            f"{images} and {labels.name} are not MNIST's: images of shape {pictures.shape}, "
            f"labels up to {int(classes.max(initial=0))}",
            hint="other images: source: array with an .npz file",
        )
    return pictures, classes


def _find(root: Path, stem: str, dims: int) -> Path:
    """Return the path of a file; unpacked before packed."""
    names = [f"{stem}{dot}idx{dims}-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    for folder in FOLDERS:
        for name in names:
            if (root / folder / name).is_file():
                return root / folder / name
    raise ImageSourceError(
        f"{root} has no {names[0]} nor {names[2]}, here or in {FOLDERS[2]}",
        hint="MNIST is four files: {train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz",
    )


def _stamped_idx(path: Path) -> NDArray[np.uint8]:
    status = path.stat()
    return _read_idx(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read_idx(path: Path, mtime_ns: int, size: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file: a magic number, the lengths of its dims (big-endian), the bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ImageSourceError(f"{path} is damaged: {error}", hint="fetch it again") from error
    dims = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or dims not in (1, 3) or len(data) < 4 + 4 * dims:
        raise ImageSourceError(f"{path} is no IDX file of bytes; it begins {data[:8]!r}", hint="fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", dims, 4))
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dims)
    if min(shape) < 0 or len(body) != np.prod(shape, dtype=object):
        raise ImageSourceError(
            f"{path} is damaged: {len(body):,} bytes follow a header that says {' × '.join(map(str, shape))}",
            hint="fetch it again",
        )
    return body.reshape(shape)
