"""Image files in a folder of this machine."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path

from dneuro import events
from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.paths import missing
from dneuro.images.storage import Entry, is_image, listed, readable

_OF_THE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP,
}  # fmt: skip
"""Errors on opening that say something about one file; any other is of the storage, and may pass."""

_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""How files are opened: without waiting, for nobody may ever write into a pipe."""


def will_need(descriptor: int, start: int, size: int) -> None:
    """Have the system read part of a file into its cache, where it takes such advice; returns at once."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)


class LocalFolder:
    """A folder and the folders below it; see `Storage`.

    Links are followed, but for those that lead back to a folder above them; one that leads nowhere and has no image's
    name is left out with a note.

    Cost of listing: one ``os.scandir`` per folder and one ``stat`` per image; no file is opened.
    """

    is_near = True

    def __init__(self, root: Path) -> None:
        self._root = root

    def images(self) -> list[Entry]:
        """Return every image file; see `Storage.images`."""
        found: list[tuple[str, int, int]] = []
        pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(self._root, "", frozenset())]
        while pending:
            folder, prefix, above = pending.pop()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in above:
                continue
            inside = above | {(status.st_dev, status.st_ino)}
            for entry in entries_of(folder):
                if entry.is_file(follow_symlinks=False) and not is_image(entry.name):
                    continue
                try:
                    is_folder = stat.S_ISDIR(entry.stat().st_mode)
                except OSError as error:
                    if not is_image(entry.name):
                        events.emit("note", "", f"{readable(entry.path)} is left out: {error.strerror}")
                        continue
                    is_folder = False
                if is_folder:
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/", inside))
                elif is_image(entry.name):
                    found.append((prefix + entry.name, size_of(entry), -1))
        return listed(found)

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file; see `Storage.read`."""
        path = self._root / (entry.path or entry.name)
        try:
            descriptor = os.open(path, _READING)
        except OSError as error:
            if error.errno not in _OF_THE_FILE or not self._root.is_dir():
                raise  # of the storage, or nothing is mounted here: that says nothing about the image
            raise UnreadableImageError(f"{self.where(entry.name)}: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnreadableImageError(f"{self.where(entry.name)}: is neither a file nor a folder")
            return file.read(entry.size + 1)  # one more, to notice a file that has grown

    def fetch(self, entry: Entry) -> None:
        """Have the system read a file into its cache; see `Storage.fetch`."""
        descriptor = os.open(self._root / (entry.path or entry.name), _READING)
        try:
            will_need(descriptor, 0, entry.size)
        finally:
            os.close(descriptor)

    def where(self, name: str) -> str:
        """Return the path of a file."""
        return readable(str(self._root / name))


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder.

    Raises
    ------
    ImageSourceError
        If there is nothing, or it may not be looked at.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise missing(path, error) from error


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without what is hidden.

    Raises
    ------
    ImageSourceError
        If it may not be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except PermissionError as error:
        raise ImageSourceError(
            f"folder {readable(str(folder))} may not be read: {error.strerror}",
            hint=f"chmod u+rx {shlex.quote(readable(str(folder)))}",
        ) from error


def status_of(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of what an entry leads to.

    Raises
    ------
    ImageSourceError
        If it leads nowhere, or in a circle.
    """
    try:
        return entry.stat()
    except OSError as error:
        what = "a link that leads nowhere" if entry.is_symlink() else "not accessible"
        raise ImageSourceError(
            f"{readable(entry.path)} is {what}: {error.strerror}", hint="remove it, or mend what it points to"
        ) from error


def size_of(entry: os.DirEntry[str]) -> int:
    """Return the size of an image file in bytes; 0 of what is no file, or cannot be looked at: reading it says why."""
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
