"""Image files in whatever fsspec opens: object stores, web servers, zip files."""

from __future__ import annotations

import os
import re
import threading
import zipfile
import zlib
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.storage import Entry, is_hidden, is_image, listed, plain

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What a zip file raises of one damaged file in it, or one that is packed in an unknown way."""

_WEB = re.compile(r"((simple|file|block)cache::)?https?://", re.IGNORECASE)


class RemoteFolder:
    """Everything below a URL; see `Storage`. Each process opens its own connection when it first needs it.

    Cost of listing: fsspec's ``find``, and one more request per file where that gives no sizes (web servers).
    """

    is_near = False

    def __init__(self, url: str) -> None:
        if re.search(r"//[^/@]*:[^/@]*@", url):
            raise ImageSourceError(
                "root: holds a password, which would be written into the store",
                hint="give it to fsspec: https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration",
            )
        self._url = url
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def images(self) -> list[Entry]:
        """Return every image file; see `Storage.images`."""
        try:
            system, root = self._open()
            found = system.find(root, detail=True)
            sizes = {
                path: info.get("size")
                for path, info in found.items()
                if info.get("type", "file") == "file" and self._is_wanted(_below(root, path))
            }
            unknown = [path for path, size in sizes.items() if size is None]
            sizes.update(zip(unknown, system.sizes(unknown), strict=True))
            if not sizes and not system.exists(root):
                raise FileNotFoundError
        except (ImageSourceError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise ImageSourceError(f"{self._url} does not exist, or cannot be reached", hint="correct root:") from error
        except Exception as error:  # every kind of storage has errors of its own
            raise ImageSourceError(f"{self._url} cannot be listed: {_said(error)}") from error
        for path, size in sizes.items():
            if size is None:
                raise ImageSourceError(
                    f"{self._url}: the server does not say how large {_below(root, path)} is, so that a change "
                    "could not be noticed",
                    hint="copy the images here, and set root: to their folder",
                )
        found = {_below(root, path): int(size) for path, size in sizes.items()}
        names = {path: self._name(path) for path in found}
        return listed(((path, size, -1) for path, size in found.items()), names)

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file; see `Storage.read`."""
        system, root = self._open()
        try:
            path = entry.path or entry.name
            content: bytes = system.cat_file(f"{root}/{path}" if root else path)
        except FileNotFoundError as error:
            if not system.exists(root):
                raise  # the whole place is gone: that says nothing about the image
            raise UnreadableImageError(f"{self.where(entry.name)}: is no longer there") from error
        except _DAMAGED as error:
            raise UnreadableImageError(f"{self.where(entry.name)}: cannot be unpacked: {_said(error)}") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of the transport's library; what says OSError is tried again
            raise OSError(f"{self.where(entry.name)}: {_said(error)}") from error
        return content

    def fetch(self, entry: Entry) -> None:
        """Do nothing: what is far is read ahead in full; see `Storage.fetch`."""

    def where(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self._url}: {name}" if "::" in self._url else f"{self._url.rstrip('/')}/{name}"

    def _name(self, path: str) -> str:
        """Return what a file is called that the URL's storage has at `path`: a web server's pages escape names."""
        if _WEB.match(self._url):
            parts = [(part, unquote(part, errors="surrogateescape")) for part in path.split("/")]
            path = "/".join(said if "/" in said or "\0" in said else called for said, called in parts)
        return plain(path)

    def _is_wanted(self, path: str) -> bool:
        name = self._name(path)
        return is_image(name) and not is_hidden(name)

    def _forget(self) -> None:
        self._opened: tuple[int, Any, str] | None = None  # process, file system, path in it
        self._opening = threading.Lock()

    def _open(self) -> tuple[Any, str]:
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                system, root = _connect(self._url)
                self._opened = (os.getpid(), system, root)
            return self._opened[1:]


def _connect(url: str) -> tuple[Any, str]:
    fsspec = import_module("fsspec")  # a tenth of a second that others need not wait
    try:
        system, root = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ImageSourceError(
            f"{url} needs a library that is not installed: {error}", hint="pip install s3fs (or gcsfs, adlfs, aiohttp)"
        ) from error
    except ValueError as error:
        raise ImageSourceError(
            f"{url} cannot be opened: {error}", hint="such as s3://bucket/photos, or zip::/path/photos.zip"
        ) from error
    except zipfile.BadZipFile as error:
        raise ImageSourceError(f"{url} is no zip file, or a damaged one: {error}") from error
    if isinstance(system, import_module("fsspec.archive").AbstractArchiveFileSystem):
        system.find("")  # makes its table of contents, which two threads may not do at once
    return system, root.rstrip("/")


def _below(root: str, path: str) -> str:
    """Return the name of a file below the root; empty if it is elsewhere (a page may link to anything)."""
    if root and not path.startswith(f"{root}/"):
        return ""
    return path[len(root) :].lstrip("/")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
