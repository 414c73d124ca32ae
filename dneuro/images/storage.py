"""Where image files may lie: in a folder, in a tar, or in whatever fsspec opens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What makes a file an image file, in upper or lower case."""


class Entry(NamedTuple):
    """One image file of a storage.

    Parameters
    ----------
    name : str
        Path below the root, with ``/``.
    size : int
        In bytes.
    offset : int
        Where the file begins in an archive that is read in place, in bytes; -1 where it is a file of its own.
    path : str
        How the storage names the file, where that is not UTF-8; empty otherwise.
    """

    name: str
    size: int
    offset: int = -1
    path: str = ""

    @property
    def parts(self) -> list[str]:
        """Folders and file name. Sorting by them keeps the files of a folder together, whatever its name."""
        return self.name.split("/")


class Storage(Protocol):
    """A place that holds image files. May be used by several threads at once, and pickled.

    Parameters
    ----------
    is_near : bool
        Whether it is a disk; False where a connection has to be waited for.
    """

    is_near: bool

    def images(self) -> list[Entry]:
        """Return every image file at the root and below, sorted by `Entry.parts`; hidden ones are left out.

        What has an image's name and cannot be read as a file (a link that leads nowhere, a pipe) is listed with a size
        of 0; `read` says why.

        Raises
        ------
        ImageSourceError
            If the place is missing or damaged, or may not be read.
        """

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file that was listed, as far as there is any: the length may differ.

        Raises
        ------
        UnreadableImageError
            If this one file is gone or cannot be had.
        OSError
            If the storage fails.
        """

    def fetch(self, entry: Entry) -> None:
        """Have a file that is read soon brought nearer, as far as that can be had without waiting.

        Raises
        ------
        OSError
            If it cannot be opened.
        """

    def where(self, name: str) -> str:
        """Return how a message names a file."""


def is_url(root: str) -> bool:
    """Return whether fsspec is to open `root`: ``s3://…``, ``https://…``, ``zip::…``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)", root) is not None


def is_image(name: str) -> bool:
    """Return whether a file name ends as that of an image does."""
    return name.lower().endswith(EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Return whether a path, or a folder in it, is hidden: begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def plain(path: str) -> str:
    """Return a path without steps that lead nowhere: ``./a//b.png`` is ``a/b.png``."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def listed(found: Iterable[tuple[str, int, int]], names: Mapping[str, str] | None = None) -> list[Entry]:
    r"""Return sorted entries of files as their storage names them: path below the root, size and offset.

    A name that is not UTF-8 gets a readable one, in which bytes that are none are escaped: ``caf\xe9.png``. `names`
    says what files are called that have another path.
    """
    files = sorted(found)  # which of two gets the name does not depend on the order of listing
    taken = {path for path, _, _ in files}
    entries = []
    for path, size, offset in files:
        name = readable(names[path] if names else path)
        while name != path and name in taken:  # by a file that is called so in truth
            name += "'"
        taken.add(name)
        entries.append(Entry(name, size, offset, "" if name == path else path))
    return sorted(entries, key=lambda entry: entry.parts)


def readable(text: str) -> str:
    """Return a path in which bytes that are not UTF-8 are escaped; any other one as it is."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def some(names: list[str], limit: int = 3) -> str:
    """Return the first names, for a message."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
