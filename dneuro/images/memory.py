"""Memory of pictures that are being decoded: threads share what a process has for them, and wait for one another."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from dneuro.allocation import release_memory
from dneuro.errors import MemoryLimitError, UnreadableImageError
from dneuro.images.preprocess import view_bytes
from dneuro.quantities import MiB, format_bytes
from dneuro.spec.network import Preprocessing

LEAST = 128 * MiB
"""What a process has for pictures in any case, unless all need less: one of 15 million pixels takes it."""

LARGE = 64 * MiB
"""After a picture that took more than this, freed memory goes back to the system: see `dneuro.allocation`."""

MARGIN = 0.9
"""Share of a worker's memory that may be given away: some is lost between blocks of the allocator."""


class PictureMemory:
    """What one process may take for pictures that are being read, decoded and resized.

    Small pictures are decoded side by side; one that needs what others hold waits for them, in the order of asking; one
    that needs more than there is at all is refused before it is decoded.

    Parameters
    ----------
    total : int, optional
        In bytes; none sets no limit.
    besides : int
        What the process takes besides, in bytes, for messages.
    promised : int
        A picture that takes no more than this, in bytes, is one that others count on: where there is less, it ends the
        reading instead of being left out.
    """

    def __init__(self, total: int | None = None, besides: int = 0, promised: int = 0) -> None:
        self.total = total
        self._besides, self._promised = besides, promised
        self._free = total or 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def share(self, preprocessing: Preprocessing | None = None) -> Share:
        """Return the share of one picture, to be used in a ``with`` block around all that holds its pixels.

        Parameters
        ----------
        preprocessing : Preprocessing, optional
            What becomes of the picture within the block.
        """
        return Share(self, preprocessing)

    def take(self, count: int) -> None:
        """Take `count` bytes, which there are in all; wait for them. Whoever waits holds none."""
        if self.total is None:
            return
        place = object()
        with self._changed:
            self._waiting.append(place)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is place and self._free >= count)
                self._free -= count
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()

    def take_now(self, count: int) -> bool:
        """Take `count` bytes if they are free; return whether they were."""
        if self.total is None:
            return True
        with self._changed:
            if self._free < count:
                return False
            self._free -= count
            return True

    def give_back(self, count: int) -> None:
        """Give `count` bytes back."""
        if self.total is None or count == 0:
            return
        with self._changed:
            self._free += count
            self._changed.notify_all()

    def check(self, count: int, what: str) -> None:
        """Refuse what needs more than there is.

        Raises
        ------
        UnreadableImageError
            With the numbers, and what a worker would need.
        MemoryLimitError
            The same, if the picture was promised to be read.
        """
        if self.total is None or count <= self.total:
            return
        wanted = format_bytes(1.05 * (self._besides + count) / MARGIN)
        said = f"{what} takes {format_bytes(count)} to read, and a worker has {format_bytes(self.total)} for pictures"
        if count <= self._promised:
            raise MemoryLimitError(
                f"{said}; when the store was begun it had {format_bytes(self._promised)}, and a picture that fits into "
                "that is masked in no part of it",
                hint=f"workers with {wanted} each, a smaller batch or fewer layers at once: what is done stays done; "
                "or another store:, where it is masked",
            )
        raise UnreadableImageError(f"{said}; workers with {wanted} each, and another store, would read it")


class CrowdedError(Exception):
    """There is not enough memory now: let go of what was read, and begin again after `Share.wait`."""


class Share:
    """What one picture holds of a `PictureMemory`; given back at the end of the ``with`` block."""

    def __init__(self, memory: PictureMemory, preprocessing: Preprocessing | None) -> None:
        self._memory, self._preprocessing = memory, preprocessing
        self._file = self._needed = self._held = 0

    def file(self, size: int, where: str) -> None:
        """Take what reading a file takes; wait for it.

        Raises
        ------
        UnreadableImageError, MemoryLimitError
            If it is more than there is at all.
        """
        self._file = self._needed = 2 * size  # as it comes, and put together
        self._memory.check(self._needed, f"{where}: a file of {size:,} bytes")
        self.wait()

    def picture(self, width: int, height: int, decoding: int, where: str) -> None:
        """Take what decoding and resizing the picture of that file takes besides.

        Raises
        ------
        UnreadableImageError, MemoryLimitError
            If it is more than there is at all.
        CrowdedError
            If others hold it.
        """
        self._need(width, height, decoding, where)
        if self._needed > self._held:
            if not self._memory.take_now(self._needed - self._held):
                raise CrowdedError
            self._held = self._needed

    def row(self, width: int, height: int, reading: int, where: str) -> None:
        """Take what a picture takes that comes as pixels; wait for it.

        Raises
        ------
        UnreadableImageError, MemoryLimitError
            If it is more than there is at all.
        """
        self._need(width, height, reading, where)
        self.wait()

    def _need(self, width: int, height: int, reading: int, where: str) -> None:
        after = 0 if self._preprocessing is None else view_bytes(width, height, self._preprocessing)
        self._needed = self._file + max(reading, after)
        self._memory.check(self._needed, f"{where}: a picture of {width} × {height} = {width * height:,} pixels")

    def wait(self) -> None:
        """Wait, without holding any, for what is needed as far as that is known."""
        self._memory.give_back(self._held)
        self._held = 0
        self._memory.take(self._needed)
        self._held = self._needed

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held > LARGE and self._memory.total is not None:
            release_memory()
        self._memory.give_back(self._held)
        self._held = 0


NO_LIMIT = PictureMemory().share()
"""The share of a picture that may take what it needs."""
