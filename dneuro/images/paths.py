"""What to say of a path where nothing can be found."""

from __future__ import annotations

from pathlib import Path

from dneuro.errors import ImageSourceError, suggest


def missing(path: Path, error: OSError) -> ImageSourceError:
    """Return the error that says why `path` cannot be used, with what lies beside it."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageSourceError(f"{path} cannot be accessed: {error.strerror}", hint=f"ls -ld {path}")
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ImageSourceError(f"{path} does not exist, nor does {path.parent}", hint="correct root:")
    return ImageSourceError(f"{path} does not exist", hint=f"in {path.parent}: {suggest(path.name, beside)}")
