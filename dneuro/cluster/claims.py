"""What one process at a time may do: whoever makes a file first has claimed it, until it takes it away or is dead."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dneuro.cluster.births import birth_of, is_alive
from dneuro.errors import BusyError

FRESH = 10.0
"""Seconds for which a claim without a word in it counts: it was made, and is being written."""


@contextlib.contextmanager
def claimed(place: Path, what: str) -> Iterator[None]:
    """Hold the claim on a place while the block lasts.

    The claim is a file beside the place, ``.NAME.claim-1``. Where that is a dead process's the next number is the one
    to be made, so that of several which find it dead, too, one alone succeeds. Whoever has made one looks once more,
    for what it saw before may be long ago, and gives way to any other; then it takes the dead ones away.

    Parameters
    ----------
    place : Path
        File or folder; it need not be there, the folder that it is in must.
    what : str
        What is done to it, in errors: ``"the cluster mine is being started"``.

    Raises
    ------
    BusyError
        If another process has the claim, or may have it: it is another machine's.
    OSError
        If nothing can be written there.
    """
    while True:
        dead = _refuse_if_taken(place, what)
        mine = place.with_name(f"{_beginning(place)}{max(dead, default=0) + 1}")
        try:
            handle = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:  # another one was quicker: look at it
            continue
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), **birth_of(os.getpid())}, file)
        for path in _refuse_if_taken(place, what, but=mine).values():
            path.unlink(missing_ok=True)  # nobody else does: only who has the claim
        yield
    finally:
        mine.unlink(missing_ok=True)


def _refuse_if_taken(place: Path, what: str, but: Path | None = None) -> dict[int, Path]:
    """Return the claims of dead processes, by number; raises BusyError if there is another one."""
    beginning, dead = _beginning(place), dict[int, Path]()
    for path in place.parent.iterdir():
        number = path.name.removeprefix(beginning)
        is_claim = path.name.startswith(beginning) and number.isdigit()
        if is_claim and path != but and _is_dead(path, what):
            dead[int(number)] = path
    return dead


def _is_dead(path: Path, what: str) -> bool:
    """Return whether a claim is a dead process's, False if it is not there any more; raises BusyError otherwise."""
    try:
        who = _read(path)
        fresh = time.time() - path.stat().st_mtime < FRESH
    except FileNotFoundError:
        return False
    if not who:
        if fresh:
            raise BusyError(f"{what} by another process", hint="try again when that has ended")
    elif who["host"] != socket.gethostname():
        raise BusyError(
            f"{what} by process {who['pid']} on {who['host']}, and from here nobody can tell whether that has ended",
            hint=f"try again when it has; where it was killed: rm {shlex.quote(str(path))}",
        )
    elif is_alive(who["pid"], who):
        raise BusyError(f"{what} by process {who['pid']}", hint="try again when that has ended")
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: Any = json.loads(path.read_text())
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) and {"host", "pid"} <= kept.keys() else {}


def _beginning(place: Path) -> str:
    return f".{place.name}.claim-"
