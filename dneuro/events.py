"""Progress and log lines as events: the library emits them, whoever listens draws or keeps them.

The library never prints. The command line draws events, a job's log file keeps them, a notebook may
collect them::

    with events.listening(seen.append):
        dn.svd(x, rank=8)
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["started", "progress", "finished", "note", "warning", "failed"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Parameters
    ----------
    kind : str
        ``started``, ``progress``, ``finished`` and ``failed`` belong to a step; ``note`` and ``warning``
        are lines of text.
    step : str
        The step or operation it belongs to; empty for the run as a whole. A step of a member of a series has the
        member's name before its own: ``alexnet/svd``.
    parent : str
        The step of a job inside which the operation runs; empty if there is none.
    message : str
        One line for a person.
    done, total : float
        Work done and in all, in units of `what`.
    what : str
        What is counted: ``"images"``, ``"blocks"``, ``"epochs"``.
    data : dict
        More fields for machines.
    time : float
        Seconds since the epoch.
    """

    kind: Kind
    step: str = ""
    message: str = ""
    parent: str = ""
    done: float = 0
    total: float = 0
    what: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def to_dict(self) -> dict[str, Any]:
        """Return the event as a plain dictionary, for a JSON line."""
        return asdict(self)


class Pace:
    """How fast a step is of late: over the later half of its time, so that starting up is soon forgotten."""

    def __init__(self) -> None:
        self._began = 0.0
        self._seen: deque[tuple[float, float]] = deque()

    def take(self, event: Event) -> None:
        """Follow an event of the step; work that was done before its first one does not count."""
        if event.kind == "started" or not self._seen:
            self._began = event.time
            self._seen.clear()
        self._seen.append((event.time, event.done))
        half = (self._began + event.time) / 2
        while len(self._seen) > 2 and self._seen[1][0] <= half:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Work done per second; 0 while nothing is known."""
        if not self._seen:
            return 0.0
        (before, had), (now, has) = self._seen[0], self._seen[-1]
        return max(0.0, has - had) / (now - before) if now > before else 0.0


Listener = Callable[[Event], object]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("dneuro_listeners", default=())
_said: ContextVar[set[str] | None] = ContextVar("dneuro_said", default=None)
_parent: ContextVar[str] = ContextVar("dneuro_parent", default="")
_member: ContextVar[str] = ContextVar("dneuro_member", default="")


def emit(kind: Kind, step: str = "", message: str = "", **fields: Any) -> None:
    """Tell every listener; without listeners this costs next to nothing."""
    listeners = _listeners.get()
    if listeners:
        parent = _parent.get()
        event = Event(kind, step if parent else step_of(_member.get(), step), message, parent, **fields)
        for listener in listeners:
            listener(event)


def emit_once(kind: Kind, step: str = "", message: str = "") -> None:
    """Tell every listener what holds for longer than a call, unless it was told within this ``with`` block."""
    said = _said.get()
    if said is not None and message not in said:
        said.add(message)
        emit(kind, step, message)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with every event emitted inside the ``with`` block, in this context."""
    token, said = _listeners.set((*_listeners.get(), listener)), _said.set(set())
    try:
        yield
    finally:
        _listeners.reset(token)
        _said.reset(said)


@contextlib.contextmanager
def only(listener: Listener) -> Iterator[None]:
    """Call `listener`, and nobody else, with every event emitted inside the ``with`` block."""
    token, said = _listeners.set((listener,)), _said.set(set())
    try:
        yield
    finally:
        _listeners.reset(token)
        _said.reset(said)


@contextlib.contextmanager
def inside(step: str) -> Iterator[None]:
    """Mark every event emitted inside the ``with`` block as part of the step of a job."""
    token = _parent.set(step_of(_member.get(), step))
    try:
        yield
    finally:
        _parent.reset(token)


@contextlib.contextmanager
def of_member(member: str) -> Iterator[None]:
    """Let the steps of a job that are worked on inside the ``with`` block be those of a member of a series."""
    token = _member.set(member)
    try:
        yield
    finally:
        _member.reset(token)


def step_of(member: str, step: str) -> str:
    """Return the name that a step of a member has in events."""
    return f"{member}/{step}" if member and step else step
