"""One run at a time works on a store."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from dneuro.errors import BusyError, StoreError
from dneuro.extract.work import Attempt
from dneuro.store.files import Location, claim, disk_error, read_json, write_json
from dneuro.store.remote import RemotePath

HEARTBEAT = 10.0
"""Seconds between two signs of life."""

SILENCE = 90.0
"""Seconds without one after which a run on another machine counts as dead."""


_held: set[Location] = set()
"""Leases of this process; one that it no longer holds has ended, though the disk may have been too full to say so."""


class Lease:
    """The right to work on a store, from `acquire` to `release`.

    Parameters
    ----------
    attempt : Attempt
        The run's number, and the folder of all runs.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._file = attempt.folder / f"{attempt.number:03d}" / "lease.json"
        self._over = threading.Event()
        self._content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "boot": psutil.boot_time(),
            "ended": None,
        }
        write_json(self._file, self._content)
        _held.add(self._file)
        self._pulse = threading.Thread(target=self._beat, name="dneuro-lease", daemon=True)
        self._pulse.start()

    @classmethod
    def acquire(cls, folder: Location) -> Lease:
        """Take over from the run before, if it has ended or is dead.

        Raises
        ------
        BusyError
            If another run is at work.
        StoreError
            If nothing can be written there.
        """
        folder = folder.absolute()  # workers may have started in another folder
        if isinstance(folder, Path):
            _make(folder)
        while True:
            newest = refuse_if_busy(folder)
            if claim(folder / f"{newest + 1:03d}"):
                return cls(Attempt(folder, newest + 1))
            # another one was quicker: look at it

    def release(self) -> None:
        """End the run."""
        self._over.set()
        self._pulse.join()
        _held.discard(self._file)
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
            write_json(self._file, {**self._content, "ended": time.time()})

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the next beat may do better; what lasts shows elsewhere
                if isinstance(self._file, Path):
                    self._file.touch()
                else:
                    write_json(self._file, self._content)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) or StoreError(
            f"the folder {folder} cannot be made: {error.strerror}", hint="another path as store:"
        ) from error


def refuse_if_busy(folder: Location) -> int:
    """Return the number of the last run, 0 if there was none.

    Raises
    ------
    BusyError
        If it is at work.
    """
    runs = folder.iterdir() if isinstance(folder, RemotePath) or folder.is_dir() else ()
    newest = max((int(path.name) for path in runs if path.name.isdigit()), default=0)
    if newest:
        _refuse_if_alive(folder / f"{newest:03d}")
    return newest


def _refuse_if_alive(folder: Location) -> None:
    lease = read_json(folder / "lease.json")
    path = folder / ("lease.json" if lease else "claimed" if isinstance(folder, RemotePath) else "")
    silence = time.time() - path.stat().st_mtime
    if lease is None:
        alive = silence < HEARTBEAT  # just made, its lease not yet written
    elif lease["ended"] is not None:
        alive = False
    elif lease["host"] == socket.gethostname():
        here = lease["pid"] == os.getpid() and path not in _held
        alive = abs(lease["boot"] - psutil.boot_time()) < 5 and _is_running(lease) and not here
    else:
        alive = silence < SILENCE
    if alive:
        who = f"process {lease['pid']} on {lease['host']}" if lease else "another process"
        raise BusyError(
            f"{who} is at work on this store (run {int(folder.name)})",
            hint="wait for it or stop it; what it has done stays done",
        )


def _is_running(lease: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(lease["pid"])
        same = bool(abs(process.create_time() - lease["started"]) < 1)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
