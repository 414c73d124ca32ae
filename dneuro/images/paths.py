"""Small files, wherever they lie, and what to say of a path where nothing can be found."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from dneuro.errors import ImageSourceError, suggest
from dneuro.images.storage import is_url
from dneuro.quantities import MiB, format_bytes

MAX_TABLE_BYTES = 256 * MiB
"""What is larger is no table of labels."""


def content_of(path: str) -> bytes:
    """Return the content of a small file, such as a table of labels.

    Parameters
    ----------
    path : str
        The file, or a URL that fsspec opens.

    Raises
    ------
    ImageSourceError
        If it cannot be read, or is larger than `MAX_TABLE_BYTES`.
    """
    try:
        if is_url(path):
            with import_module("fsspec").open(path, "rb") as file:
                content: bytes = file.read(MAX_TABLE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise missing(path if is_url(path) else Path(path), error) from error
    except (ImportError, ValueError) as error:  # of fsspec
        raise ImageSourceError(f"{path} cannot be opened: {error}") from error
    if len(content) > MAX_TABLE_BYTES:
        raise ImageSourceError(
            f"{path} is too large for a table of labels; the limit is {format_bytes(MAX_TABLE_BYTES)}"
        )
    return content


def missing(path: Path | str, error: OSError) -> ImageSourceError:
    """Return the error that says why `path` (or a URL) cannot be used, with what lies beside it."""
    if isinstance(path, str):
        return ImageSourceError(f"{path} cannot be read: {error}", hint="correct the URL")
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageSourceError(f"{path} cannot be accessed: {error.strerror}", hint=f"ls -ld {path}")
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ImageSourceError(f"{path} does not exist, nor does {path.parent}", hint="correct root:")
    return ImageSourceError(f"{path} does not exist", hint=f"in {path.parent}: {suggest(path.name, beside)}")
