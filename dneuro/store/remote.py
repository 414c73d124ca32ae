"""A store that lies in an object store, seen as far as dneuro needs it through the methods of a path."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from dneuro.errors import StoreError

T = TypeVar("T")

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What fsspec needs for a protocol that has buckets; s3fs is dneuro's extra ``s3``."""


class Stat(NamedTuple):
    """Size in bytes, and seconds since 1970 of the last change by the clock of whoever keeps it."""

    st_size: int
    st_mtime: float


def is_url(where: object) -> bool:
    """Return whether fsspec is to open it: ``s3://…``, ``gs://…``, ``memory://…``."""
    return isinstance(where, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where) is not None


class RemotePath:
    """An object, or all objects below a prefix; behaves as `pathlib.Path` in the methods it has.

    An object appears whole or not at all, so that nothing needs a temporary name. Can be pickled; each process opens
    its own connection. Errors are those of files: `FileNotFoundError`, `PermissionError`, `OSError`.

    Parameters
    ----------
    url : str
        ``s3://bucket/some/key``.

    Raises
    ------
    StoreError
        If the URL holds a password, or the package that its protocol needs is not installed.
    """

    def __init__(self, url: str) -> None:
        if re.search(r"//[^/@]*:[^/@]*@", url):
            raise StoreError(
                "store: holds a password, which would be written into the store",
                hint="give it in the usual environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws",
            )
        self._protocol, _, rest = url.partition("://")
        self._key = rest.strip("/")

    def __str__(self) -> str:
        return f"{self._protocol}://{self._key}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self._key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """What it lies below."""
        return RemotePath(f"{self._protocol}://{self._key.rpartition('/')[0]}")

    @property
    def stem(self) -> str:
        """Name without its ending."""
        return self.name.rpartition(".")[0] or self.name

    def absolute(self) -> RemotePath:
        """Return itself."""
        return self

    def relative_to(self, other: RemotePath) -> str:
        """Return the part of the key below `other`."""
        return self._key.removeprefix(other._key).strip("/")

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        content: bytes = _call(self, lambda system: system.cat_file(self._key))
        return content

    def read_text(self) -> str:
        """Return the content of the object, UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Write the object: whole, or not at all."""
        _call(self, lambda system: system.pipe_file(self._key, content))

    def create(self, content: bytes) -> bool:
        """Write the object if there is none, in one step (a conditional PUT); return whether that was so."""

        def put(system: Any) -> bool:
            try:
                system.pipe_file(self._key, content, mode="create")
            except FileExistsError:
                return False
            return True

        return _call(self, put)

    def is_file(self) -> bool:
        """Return whether the object is there."""
        try:
            return bool(_call(self, lambda system: system.info(self._key))["type"] == "file")
        except FileNotFoundError:
            return False

    def exists(self) -> bool:
        """Return whether the object, or any below it, is there."""
        return self.is_file() or any(True for _ in self.iterdir())

    def stat(self) -> Stat:
        """Return the object's size and time."""
        info = _call(self, lambda system: system.info(self._key))
        changed = info.get("LastModified") or info.get("created") or info.get("mtime")
        return Stat(int(info["size"] or 0), changed.timestamp() if hasattr(changed, "timestamp") else time.time())

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies directly below."""
        try:
            found = _call(self, lambda system: system.ls(self._key, detail=False))
        except FileNotFoundError:
            return
        for key in sorted(str(key).strip("/") for key in found):
            if key != self._key:
                yield RemotePath(f"{self._protocol}://{key}")

    def files(self) -> dict[str, int]:
        """Return every object below, by its name from here on, with its size in bytes."""
        found = _call(self, lambda system: system.find(self._key, detail=True))
        below = {str(key).strip("/").removeprefix(self._key).strip("/"): info for key, info in found.items()}
        return {name: int(info.get("size") or 0) for name, info in sorted(below.items()) if name}

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the objects below that fit, in order."""
        found = _call(self, lambda system: system.glob(f"{self._key}/{pattern}"))
        yield from (RemotePath(f"{self._protocol}://{str(key).strip('/')}") for key in sorted(found))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            _call(self, lambda system: system.rm_file(self._key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_all(self) -> None:
        """Remove everything below."""
        if self.files():
            _call(self, lambda system: system.rm(self._key, recursive=True))

    def check_bucket(self) -> None:
        """Refuse a place whose bucket is not there or may not be looked into.

        Raises
        ------
        StoreError
            With what the service said, and what to do.
        """
        if self._protocol not in _PACKAGES:
            return
        bucket = self._key.partition("/")[0]
        try:
            _call(self, lambda system: system.info(bucket))
        except FileNotFoundError as error:
            raise StoreError(
                f"there is no bucket {bucket!r} for {self}", hint=f"make it first: aws s3 mb s3://{bucket}"
            ) from error
        except PermissionError as error:
            raise denied(self, error) from error


def denied(where: object, error: BaseException) -> StoreError:
    """Return what a refused access means."""
    return StoreError(
        f"{where} may not be used with the credentials at hand: {_said(error)}",
        hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a service "
        "other than Amazon's",
    )


def zarr_store(path: RemotePath) -> Any:
    """Return what Zarr and xarray open."""
    from zarr.storage import FsspecStore

    _system(path._protocol)  # says what is missing, if anything is
    return FsspecStore.from_url(str(path), storage_options={"use_listings_cache": False})


@functools.lru_cache(maxsize=8)
def _system(protocol: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        if package is None:
            raise
        extra = "pip install '.[s3]' in the sources of dneuro" if package == "s3fs" else f"pip install {package}"
        raise StoreError(f"a store at {protocol}:// needs the package {package}, which is not installed",
                         hint=extra) from error  # fmt: skip
    except ValueError as error:
        raise StoreError(f"a store at {protocol}:// is nothing that fsspec knows: {error}",
                         hint="a path, or s3://bucket/name.zarr") from error  # fmt: skip


def _call(path: RemotePath, do: Callable[[Any], T]) -> T:
    """Ask the service; whatever its library raises becomes an error of files."""
    try:
        return do(_system(path._protocol))
    except (StoreError, FileNotFoundError, FileExistsError, PermissionError, MemoryError):
        raise
    except OSError as error:
        raise OSError(error.errno, f"{path}: {_said(error)}") from error
    except Exception as error:  # each transport has errors of its own
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise PermissionError(_said(error)) from error
        raise OSError(f"{path}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
