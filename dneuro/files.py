"""Files that are either whole or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ending of what is being written; whoever finds one after a crash may remove it."""


def partial(path: Path) -> Path:
    """Return a name beside `path` under which it can be made before it takes its place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, also after a crash.

    Temporary file in the same folder, fsync, rename. The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
