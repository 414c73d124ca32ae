"""Groups of their own that results go to: made under another name, and there only once they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dneuro.errors import ArrayError, BusyError, DiskFullError, DneuroError, StoreError, UsageError
from dneuro.files import PARTIAL
from dneuro.quantities import format_bytes
from dneuro.store.files import Location, free_bytes, in_the_making, place_named, put, remove
from dneuro.store.remote import RemotePath, denied

WHERE = "out=… a path in a folder that this process and all workers see and may write to"


@dataclass(frozen=True)
class Making:
    """A group in the making.

    Parameters
    ----------
    group : Path
        Where its metadata is written, and what is small: on this machine.
    place : Path or RemotePath
        Where tasks write their chunks: the same folder, or the object store.
    """

    group: Path
    place: Location

    def ready(self) -> None:
        """Let tasks write: the arrays are created."""
        if isinstance(self.place, RemotePath):
            put(self.group, self.place, last="zarr.json", finish=False)


def place_of(out: object) -> Location:
    """Return the place of a new group, ``~`` being the home folder.

    Raises
    ------
    ArrayError
        If it is no path or URL, or lies below a file.
    StoreError
        If a URL holds a password.
    """
    place = place_named("out", out, kind="path", example="result.zarr")
    if isinstance(place, RemotePath):
        return place
    place = place.absolute()
    with writing_to(place):
        above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise ArrayError(f"out={str(out)!r}: {above} is no folder", hint="out=… a path in a folder")
    return place


def refuse_existing(place: Location) -> None:
    """Refuse a place where something is, or where nothing can be.

    Raises
    ------
    UsageError
        If something is there.
    BusyError
        If another call is at it, in an object store.
    StoreError
        If nobody may look, or there is no such bucket.
    """
    if isinstance(place, RemotePath):
        place.check_bucket()
    with writing_to(place):
        if isinstance(place, RemotePath) and _note(place).is_file():
            raise _claimed_already(place)
        taken = place.exists()
    if taken:
        raise _there_already(place)


def refuse_crowded(place: Location, size: int, hint: str) -> None:
    """Refuse what takes up to so many bytes where the disk has fewer.

    Parameters
    ----------
    place : Path or RemotePath
        Where it will be; an object store has room.
    size : int
        Its bytes, uncompressed.
    hint : str
        What else could be done than to make room.

    Raises
    ------
    StoreError
        With both numbers.
    """
    with writing_to(place):
        free = free_bytes(place)
    if free is not None and free < size:
        raise StoreError(
            f"{place} takes up to {format_bytes(size)}, its disk has {format_bytes(free)} free",
            hint=f"make room, another disk, or {hint}",
        )


@contextlib.contextmanager
def making(out: Location, kept: Path | None = None) -> Iterator[Making]:
    """Give a group in the making; it gets its name when the context ends without an error, else nothing is left of it.

    Parameters
    ----------
    out : Path or RemotePath
        Where it will be.
    kept : Path, optional
        A folder to make it in, which stays when there is an error: to go on from.

    Raises
    ------
    UsageError
        If something has come to lie at `out` meanwhile. What was made is not lost: the error says where it is.
    BusyError
        If another call makes the same group in an object store, where it could not be moved.
    StoreError
        If it cannot be written.
    """
    with _claimed(out):
        if kept is not None:
            yield Making(kept, kept)
            _give_name(kept, out, stays=True)
            return
        with _temporary(out) as made:
            yield made
            _give_name(made.group, out, stays=False)


@contextlib.contextmanager
def writing_to(place: Location) -> Iterator[None]:
    """Let an error of the file system, or of an object store, say what cannot be written and what to do."""
    try:
        yield
    except (DneuroError, MemoryError):
        raise
    except Exception as error:  # each transport of an object store has errors of its own
        if isinstance(error, OSError) or isinstance(place, RemotePath):
            raise _refused(place, error) from error
        raise


def _refused(place: Location, error: Exception) -> StoreError:
    name, number = _wished(place), getattr(error, "errno", None)
    if isinstance(place, RemotePath) and isinstance(error, PermissionError):
        return denied(place, error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        said, hint = "the disk is full", "make room, or out=… on another disk; then again"
        return DiskFullError(f"{name} cannot be written: {said}", hint=hint)
    said = os.strerror(number) if number else str(error) or type(error).__name__
    return StoreError(f"{name} cannot be written: {said}", hint=WHERE)


def _wished(place: Location) -> str:
    """Return the name that a group in the making will have."""
    if isinstance(place, Path) and place.name.endswith(PARTIAL):
        return str(place.with_name(place.name.removesuffix(PARTIAL).rpartition(".")[0].removeprefix(".")))
    return str(place)


@contextlib.contextmanager
def _claimed(out: Location) -> Iterator[None]:
    """In an object store, where nothing is moved, let one call at a time write below a name, all or nothing."""
    if not isinstance(out, RemotePath):
        yield
        return
    with writing_to(out):
        ours = _note(out).create(b"")
    if not ours:
        raise _claimed_already(out)
    try:
        with writing_to(out):
            taken = out.exists()
        if taken:  # by a call that has ended a moment ago
            raise _there_already(out)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the error that brought us here says more
                out.remove_all()
            raise
    finally:
        with contextlib.suppress(OSError):
            _note(out).unlink(missing_ok=True)


def _note(out: RemotePath) -> RemotePath:
    """Return the object that is there while a group is made."""
    return RemotePath(f"{out}{PARTIAL}")


def _there_already(place: Location) -> UsageError:
    return UsageError(f"{place} exists; it is left as it is", hint="out=… another path, or remove this one")


def _claimed_already(out: RemotePath) -> BusyError:
    return BusyError(
        f"{out} is being made by another call, or by one that was killed",
        hint=f"wait for it, or out=… another place; if nobody is at work, remove {_note(out)} and all below {out}",
    )


@contextlib.contextmanager
def _temporary(out: Location) -> Iterator[Making]:
    """Give a group of which nothing is left on this machine where it is not moved away."""
    if isinstance(out, Path):
        with writing_to(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    with in_the_making(out) as group:
        yield Making(group, group if isinstance(out, Path) else out)


def _give_name(made: Path, out: Location, *, stays: bool) -> None:
    """Move what was made to where it belongs; `stays` says that it may as well stay where it is."""
    with writing_to(out):
        if isinstance(out, RemotePath):
            put(made, out)
            remove(made)
            return
        try:
            _move(made, out)
        except OSError as error:
            if not out.exists():
                raise
            left = made if stays else out.with_name(f"{out.stem}-{uuid.uuid4().hex[:8]}{out.suffix}")
            if not stays:
                made.rename(left)
            raise UsageError(
                f"{out} was made by another call meanwhile, and is left as it is; what this one has made is {left}",
                hint=f"mv {left} … to another name",
            ) from error


def _move(made: Path, out: Path) -> None:
    """Rename a folder; from another disk it is copied, so that at `out` there is all of it or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with in_the_making(out) as beside:
            shutil.copytree(made, beside)
            beside.rename(out)
        remove(made)
