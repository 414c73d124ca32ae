"""Signals that tell a process to end, for one that has machines elsewhere, which nobody else would end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

ENDS = (signal.SIGTERM, signal.SIGHUP)
"""A polite kill; a terminal that was closed, or a connection to it that was lost."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal that would end this process end the block as Ctrl-C does: workers stopped, what is done kept.

    Who ends a session sends both, and the shell the SIGHUP once more: that is one end, which the others leave to its
    work. Only a second SIGTERM after a first one interrupts that, too, as a second Ctrl-C does.

    Those for which the program has a handler of its own are left as they are, and so is a SIGHUP that it ignores (as
    under ``nohup``); all of them are where the block is not in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for one in taken:
            if one == signal.SIGHUP or one != number:
                signal.signal(one, signal.SIG_IGN)  # so what is started from here on has it, too, such as scancel
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDS}
    taken = [number for number, handler in before.items()
             if handler is signal.SIG_DFL or (handler is signal.SIG_IGN and number == signal.SIGTERM)]  # fmt: skip
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
