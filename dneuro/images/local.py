"""Image files in a folder of this machine."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.paths import missing
from dneuro.images.storage import Entry, check_utf8, is_image


class LocalFolder:
    """A folder and the folders below it; see `Storage`.

    Links are followed, but for those that lead back to a folder above them.

    Cost of listing: one ``os.scandir`` per folder and one ``stat`` per image; no file is opened.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def images(self) -> list[Entry]:
        """Return every image file; see `Storage.images`."""
        found: list[Entry] = []
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
                mode = status_of(entry).st_mode
                if stat.S_ISDIR(mode):
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/", inside))
                elif is_image(entry.name):
                    found.append(Entry(prefix + entry.name, size_of(entry)))
        return sorted(found, key=lambda entry: entry.parts)

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file; see `Storage.read`."""
        path = self._root / entry.name
        try:
            with path.open("rb") as file:
                return file.read(entry.size + 1)  # one more, to notice a file that has grown
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            if not self._root.is_dir():
                raise  # nothing is mounted here: that says nothing about the image
            raise UnreadableImageError(f"{path}: {error.strerror}") from error

    def where(self, name: str) -> str:
        """Return the path of a file."""
        return str(self._root / name)


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
        If it may not be read, or holds a name that is not UTF-8.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except PermissionError as error:
        raise ImageSourceError(
            f"folder {folder} may not be read: {error.strerror}", hint=f"chmod u+rx {shlex.quote(str(folder))}"
        ) from error
    for entry in entries:
        check_utf8(entry.name, str(folder), f"convmv -r -f latin1 -t utf8 --notest {shlex.quote(str(folder))}")
    return entries


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
            f"{entry.path} is {what}: {error.strerror}", hint="remove it, or mend what it points to"
        ) from error


def size_of(entry: os.DirEntry[str]) -> int:
    """Return the size of an image file in bytes.

    Raises
    ------
    ImageSourceError
        If it is a pipe, a socket or a device: reading it could wait for ever.
    """
    status = status_of(entry)
    if not stat.S_ISREG(status.st_mode):
        raise ImageSourceError(f"{entry.path} is neither a file nor a folder", hint="remove it")
    return status.st_size
