"""What a run has started outside its own process, written down before it can be forgotten."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dneuro.cluster.backends import Folder

FILE = "machines.jsonl"

STANDING = "clusters"
"""Folder of all standing clusters in the state folder of a profile."""


class Record:
    """A file with one JSON object per line, each on disk when `write` returns.

    Parameters
    ----------
    folder : Path
        The attempt's or the job's folder; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE

    def write(self, **entry: Any) -> None:
        """Add an entry, such as ``kind="slurm", name="…", id="17"``."""
        with self.path.open("a") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what was written for a job: in its own folder and in those of its attempts."""
    for path in [folder / FILE, *sorted((folder / "attempts").glob(f"*/{FILE}"))]:
        yield from _read(path)


def driver_may_be_left(job_folder: Folder) -> bool:
    """Return whether a driver was written down in a job's own folder of which nobody wrote that it was ``refused``."""
    written = [entry for entry in _read(job_folder / FILE) if entry.get("role") == "driver"]
    refused = {entry["name"] for entry in written if "refused" in entry}
    return any(entry["name"] not in refused for entry in written)


def _read(path: Any) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut short by what ended the writer
                yield json.loads(line)


def job_folder_of(attempt: Path) -> Path | None:
    """Return the job's folder that an attempt's folder is part of, if it is one."""
    is_attempt = attempt.parent.name == "attempts" and re.fullmatch(r"\d+", attempt.name)
    return attempt.parent.parent if is_attempt else None
