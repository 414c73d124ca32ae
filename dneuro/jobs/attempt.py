"""One attempt at a job: its lease, its log, its state while it lasts and when it has ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Self

from dneuro import events
from dneuro.cluster import DriverRef
from dneuro.errors import CancelledError, DneuroError, PartialError, SchedulerLostError
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import Asked, Lease
from dneuro.jobs.progress import Progress
from dneuro.store.files import Location
from dneuro.store.remote import RemotePath

TICK = 1.0
"""Seconds between two states written on a disk."""

REMOTE_TICK = 5.0
"""Seconds between two states written into an object store, where each of them is a request that is paid for."""

INTERRUPTED = 143
"""Exit code of a driver whose machine, or the scheduler's, was taken away: it is to be started again."""

TOLD = {
    "type": "Interrupted", "hint": None,
    "message": "its driver was told to stop, and nobody has cancelled the job; what is done stays done",
}  # fmt: skip
"""Error of an attempt that its machine has ended, or the queue, or a signal by hand."""

ENDED = ("done", "partial", "failed", "cancelled")
"""States in which a job stays until somebody acts."""


class Attempt:
    """What is kept of one attempt; use it in a ``with`` block, which is the attempt.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    steps : list of str
        Names of its steps.
    store : str
        Where its results go.
    ask : callable, optional
        Says of an earlier driver elsewhere whether it lives.
    detached : bool
        Nobody sits at the driver: a signal means that its machine is taken away, unless the job was cancelled.
    driver : DriverRef, optional
        How the driver that makes the attempt is asked for from elsewhere.

    Raises
    ------
    BusyError
        If another driver is at work on the job.
    """

    def __init__(
        self, folder: JobFolder, steps: list[str], store: str, *, ask: Asked | None = None, detached: bool = False,
        driver: DriverRef | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.detached = folder, detached
        me = None if driver is None else driver.to_dict()
        self._lease = Lease.acquire(folder.attempts, ask=ask, wait=detached, what="job", driver=me)
        self.number = self._lease.attempt.number
        self.place: Location = folder.attempt(self.number)
        self.progress = Progress(steps)
        self._status: dict[str, Any] = {
            "id": folder.id, "store": store, "state": "starting", "attempt": self.number, "started": time.time(),
            "host": os.uname().nodename, "pid": os.getpid(), "report": None, "error": None, "exit_code": None,
        }  # fmt: skip
        self._log = _Log(self.place / "events.jsonl")
        self._client: Any = None
        self._changed = True
        self._over = threading.Event()
        self._worked_by = threading.current_thread()
        self._stack = contextlib.ExitStack()
        self._write()
        remote = isinstance(folder.path, RemotePath)
        self._ticker = threading.Thread(
            target=self._tick, args=(REMOTE_TICK if remote else TICK,), name="dneuro-status", daemon=True
        )

    def takes_retry(self) -> bool:
        """Return whether this attempt is to try again what earlier ones left out; those after it are not."""
        asked = self.folder.path / "retry.json"
        wanted = asked.is_file()
        asked.unlink(missing_ok=True)
        return wanted

    def machines_are_up(self, client: Any) -> None:
        """Note that work begins, and watch the workers of a dask client."""
        self._client = client if hasattr(client, "scheduler_info") else None
        self._status["state"] = "running"
        self._write()

    def machines_go_down(self) -> None:
        """Look at the workers once more, and no longer."""
        self._look()
        self._client = None

    def reached(self, **found: Any) -> None:
        """Note what came of the job, such as where its report is."""
        self._status.update(found)

    def __enter__(self) -> Self:
        self._stack.enter_context(events.listening(self._keep))
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.close()
            self._over.set()
            self._ticker.join()
        finally:  # whoever ends the job may do so just now
            self._over.set()
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Write down how the attempt has ended, and give the lease back."""
        state, code = self._end_of(error)
        self._status |= {"state": state, "exit_code": code, "ended": time.time()}
        if error is not None:
            self.progress.fail()
            told = state == "interrupted" and not isinstance(error, SchedulerLostError)
            self._status["error"] = dict(TOLD) if told else _described(error)
            message = TOLD["message"] if told else str(error)
            self._log.add({"kind": "failed", "message": message, "time": time.time(), "trace": _trace(error)})
        self._log.close()
        with contextlib.suppress(OSError):  # a full disk must not hide why the attempt ended
            self._write()
        self._lease.release()

    def _end_of(self, error: BaseException | None) -> tuple[str, int]:
        """Return state and exit code."""
        if error is None:
            return "done", 0
        if isinstance(error, PartialError):
            return "partial", error.exit_code
        if isinstance(error, KeyboardInterrupt | CancelledError):
            if self.detached and not self._is_to_end():
                return "interrupted", INTERRUPTED
            return "cancelled", CancelledError.exit_code
        if isinstance(error, SchedulerLostError) and self.detached:
            return "interrupted", INTERRUPTED
        return "failed", getattr(error, "exit_code", DneuroError.exit_code)

    def _keep(self, event: events.Event) -> None:
        self.progress.take(event)
        self._log.add(event.to_dict())
        self._changed = True

    def _tick(self, period: float) -> None:
        beats = 0
        while not self._over.wait(period):
            beats += 1
            if beats % 2 == 0:
                self._look()
            if beats % 2 == 0 and (self._is_to_end() or self._is_overtaken()):
                if not self._over.is_set():
                    self._interrupt()
                return
            if self._changed:
                self._changed = False
                try:
                    self._write()
                    self._log.flush()
                except OSError:  # the next one may do better
                    self._changed = True

    def _is_to_end(self) -> bool:
        """Return whether somebody asked for the end of the job; a disk that does not answer has not said so."""
        try:
            return bool(self.folder.read("cancel"))
        except OSError:
            return False

    def _is_overtaken(self) -> bool:
        """Return whether another driver has taken over from this one, at which nobody sits.

        Its queue may have given up a node that lives on; until this one ends, it would keep its own workers there.
        """
        try:
            return self.detached and not self._lease.attempt.is_newest
        except OSError:
            return False

    def _interrupt(self) -> None:
        """End the attempt: whoever cancels may be on another machine, or must not end all of this process."""
        if self.detached:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            _interrupt(self._worked_by)

    def _look(self) -> None:
        client = self._client
        if client is not None:
            with contextlib.suppress(Exception):  # the connection may end at any time
                self.progress.look(client)
                self._changed = True

    def _write(self) -> None:
        """Write the state, unless a later attempt has taken over: the state is that one's, and this may awake late."""
        if self._lease.attempt.is_newest:
            self.folder.remember("status", {**self._status, **self.progress.to_dict()})


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, as Ctrl-C does in the main one."""
    assert thread.ident is not None
    if thread is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
        signal.pthread_kill(thread.ident, signal.SIGINT)  # this one also ends whatever the thread waits in
        return
    # Elsewhere a signal does not arrive, and a shell script has what it starts behind its back ignore this one.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))


def _described(error: BaseException) -> dict[str, Any]:
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    return {"type": type(error).__name__, "message": message, "hint": getattr(error, "hint", None)}


def _trace(error: BaseException) -> str:
    """Return the traceback of an error that nobody raised on purpose."""
    on_purpose = isinstance(error, DneuroError | KeyboardInterrupt)
    return "" if on_purpose else "".join(traceback.format_exception(error))


class _Log:
    """JSON lines: on a disk each is written at once, in an object store all of them now and then."""

    def __init__(self, place: Location) -> None:
        self._place = place
        self._lines: list[str] = []
        self._file = None if isinstance(place, RemotePath) else place.open("a")
        self._shown: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, default=str) + "\n"
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: what is wrong is said elsewhere
                self._file.write(line)
                self._file.flush()
        elif entry["kind"] != "progress" or entry["time"] - self._shown.get(entry["step"], 0) > 2 * REMOTE_TICK:
            self._shown[entry.get("step", "")] = entry["time"]
            with self._lock:
                self._lines.append(line)

    def flush(self) -> None:
        if self._file is None:
            with self._lock:
                content = "".join(self._lines).encode()
            self._place.write_bytes(content)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.flush()
            if self._file is not None:
                self._file.close()
