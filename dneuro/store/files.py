"""Small files that are either whole or absent, on a disk or in an object store."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import unquote

from dneuro import files
from dneuro.errors import ArrayError, DiskFullError, StoreError, UsageError
from dneuro.store.remote import RemotePath, denied, is_url, zarr_store

Location: TypeAlias = Path | RemotePath
"""Where a store lies, or something that belongs to it."""

OF_THIS_MACHINE = "file://"
"""Begins a URL that says no more than a path."""


def locate(where: str | Location) -> Location:
    """Return the place that a path or URL names; ``file:///…`` is a path.

    Raises
    ------
    UsageError
        If nothing can be called so.
    StoreError
        If a URL holds a password.
    """
    if isinstance(where, RemotePath):
        return where
    if not can_be_named(where):
        raise UsageError(f"{str(where)!r} cannot be the name of anything", hint="a path, or s3://bucket/name.zarr")
    if not isinstance(where, str) or not is_url(where):
        return Path(where)
    if not where.lower().startswith(OF_THIS_MACHINE):
        return RemotePath(where)
    host, _, path = where[len(OF_THIS_MACHINE) :].partition("/")
    if host not in ("", "localhost"):
        raise UsageError(f"{where} names the machine {host!r}; files are those of this one", hint=f"file:///{path}")
    return Path(f"/{unquote(path)}")


def can_be_named(where: object) -> bool:
    """Return whether a file can be called so: no null character, and nothing that has no bytes."""
    try:
        return b"\0" not in os.fsencode(str(where))
    except UnicodeEncodeError:
        return False


def place_named(argument: str, where: object, *, kind: str, example: str) -> Location:
    """Return the place that an argument names, ``~`` being the home folder.

    Parameters
    ----------
    argument, where : str, object
        The argument, and what was given.
    kind, example : str
        What it is not, where it is wrong, and what it can be.

    Raises
    ------
    ArrayError
        If it is no path or URL.
    StoreError
        If a URL holds a password.
    """
    if not isinstance(where, str | Path | RemotePath) or str(where) in ("", ".") or not can_be_named(where):
        raise ArrayError(f"{argument}={where!r} is no {kind}", hint=f"{argument}={example!r}")
    place = locate(where)
    try:
        return place.expanduser() if isinstance(place, Path) else place
    except RuntimeError as error:  # ~somebody
        raise ArrayError(f"{argument}={where!r}: {error}", hint=f"{argument}={example!r}") from None


def opened_by_zarr(where: str | Location) -> Any:
    """Return what Zarr and xarray open for a place."""
    place = locate(where)
    # Absolute, for arrays go to workers that may have started in another folder.
    return place.absolute() if isinstance(place, Path) else zarr_store(place)


def write_atomically(
    path: Location, write: Callable[[BinaryIO], object], *, instead_of: Location | None = None
) -> None:
    """Write a file so that at `path` there is the old content or the whole new one, also after a crash.

    A file of its folder that it is written `instead_of` is gone afterwards, on a disk also if writing fails.
    """
    if isinstance(path, Path):
        files.write_atomically(path, write, instead_of=instead_of if isinstance(instead_of, Path) else None)
        return
    content = io.BytesIO()
    write(content)
    path.write_bytes(content.getvalue())
    if instead_of is not None:
        instead_of.unlink(missing_ok=True)


@contextlib.contextmanager
def local_copy(where: str | None) -> Iterator[str | None]:
    """Give the path of a file that lies on this machine: itself, or a copy that is gone afterwards."""
    place = None if where is None else locate(where)
    if not isinstance(place, RemotePath):
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="dneuro-") as folder:
        copy = Path(folder) / place.name
        copy.write_bytes(place.read_bytes())
        yield str(copy)


def write_json(path: Location, value: Any, *, instead_of: Location | None = None) -> None:
    """Write `value` as JSON, atomically; see `write_atomically`."""
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()), instead_of=instead_of)


def read_json(path: Location) -> Any:
    """Return the JSON in `path`, or None if there is none or it is not whole."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def append(path: Location, line: str) -> str:
    """Add a line to a file that one writer has, and return all of it."""
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line + "\n")
        return path.read_text()
    try:
        before = path.read_text()
    except FileNotFoundError:
        before = ""
    path.write_bytes(f"{before}{line}\n".encode())
    return f"{before}{line}\n"


def claim(folder: Location) -> bool:
    """Make a folder, and return whether it was this call that made it: of several at once only one is told so."""
    if isinstance(folder, RemotePath):
        return (folder / "claimed").create(b"")
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def free_bytes(place: Location) -> int | None:
    """Return the bytes that the disk has free on which something lies or will lie; None of an object store.

    Raises
    ------
    OSError
        If nobody may look.
    """
    if isinstance(place, RemotePath):
        return None
    place = place.absolute()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def remove(path: Location) -> None:
    """Remove a file or a folder with all that is in it; also if there is none."""
    if isinstance(path, RemotePath):
        path.remove_all()
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def in_the_making(path: Location) -> Iterator[Path]:
    """Give a name for a folder to make something in: beside a path, from where it can be moved there; else elsewhere.

    What lies there in the end is removed.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="dneuro-") as folder:
            yield Path(folder) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.partial(path)
    try:
        yield temporary
    finally:
        remove(temporary)


def put(made: Path, target: RemotePath, last: str = "zarr.json", *, finish: bool = True) -> None:
    """Send a folder, one file of it last: of a group its own metadata, for until they are there it is no group.

    Without `finish` that one is not sent.
    """
    found = sorted((p for p in made.rglob("*") if p.is_file()), key=lambda p: p == made / last)
    for file in found:
        if finish or file != made / last:
            (target / file.relative_to(made).as_posix()).write_bytes(file.read_bytes())


def to_disk(*places: Path) -> None:
    """Have files, and all those below folders, on the disk when this returns."""
    files.to_disk(path for place in places for path in ([place] if place.is_file() else place.rglob("*"))
                  if path.is_file())  # fmt: skip


def sizes(folder: Location) -> dict[str, int]:
    """Return every file below a folder, by its path from there with ``/``, with its size in bytes."""
    if isinstance(folder, RemotePath):
        return folder.files()
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def disk_error(error: BaseException, store: Location) -> StoreError | None:
    """Return what an error of the file system means for a store; None if it is an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"the disk under {store} is full; everything done so far is kept",
            hint="make room and run the same command again: only what is unfinished is redone",
        )
    if isinstance(error, PermissionError) and isinstance(store, RemotePath):
        return denied(store, error)
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(f"{store} cannot be written: {error}", hint="another path as store:")
    return None


def sweep(store: Location, units: Location) -> int:
    """Remove what a killed writer left half done in a store, in its markers and beside it; return how many.

    In an object store there is nothing of the kind: an object appears whole.
    """
    if isinstance(store, RemotePath) or isinstance(units, RemotePath):
        return 0
    beside = store.parent.glob(f".{glob.escape(store.name)}.*{files.PARTIAL}")
    stray = [*store.rglob(f"*{files.PARTIAL}"), *units.rglob(f"*{files.PARTIAL}"), *beside]
    for path in stray:
        remove(path)
    return len(stray)
