"""One run at a time works on a store, and one driver at a time on a job."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dneuro.cluster.births import birth_of, is_alive
from dneuro.errors import BusyError, StoreError
from dneuro.extract.work import Attempt
from dneuro.quantities import format_duration
from dneuro.store.files import Location, claim, disk_error, read_json, write_json
from dneuro.store.remote import RemotePath

HEARTBEAT = 10.0
"""Seconds between two signs of life."""

SILENCE = 90.0
"""Seconds without one after which a run on another machine counts as dead."""

_held: set[Location] = set()
"""Leases of this process; one that it no longer holds has ended, though the disk may have been too full to say so."""

_dead: set[tuple[Any, ...]] = set()
"""Processes elsewhere that are known to be dead, as `_process` names them; they may have left other leases."""


@dataclass(frozen=True)
class Holder:
    """Who works in a folder of attempts, or was the last to do so.

    Parameters
    ----------
    number : int
        Number of the attempt.
    lease : dict or None
        What its lease says: host, pid, ...; None while it is being made.
    silence : float
        Seconds since its last sign of life.
    alive : bool or None
        None if nobody can tell from here: it is on another machine and not yet silent for `SILENCE`.
    """

    number: int
    lease: dict[str, Any] | None
    silence: float
    alive: bool | None

    def __str__(self) -> str:
        return f"process {self.lease['pid']} on {self.lease['host']}" if self.lease else "another process"


Asked = Callable[[Holder], bool | None]
"""Whoever started a run elsewhere may know whether it lives."""


class Lease:
    """The right to work on a store or a job, from `acquire` to `release`.

    Parameters
    ----------
    attempt : Attempt
        The run's number, and the folder of all runs.
    driver : dict, optional
        How this process is asked for from elsewhere.
    """

    def __init__(self, attempt: Attempt, driver: Mapping[str, Any] | None = None) -> None:
        self.attempt = attempt
        self._file = attempt.folder / f"{attempt.number:03d}" / "lease.json"
        self._over = threading.Event()
        self._content = {**_myself(), "driver": driver, "ended": None}
        write_json(self._file, self._content)
        _held.add(self._file)
        self._pulse = threading.Thread(target=self._beat, name="dneuro-lease", daemon=True)
        self._pulse.start()

    @classmethod
    def acquire(
        cls, folder: Location, *, ask: Asked | None = None, wait: bool = False, what: str = "store",
        driver: Mapping[str, Any] | None = None,
    ) -> Lease:  # fmt: skip
        """Take over from the run before, if it has ended or is dead.

        Parameters
        ----------
        folder : Path or RemotePath
            Holds one folder per run.
        ask : callable, optional
            Says of a run on another machine whether it lives, if it knows.
        wait : bool
            Where nobody knows, wait until it has been silent for `SILENCE`, or shows a sign of life.
        what : str
            What the lease is for, in errors.
        driver : dict, optional
            As of the lease.

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
            newest = refuse_if_busy(folder, ask=ask, wait=wait, what=what)
            if claim(folder / f"{newest + 1:03d}"):
                return cls(Attempt(folder, newest + 1), driver)
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


def _myself() -> dict[str, Any]:
    """Return what tells this process from every other, and from an earlier life of the same batch job."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **birth_of(os.getpid()),
        "batch": os.environ.get("DNEURO_DRIVER") or os.environ.get("SLURM_JOB_ID"),
        "life": os.environ.get("DNEURO_DRIVER_LIFE") or os.environ.get("SLURM_RESTART_COUNT", "0"),
    }


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) or StoreError(
            f"the folder {folder} cannot be made: {error.strerror}", hint="another path as store:"
        ) from error


def refuse_if_busy(folder: Location, *, ask: Asked | None = None, wait: bool = False, what: str = "store") -> int:
    """Return the number of the last run, 0 if there was none; the arguments are those of `Lease.acquire`.

    Raises
    ------
    BusyError
        If it is at work.
    """
    first = found = holder(folder, ask)
    while wait and first and found and found.alive is None:
        time.sleep(min(1.0, max(0.0, SILENCE - found.silence)))
        found = holder(folder, ask)
        if found and found.alive is None and found.silence < first.silence:
            found = replace(found, alive=True)
    if found is None:
        return 0
    if found.alive is not False:
        doubt = ""
        if found.alive is None:
            left = format_duration(max(0.0, SILENCE - found.silence))
            doubt = f", as far as one can tell from here; if it stays silent it counts as dead in {left}"
        raise BusyError(
            f"{found} is at work on this {what} (run {found.number}){doubt}",
            hint="wait for it or stop it; what it has done stays done",
        )
    if found.lease is not None and found.lease["ended"] is None and found.lease["host"] != socket.gethostname():
        _dead.add(_process(found.lease))
    return found.number


def holder(folder: Location, ask: Asked | None = None) -> Holder | None:
    """Return who works in a folder of attempts, or was the last to do so; None if nobody ever did."""
    runs = folder.iterdir() if isinstance(folder, RemotePath) or folder.is_dir() else ()
    newest = max((int(path.name) for path in runs if path.name.isdigit()), default=0)
    if not newest:
        return None
    place = folder / f"{newest:03d}"
    lease = read_json(place / "lease.json")
    path = place / ("lease.json" if lease else "claimed" if isinstance(place, RemotePath) else "")
    found = Holder(newest, lease, time.time() - path.stat().st_mtime, None)
    alive = _lives(found, path)
    return replace(found, alive=ask(found) if alive is None and ask is not None else alive)


def _lives(found: Holder, path: Location) -> bool | None:
    lease = found.lease
    if lease is None:
        return found.silence < HEARTBEAT  # just made, its lease not yet written
    if lease["ended"] is not None or _process(lease) in _dead:
        return False
    if _is_earlier_life(lease):  # though its process may be there: a node that the queue has given up still runs it
        return False
    if lease["host"] == socket.gethostname():
        here = lease["pid"] == os.getpid() and path not in _held
        return is_alive(lease["pid"], lease) and not here
    return None if found.silence < SILENCE else False


def _is_earlier_life(lease: dict[str, Any]) -> bool:
    """Return whether a lease is that of an earlier life of the batch job that this process is.

    Slurm counts lives. A pod has a name of its own, and is made when the one before has ended.
    """
    me = _myself()
    if not lease.get("batch") or lease["batch"] != me["batch"] or lease["life"] == me["life"]:
        return False
    counted = lease["life"].isdigit() and me["life"].isdigit()
    return not counted or int(lease["life"]) < int(me["life"])


def _process(lease: dict[str, Any]) -> tuple[Any, ...]:
    return lease["host"], lease["pid"], lease["started"]
