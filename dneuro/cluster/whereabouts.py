"""Where the clusters are that were started from a profile: it may name another ``state`` tomorrow.

A note in this user's cache. Whoever clears that away finds a cluster by the ``state`` in its profile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from dneuro.cluster.processes import cache
from dneuro.files import write_atomically


def remember(profile: Path, folder: Path) -> None:
    """Note that a cluster was started from a profile, and has its records in a folder."""
    _write(profile, [folder, *(one for one in folders_of(profile) if one != folder and one.is_dir())])


def forget(profile: Path, folder: Path) -> None:
    """Take the note of a cluster away."""
    _write(profile, [one for one in folders_of(profile) if one != folder])


def folders_of(profile: Path) -> list[Path]:
    """Return the folders of the clusters that were started from a profile, the newest first."""
    try:
        found = json.loads(_note(profile).read_text())
        return [Path(one) for one in found]
    except (OSError, RuntimeError, TypeError, ValueError):
        return []


def _note(profile: Path) -> Path:
    digest = hashlib.sha256(str(profile.resolve()).encode()).hexdigest()[:16]
    return cache() / "clusters" / f"{digest}.json"


def _write(profile: Path, folders: list[Path]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written to
        note = _note(profile)
        if not folders:
            note.unlink(missing_ok=True)
            return
        text = json.dumps([str(one) for one in folders])
        write_atomically(note, lambda file: file.write(text.encode() + b"\n"))
