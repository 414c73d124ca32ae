"""Where a long computation stands, in one file of arrays that says what it belongs to; whole, or as it was before."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ArrayError, StoreError
from dneuro.store.files import Location, disk_error, locate, write_atomically
from dneuro.store.remote import RemotePath

A_FILE = "checkpoint='state.npz', a file in a folder that is there and can be written to"
IDENTITY = "identity"
"""Array that says what a state was made with."""


def place_of_state(checkpoint: object) -> Location:
    """Return the file that a checkpoint is kept in; ``~`` is the home folder.

    Raises
    ------
    ArrayError
        If it is no path.
    """
    if not isinstance(checkpoint, str | Path | RemotePath) or str(checkpoint) in ("", "."):
        raise ArrayError(f"checkpoint={checkpoint!r} is no file", hint="checkpoint='state.npz'")
    place = locate(checkpoint)
    return place.expanduser() if isinstance(place, Path) else place


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
        raise StoreError(f"checkpoint={str(path)!r} cannot be read: {error}", hint=A_FILE) from error
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
        raise disk_error(error, path) or StoreError(
            f"checkpoint={str(path)!r} cannot be written: {error.strerror or error}", hint=A_FILE
        ) from error
