"""The text of a job or profile file, and profiles by their name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from dneuro.errors import SpecError, nearest

SUFFIXES = (".yaml", ".yml")
DEFAULT_PROFILE = "local"


def read_text(path: str | PathLike[str], word: str) -> str:
    """Return the text of a file; `word` says what it should hold, a ``"job"`` or a ``"profile"``.

    Raises
    ------
    SpecError
        If there is no such file, or it is a folder, unreadable or not UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        there = [str(other) for other in _yaml_files(path.parent)]
        raise SpecError(f"{path}: no such file", _meant(str(path), there, word)) from None
    except IsADirectoryError:
        there = [str(other) for other in _yaml_files(path)]
        raise SpecError(f"{path}: is a folder, not a {word}", _meant("", there, word)) from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}", "check its permissions: ls -l") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}"
        raise SpecError(what, "save the file as UTF-8") from None


def find_profile(name: str | None, folders: Sequence[Path]) -> Path:
    """Return the path of a profile that is given by its path or by its name.

    Parameters
    ----------
    name : str or None
        The path of a file, or NAME for ``NAME.yaml`` in one of the folders; None is ``local``.
    folders : sequence of Path
        Where profiles lie by their name; the first that has one wins.

    Raises
    ------
    SpecError
        If there is none; lists those there are, the nearest first.
    """
    name = DEFAULT_PROFILE if name is None else name
    given = Path(name)
    if given.is_file():
        return given
    if given.suffix not in SUFFIXES:
        for folder in folders:
            for suffix in SUFFIXES:
                if (path := folder / f"{name}{suffix}").is_file():
                    return path
    names = [path.stem for folder in folders for path in _yaml_files(folder)]
    where = ", ".join(map(str, folders))
    by_path = given.suffix in SUFFIXES
    what = f"{name}: no such file" if by_path else f"no profile {name!r} in {where or 'any folder'}"
    raise SpecError(what, _meant(given.stem, names, "profile"))


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES) if folder.is_dir() else []


def _meant(name: str, there: Iterable[str], word: str) -> str | None:
    """Return a hint that lists what is there, the nearest first."""
    known = list(dict.fromkeys(there))
    near = nearest(name, known)
    listed = [*near, *(other for other in known if other not in near)]
    return f"{word}s there: {', '.join(listed[:12])}" if listed else f"there is no {word} there"
