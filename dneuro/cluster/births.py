"""What tells a process of this machine from every other that had its number, whatever is done to the clock.

The time at which a process began is the kernel's count since the start of the machine, put on the clock: it moves when
the clock is set. The count itself does not, nor does the name that the kernel gives to each of its starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_PROC = Path("/proc")


def birth_of(pid: int) -> dict[str, Any]:
    """Return what `is_alive` asks for, as JSON can hold it.

    Parameters
    ----------
    pid : int
        Number of a process.

    Returns
    -------
    dict
        ``started`` and ``boot``, seconds on the clock (0 of a process that is over); on Linux also ``ticks``, the
        kernel's count when it began, and ``boot_id``, the name of this start of the machine.
    """
    try:
        started = float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:  # over already
        started = 0.0
    return {"started": started, "boot": psutil.boot_time(), "ticks": _ticks(pid), "boot_id": _boot_id()}


def is_alive(pid: int, birth: Mapping[str, Any]) -> bool:
    """Return whether the process of this number is there, has not ended, and is the one that `birth_of` was asked for.

    Parameters
    ----------
    pid : int
        Number of a process.
    birth : mapping
        What `birth_of` returned, among other keys perhaps; without ``ticks`` and ``boot_id`` the clock is asked.
    """
    try:
        process = psutil.Process(pid)
        return _is_same(process, birth) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_same(process: psutil.Process, birth: Mapping[str, Any]) -> bool:
    known, now = (birth.get("ticks"), birth.get("boot_id")), (_ticks(process.pid), _boot_id())
    if None not in known and None not in now:
        return known == now
    same_boot = "boot" not in birth or abs(birth["boot"] - psutil.boot_time()) < 5
    return same_boot and bool(abs(process.create_time() - birth["started"]) < 1)


def _ticks(pid: int) -> int | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        return int(text.rpartition(")")[2].split()[19])  # the name in brackets may hold anything
    except (OSError, ValueError, IndexError):
        return None


def _boot_id() -> str | None:
    try:
        return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip() or None
    except OSError:
        return None
