"""Named arrays in an ``.npz`` file or a Zarr group, opened alike."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError, suggest
from dneuro.images.paths import missing

Container = Mapping[str, Any]
"""Arrays (of NumPy or Zarr: both have `shape`, `dtype` and can be sliced) by name."""


def open_container(path: Path) -> Container:
    """Open an ``.npz`` file or a Zarr group; no array is read yet.

    Raises
    ------
    ImageSourceError
        If there is nothing at `path`, or something else.
    """
    try:
        path.stat()
    except OSError as error:
        raise missing(path, error) from error
    if path.is_dir():
        return _open_zarr(path)
    if not zipfile.is_zipfile(path):
        raise ImageSourceError(
            f"{path} is neither an .npz file nor a Zarr group",
            hint="numpy.savez(path, images=images, labels=labels) writes an .npz file",
        )
    return _Npz(path)


def get_array(container: Container, key: str, root: str) -> Any:
    """Return an array by name: a NumPy array, or a Zarr array that is not read yet.

    Raises
    ------
    ImageSourceError
        If there is no such array, or it cannot be read; lists the arrays there are.
    """
    if key not in container:
        raise ImageSourceError(f"{root} has no array {key!r}", hint=suggest(key, _array_names(container)))
    try:
        array = container[key]
    except MemoryError:
        raise
    except Exception as error:
        if "allow_pickle" in str(error):
            raise ImageSourceError(
                f"{root}: array {key!r} holds Python objects, which are refused: reading them could run code",
                hint="store numbers as uint8 or int64, text as str: array.astype(str)",
            ) from error
        raise ImageSourceError(f"{root}: array {key!r} cannot be read: {error}") from error
    if not hasattr(array, "dtype"):
        raise ImageSourceError(
            f"{root}: {key!r} is a group, not an array",
            hint=suggest(key, [f"{key}/{name}" for name in _array_names(array)]),
        )
    return array


def _array_names(container: Any) -> list[str]:
    return sorted(container.array_keys() if hasattr(container, "array_keys") else container)


def _open_zarr(path: Path) -> Container:
    import zarr  # half a second that the other sources need not wait

    try:
        return zarr.open_group(str(path), mode="r")  # type: ignore[return-value]  # it can all that is needed
    except zarr.errors.ContainsArrayError as error:
        raise ImageSourceError(
            f"{path} is a Zarr array, not a group", hint=f"set root: {path.parent} and images: {path.name}"
        ) from error
    except Exception as error:
        raise ImageSourceError(
            f"{path} is no Zarr group that can be opened: {error}",
            hint="image files in one folder per class are source: folder",
        ) from error


class _Npz(Container):
    """The arrays of an ``.npz`` file; those that were read stay in memory, for the whole process."""

    def __init__(self, path: Path) -> None:
        status = path.stat()
        self._path = path
        self._read = _arrays_read(str(path.resolve()), status.st_mtime_ns, status.st_size)
        with zipfile.ZipFile(path) as file:
            self._keys = [name.removesuffix(".npy") for name in file.namelist()]

    def __getitem__(self, key: str) -> NDArray[Any]:
        with _READING:
            if key not in self._read:
                with np.load(self._path, allow_pickle=False) as file:
                    self._read[key] = np.asarray(file[key])
            return self._read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)


_READING = threading.Lock()


@lru_cache(maxsize=1)
def _arrays_read(path: str, mtime_ns: int, size: int) -> dict[str, NDArray[Any]]:
    """Return the arrays read so far of one version of one file; of another one, they are forgotten."""
    return {}
