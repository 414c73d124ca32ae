"""Where a long computation stands, in one file of arrays that says what it belongs to; whole, or as it was before."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro import files
from dneuro.errors import DiskFullError, StoreError
from dneuro.quantities import format_bytes
from dneuro.store.files import Location, free_bytes, place_named, write_atomically
from dneuro.store.remote import RemotePath, denied

A_FILE = "checkpoint='state.npz', a file in a folder that can be written to"
IDENTITY = "identity"
"""Array that says what a state was made with."""


def place_of_state(checkpoint: object) -> Location:
    """Return the file that a checkpoint is kept in; ``~`` is the home folder.

    Raises
    ------
    ArrayError
        If it is no path.
    """
    return place_named("checkpoint", checkpoint, kind="file", example="state.npz")


def check_state(path: Location, size: int) -> None:
    """Refuse a file that a state of about so many bytes cannot be written to, before there is one to lose.

    Raises
    ------
    StoreError
        If its folder cannot be made or written to, there is no such bucket, or the disk has too little room. Where a
        state is there already, it may be all that is wanted.
    """
    if isinstance(path, RemotePath):
        path.check_bucket()
        return
    beside = files.partial(path)
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
        free = free_bytes(path)
    except OSError as error:
        raise _refused(path, error, "written") from error
    if free is not None and free < size:
        raise StoreError(
            f"checkpoint={str(path)!r} takes {format_bytes(size)}, its disk has {format_bytes(free)} free",
            hint="make room, checkpoint=… on another disk, or a lower rank",
        )


def read_state(path: Location, identity: str) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of a state; None if there is no file, nothing if it is not whole or belongs to something else.

    Raises
    ------
    StoreError
        If there is something that cannot be read.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(path, error, "read") from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        return {}
    return found if str(found.pop(IDENTITY, "")) == identity else {}


def write_state(path: Location, identity: str, arrays: Mapping[str, Any]) -> None:
    """Keep a state; the one before stays until this one is whole.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    held: dict[str, Any] = {**arrays, IDENTITY: np.asarray(identity)}
    try:
        write_atomically(path, lambda file: np.savez(file, **held))
    except OSError as error:
        raise _refused(path, error, "written") from error


def _refused(path: Location, error: OSError, what: str) -> StoreError:
    """Return what it means that a state cannot be read or written, and the way out."""
    if isinstance(path, RemotePath) and isinstance(error, PermissionError):
        return denied(path, error)
    name = f"checkpoint={str(path)!r}"
    if error.errno == errno.EISDIR:
        return StoreError(f"{name} is a folder, a state is one file", hint=f"checkpoint={str(path / 'state.npz')!r}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"{name} cannot be written: the disk is full; the state before stays",
            hint="make room and call again, which goes on from there; or checkpoint=… on another disk",
        )
    said = error.strerror or error
    if isinstance(path, Path) and isinstance(error, NotADirectoryError | FileExistsError):
        said = f"{next(above for above in path.parents if above.exists())} is no folder"
    return StoreError(f"{name} cannot be {what}: {said}", hint=A_FILE)
