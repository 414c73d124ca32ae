"""Small files that are either whole or absent."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dneuro.errors import StoreError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, also after a crash.

    Temporary file in the same folder, fsync, rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Return the JSON in `path`, or None if there is none or it is not whole."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def disk_error(error: BaseException, store: Path) -> StoreError | None:
    """Return what an error of the file system means for a store; None if it is an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"the disk under {store} is full; everything done so far is kept",
            hint="make room and run the same command again: only what is unfinished is redone",
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(f"{store} cannot be written: {error}", hint="another path as store:")
    return None


def sweep(store: Path, units: Path) -> int:
    """Remove what a killed writer left half done in a store, in its markers and beside it; return how many."""
    beside = store.parent.glob(f".{glob.escape(store.name)}.*.partial")
    stray = [*store.rglob("*.partial"), *units.rglob("*.partial"), *beside]
    for path in stray:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(stray)
