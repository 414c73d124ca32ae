"""Markers of units that are done, as this machine sees them: of a shared disk, not always at once."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

from dneuro.engine import stopping
from dneuro.errors import StoreError
from dneuro.extract.work import ExtractWork
from dneuro.files import partial
from dneuro.quantities import format_duration
from dneuro.store.remote import RemotePath

PATIENCE = 70.0
"""Seconds that a marker is looked for: a client of NFS takes up to a minute to see what others do in a folder."""

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 5.0
"""Seconds from one look to the next: each time twice as long."""


def published(work: ExtractWork, part: str, number: int) -> dict[str, Any] | None:
    """Return the marker of one part of a unit that is done; None if the unit failed and is left out.

    A client of NFS that has looked for a marker remembers that it was not there, and goes on saying so for up to a
    minute after another machine has published it. A change that it makes in the folder itself ends that.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    part : str
        A layer, or `IMAGES`.
    number : int
        The unit's, which some worker has said is done.

    Raises
    ------
    StoreError
        If it is not seen for `PATIENCE` seconds; in an object store at once, for there everybody sees the same.
    BusyError
        If a later run has taken over: it may have withdrawn the marker.

    Notes
    -----
    One look where the marker is seen at once: about 0.1 ms.
    """
    unit, began, pause = work.unit(part, number), time.monotonic(), FIRST_PAUSE
    while (found := unit.marker(work.fingerprints[part])) is None:
        if work.left_out(number).is_file():
            return None
        work.attempt.refuse_if_overtaken(f"unit {number}")
        if isinstance(unit.folder, RemotePath) or time.monotonic() - began > PATIENCE:
            raise _not_seen(work, part, number)
        stopping.check()
        _stir(unit.folder)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return found


def _stir(folder: Path) -> None:
    """Change something in the folder of a part, and in those above it up to that of all units, which may be new too."""
    for place in (folder.parent.parent, folder.parent, folder):
        made = partial(place / "look")
        with contextlib.suppress(OSError):  # a full disk, a folder that is not seen either: then only time helps
            made.touch()
            made.unlink()


def _not_seen(work: ExtractWork, part: str, number: int) -> StoreError:
    unit = work.unit(part, number)
    marker, again = unit.folder / f"{unit.name}.done", "the same command again: only what is not done is redone"
    if isinstance(marker, RemotePath):
        return StoreError(f"unit {number} of {part} was done, but its marker {marker} is gone", hint=again)
    return StoreError(
        f"unit {number} of {part} is done, but for {format_duration(PATIENCE)} {socket.gethostname()} has not seen its "
        f"marker {marker}",
        hint=f"do all machines have the same folder there? mount NFS with lookupcache=positive, then {again}",
    )
