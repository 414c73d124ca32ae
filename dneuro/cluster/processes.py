"""Drivers that are processes of this machine: started apart from this one, found again, ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import psutil

from dneuro.cluster.backends import DriverRef, DriverState, Folder, NeededFile
from dneuro.cluster.births import birth_of, is_alive
from dneuro.cluster.security import remove_keys
from dneuro.errors import DneuroError, UsageError

LOG = "driver.log"

_started_here: list[subprocess.Popen[bytes]] = []
"""What this process has started and may outlive it: kept, for Python complains of one that it loses sight of."""


def start(backend: str, job_folder: Folder, command: Sequence[str]) -> DriverRef:
    """Start `command` in a session of its own, which outlives this process and its terminal.

    Parameters
    ----------
    backend : str
        Name of the backend.
    job_folder : Path or RemotePath
        The job's; what the process prints is added to its `log_of`.
    command : sequence of str
        What to start.
    """
    log = log_of(job_folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    _started_here.append(process)
    return _ref(backend, process.pid)


def log_of(job_folder: Folder) -> Path:
    """Return the file with a driver's output: in the job's folder; if that is in an object store, in this user's cache.

    A process writes on, and an object is written whole.
    """
    if isinstance(job_folder, Path):
        return job_folder / LOG
    return cache() / "drivers" / f"{Path(str(job_folder)).name}.log"


def cache() -> Path:
    """Return the folder of this user's cache that is dneuro's."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dneuro"


def this_process(backend: str, *, attended: bool = False) -> DriverRef:
    """Return the reference to this process, as a driver; `attended` if somebody sits at it: it may be a notebook."""
    ref = _ref(backend, os.getpid())
    if attended:
        ref.details["attended"] = True
    return ref


def _ref(backend: str, pid: int) -> DriverRef:
    return DriverRef(backend, str(pid), {"host": socket.gethostname(), **birth_of(pid)})


def state(ref: DriverRef) -> DriverState:
    """Return whether the process runs; ``"unknown"`` from another machine."""
    if ref.details.get("host") != socket.gethostname():
        return "unknown"
    return "running" if _process(ref) else "gone"


def stop(ref: DriverRef, grace: float) -> None:
    """Send SIGTERM to the process, and after `grace` seconds SIGKILL to it and its children.

    Raises
    ------
    DneuroError
        If it runs on another machine.
    """
    if state(ref) == "unknown":
        raise DneuroError(
            f"the driver is process {ref.id} of {ref.details.get('host')}, this is {socket.gethostname()}",
            hint=f"the same command on {ref.details.get('host')}",
        )
    process = _process(ref)
    if process is None:
        return
    family = _children(process)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    over = time.monotonic() + grace
    while _process(ref) and time.monotonic() < over:
        _reap(process.pid)
        time.sleep(0.05)
    for one in {*family, *_children(process)} | ({process} if _process(ref) else set()):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    _reap(process.pid)


def as_path(folder: Folder | str) -> Path:
    """Return the folder as a path of this machine's file system.

    Raises
    ------
    UsageError
        If it is a prefix of an object store.
    """
    if isinstance(folder, Path):
        return folder
    if "://" in str(folder):
        raise UsageError(
            f"{folder} is in an object store; scripts, logs and keys of these machines need a folder",
            hint="state: a folder that all machines see; backend local, address and kubernetes take s3://…",
        )
    return Path(str(folder))


def shown(command: Sequence[str]) -> str:
    """Return a command line that a shell reads as `command`."""
    return shlex.join(command)


def _children(process: psutil.Process) -> set[psutil.Process]:
    try:
        return set(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _process(ref: DriverRef) -> psutil.Process | None:
    """Return the process, unless it has ended and its number is another's."""
    _reap(int(ref.id))
    try:
        return psutil.Process(int(ref.id)) if is_alive(int(ref.id), ref.details) else None
    except psutil.NoSuchProcess:
        return None


def _reap(pid: int) -> None:
    """Collect the process if it is a child of this one; else whoever is its parent does."""
    for process in _started_here:
        if process.pid == pid:
            process.poll()


class DriversHere:
    """The drivers of a backend whose drivers are processes of this machine, and whose workers end without them."""

    kind: ClassVar[str]
    """Name of the backend."""

    def check_files(self, files: Iterable[NeededFile]) -> None:
        """Refuse nothing: the driver finds what is found here, and which disks the workers see nobody can tell."""

    def start_driver(self, job_folder: Folder, command: Sequence[str], name: str) -> DriverRef:
        """Start the driver as a process of its own session."""
        return start(self.kind, job_folder, command)

    def this_driver(self) -> DriverRef:
        """Return the reference to this process."""
        return this_process(self.kind)

    def driver_state(self, ref: DriverRef) -> DriverState:
        """Return whether the driver's process runs."""
        return state(ref)

    def why_waiting(self, ref: DriverRef) -> str:
        """Return nothing: a process does not wait to be started."""
        return ""

    def stop_driver(self, ref: DriverRef, *, grace: float) -> None:
        """End the driver's process; workers that it has started end with it, others stay."""
        stop(ref, grace)

    def clean_up(self, job_folder: Folder) -> list[str]:
        """Remove the keys of runs that were killed; return nothing: no machine is left behind."""
        if isinstance(job_folder, Path):
            remove_keys(job_folder)
        return []

    def preview(self, job_folder: Folder, command: Sequence[str], name: str) -> str:
        """Return the command line of the driver."""
        return f"{shown(command)}\n"
