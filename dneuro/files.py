"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ending of what is being written; whoever finds one after a crash may remove it."""


AT_ONCE = 8
"""Files that are waited for at the same time until they are on the disk."""

FEW = 4
"""So few are waited for one after the other: threads would take longer to start."""


def partial(path: Path) -> Path:
    """Return a name beside `path` under which it can be made before it takes its place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def to_disk(paths: Iterable[Path]) -> None:
    """Have files that were written on the disk when this returns; until then they may be in memory alone.

    Of a machine that loses its power, nothing else is sure to be there. The name of a file, also one that it was just
    given, comes with it on the file systems of Linux. What is not there yet is waited for; many at a time, for a file
    system takes those together in little more than the time of one.
    """
    wanted = list(paths)
    if len(wanted) <= FEW:
        for path in wanted:
            _to_disk(path)
    else:
        with ThreadPoolExecutor(min(len(wanted), AT_ONCE), thread_name_prefix="dneuro-disk") as threads:
            list(threads.map(_to_disk, wanted))


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, instead_of: Path | None = None) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, also after a crash.

    Temporary file in the same folder, fsync, rename. The folder is made where it is missing.

    Parameters
    ----------
    path : Path
        The file.
    write : callable
        Writes the content.
    instead_of : Path, optional
        A file of the same folder that is not wanted any more, if there is one: it becomes the new one, and is gone if
        writing fails. Of what is removed ext4 takes no number again for a minute, and looks at all of them for each
        file that is made: among thousands that took a fifth of the time of small units.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    try:
        if instead_of is not None:
            with contextlib.suppress(FileNotFoundError):
                instead_of.rename(temporary)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
