"""What this process may still take: what the machine has free, within the limits that the process lives under."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux says what a group of processes (a container, a Slurm job, a systemd service) may take."""

_OWN = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60


def available() -> int:
    """Return the bytes that this process may still take without swapping or being killed."""
    return max(0, min([int(psutil.virtual_memory().available), *_left()]))


def installed() -> int:
    """Return the bytes that this process could take if no other were there."""
    return min([int(psutil.virtual_memory().total), *_limits()])


def _limits() -> Iterator[int]:
    """Yield the limit of every control group that this process is in and that has one."""
    for folder, limit_name, *_ in _groups():
        limit = _limit(folder / limit_name)
        if limit is not None:
            yield limit


def _limit(file: Path) -> int | None:
    """Return what a file with a limit says; None if there is no limit, or it cannot be read."""
    try:
        text = file.read_text().strip()
        return None if text == "max" or int(text) >= _UNLIMITED else int(text)
    except (OSError, ValueError):  # no such file here, or no leave to read it: nothing is known of this group
        return None


def _left() -> Iterator[int]:
    """Yield what is left of the limit of every control group that this process is in, its own and those above."""
    for folder, limit_name, used_name, cache_name in _groups():
        limit = _limit(folder / limit_name)
        if limit is None:
            continue
        try:
            used = int((folder / used_name).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            cache = next((int(line.split()[1]) for line in lines if line.split()[:1] == [cache_name]), 0)
        except (OSError, ValueError):
            continue
        yield limit - max(0, used - cache)  # of files read, what nobody needs is given up first


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Yield (folder, names of limit, use and droppable cache) of each group, of version 2 and of version 1."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if not controllers:
            names, root = ("memory.max", "memory.current", "inactive_file"), CGROUPS
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = CGROUPS / "memory"
        else:
            continue
        below = root / place.lstrip("/")
        for folder in (below, *below.parents):  # in a container the place may be named as the host sees it: the root
            if folder.is_relative_to(root):
                yield folder, *names
