"""Image files in a plain tar, read in place: nothing is unpacked."""

from __future__ import annotations

import os
import shlex
import tarfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.local import will_need
from dneuro.images.paths import missing
from dneuro.images.storage import Entry, is_hidden, is_image, listed, plain, readable

_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip --keep {path}"),
    b"BZh": ("bzip2", "bunzip2 --keep {path}"),
    b"\xfd7zXZ": ("xz", "unxz --keep {path}"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd --keep {path}"),
    b"PK\x03\x04": ("zip", "set root: zip::{path}"),
}


class TarArchive:
    """An uncompressed tar (POSIX or GNU, long names included); see `Storage`.

    Of a name that occurs twice the last file counts, as for tar itself. Folders and hidden files are left out.

    Cost of listing: one pass over the headers, some 25 µs per file; the content is not read. Each file is one
    ``pread``, so that threads share a descriptor without a lock; each process opens its own when it first reads.
    """

    is_near = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def images(self) -> list[Entry]:
        """Return every image file with its offset; see `Storage.images`."""
        found: dict[str, tuple[str, int, int]] = {}
        for member in self._members():
            name = plain(member.name)
            if member.isdir() or is_hidden(name) or not is_image(name):
                continue
            size = member.size if member.isreg() and not member.issparse() else 0
            found[name] = (name, size, member.offset_data)
        return listed(found.values())

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file; see `Storage.read`."""
        start = entry.offset - _BLOCK
        data = _read_at(self._descriptor(), start, _BLOCK + entry.size)
        try:
            header = _header(data[:_BLOCK])
        except tarfile.HeaderError:
            header = None
        what = "" if header is None else _no_file(header, entry.size)
        if what:
            raise UnreadableImageError(
                f"{self.where(entry.name)}: is {what}, which cannot be read in place; {self._unpack}"
            )
        if header is None or header.size != entry.size:
            raise UnreadableImageError(
                f"{self.where(entry.name)}: the tar changed since it was listed: no file of {entry.size:,} bytes "
                f"begins at byte {entry.offset:,}"
            )
        return data[_BLOCK:]

    def fetch(self, entry: Entry) -> None:
        """Have the system read a file into its cache; see `Storage.fetch`."""
        will_need(self._descriptor(), entry.offset - _BLOCK, _BLOCK + entry.size)

    def where(self, name: str) -> str:
        """Return path and name."""
        return f"{self._path}: {name}"

    @property
    def _unpack(self) -> str:
        return f"unpack it: tar -xf {shlex.quote(str(self._path))}"

    def _forget(self) -> None:
        self._opened: tuple[int, int] | None = None  # process and descriptor
        self._opening = threading.Lock()

    def _descriptor(self) -> int:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with self._opening:
                if self._opened is None or self._opened[0] != os.getpid():
                    descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                    weakref.finalize(self, os.close, descriptor)
                    self._opened = (os.getpid(), descriptor)
                opened = self._opened
        return opened[1]

    def _members(self) -> Iterator[tarfile.TarInfo]:
        # A buffer of two blocks: a larger one would read on into the content after every header.
        try:
            with self._path.open("rb", buffering=2 * _BLOCK) as file:
                with tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape") as tar:
                    while (member := tar.next()) is not None:
                        yield member
                    end = tar.offset
                self._check_end(end)
        except (tarfile.TarError, ValueError) as error:  # ValueError: of numbers that make no sense
            raise ImageSourceError(f"{self._path} is a damaged tar: {error}", hint=_AGAIN) from error
        except OSError as error:
            raise missing(self._path, error) from error

    def _check_end(self, end: int) -> None:
        """Refuse a tar that does not end where tarfile stopped: at a damaged header it stops without a word."""
        with self._path.open("rb") as file:
            file.seek(end)
            block = file.read(_BLOCK)
        if not block:
            raise ImageSourceError(
                f"{self._path} is cut short: it ends at byte {end:,} without the mark of its end", hint=_AGAIN
            )
        if block.strip(b"\0"):
            raise ImageSourceError(f"{self._path} is damaged: no header at byte {end:,}", hint=_AGAIN)


_AGAIN = "copy or fetch it again, and compare its size"


def check_tar(path: Path) -> None:
    """Refuse a file that is no plain tar.

    Raises
    ------
    ImageSourceError
        Saying what it is instead, and how to make a tar of it.
    """
    if not path.is_file():
        raise ImageSourceError(f"{path} is neither a file nor a folder", hint="correct root:")
    try:
        with path.open("rb") as file:
            begin = file.read(_BLOCK)
    except OSError as error:
        raise missing(path, error) from error
    for magic, (kind, way) in _COMPRESSED.items():
        if begin.startswith(magic):
            raise ImageSourceError(
                f"{path} is compressed ({kind}); only a plain tar can be read in place",
                hint=way.format(path=shlex.quote(str(path))),
            )
    try:
        _header(begin)
    except tarfile.HeaderError as error:
        raise ImageSourceError(
            f"{path} is a file, and no tar, or an empty one; images lie in a folder, in a plain tar or below a URL",
            hint="images in an .npz file or a Zarr group are source: array",
        ) from error


def _header(block: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo.frombuf(block, encoding="utf-8", errors="surrogateescape")


def _no_file(header: tarfile.TarInfo, listed: int) -> str:
    """Return what a member is that cannot be read as it lies there; nothing of a file."""
    if header.islnk() or header.issym():
        return f"a link to {readable(header.linkname)}"
    if header.issparse() or (header.isreg() and listed == 0 < header.size):
        return "stored with holes (sparse)"
    return "" if header.isreg() else "neither a file nor a folder"


def _read_at(descriptor: int, start: int, count: int) -> bytes:
    """Return `count` bytes, or fewer at the end of the file; the system may give them in pieces."""
    data = os.pread(descriptor, count, start)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), start + len(data))
        if not more:
            break
        data += more
    return data
