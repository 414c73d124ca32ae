"""Writing behind: chunks are compressed, written and read back on a thread of their own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from numpy.typing import NDArray


class Writer(Protocol):
    """What takes the rows of one array."""

    def add(self, rows: NDArray[Any]) -> None:
        """Take the next rows (images, …)."""

    def finish(self) -> int:
        """Return the checksum, once all rows have been written."""

    def files(self) -> list[Path]:
        """Return the files of this machine, or of a disk that it shares, in which they are."""


class Behind:
    """One thread that writes what it is given, in order; use it in a ``with`` block, which ends the thread.

    An error of a writer is raised by the next `turn`, or by `finish` of any of its writers; after it nothing more is
    written.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._last: list[Future[None]] = []
        self._now: list[Future[None]] = []
        self._failed = False

    def follow(self, writer: Writer) -> Writer:
        """Return a writer that hands its rows to the thread. They must not change any more."""
        return _Follower(self, writer)

    def submit(self, writer: Writer, rows: NDArray[Any]) -> None:
        """Have rows written."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="dneuro-write")
        self._now.append(self._pool.submit(self._write, writer, rows))

    def _write(self, writer: Writer, rows: NDArray[Any]) -> None:
        if self._failed:
            return
        try:
            writer.add(rows)
        except BaseException:
            self._failed = True
            raise

    def turn(self) -> None:
        """Wait until what came before the last turn is written: no more than two turns' rows are held."""
        _settle(self._last)
        self._last, self._now = self._now, []

    def settle(self) -> None:
        """Wait until everything is written."""
        self.turn()
        self.turn()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class _Follower:
    """A writer whose rows are written by the thread."""

    def __init__(self, behind: Behind, writer: Writer) -> None:
        self._behind, self._writer = behind, writer

    def add(self, rows: NDArray[Any]) -> None:
        self._behind.submit(self._writer, rows)

    def finish(self) -> int:
        self._behind.settle()
        return self._writer.finish()

    def files(self) -> list[Path]:
        self._behind.settle()
        return self._writer.files()


def _settle(calls: list[Future[None]]) -> None:
    for call in calls:
        call.result()
