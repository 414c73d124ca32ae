"""Who drives a job, and what those who started its drivers say of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

from dneuro.cluster import Backend, DriverRef, DriverState, processes
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import Holder

Answer = TypeVar("Answer")

ASKED = 10.0
"""Seconds between two questions to a queue about the same driver, where a job is looked at again and again."""


def drivers(folder: JobFolder, last: Holder | None) -> list[DriverRef]:
    """Return the drivers that a job may have: the one that holds its lease, and the one that was started last.

    They are one and the same, but where the next one has yet to begin, or two were started at the same moment: of those
    one gets the lease and the other leaves, and which was started last says nothing.

    Parameters
    ----------
    folder : JobFolder
        The job's.
    last : Holder or None
        Who holds the lease, or held it last.
    """
    holding = DriverRef.read(last.lease.get("driver")) if last is not None and last.lease else None
    started = folder.read_driver()
    if holding is not None and started is not None and holding.is_same(started):
        return [started]
    return [ref for ref in (holding, started) if ref is not None]


def state_of(ref: DriverRef, backend: Backend) -> DriverState:
    """Return whether a driver waits, runs or is gone, as whoever started it knows."""
    return processes.state(ref) if ref.backend == "local" else backend.driver_state(ref)


class Asking:
    """Asks those who started the drivers of a job, but none too often.

    Parameters
    ----------
    every : float
        Seconds for which a queue's answer holds; 0 asks each time. A process is always looked at: that costs nothing.
    """

    def __init__(self, every: float = 0.0) -> None:
        self.every = every
        self._states: dict[tuple[str, str], tuple[float, DriverState]] = {}
        self._reasons: dict[tuple[str, str], tuple[float, str]] = {}

    def states(self, refs: Iterable[DriverRef], backend: Backend) -> list[DriverState]:
        """Return what is said of each driver."""
        return [self._kept(self._states, ref, partial(state_of, ref, backend)) for ref in refs]

    def why_waiting(self, refs: Iterable[DriverRef], backend: Backend) -> str:
        """Return why a job's driver waits to be started, as far as whoever starts it says."""
        queued = (ref for ref in refs if ref.backend != "local")
        said = (self._kept(self._reasons, ref, partial(backend.why_waiting, ref)) for ref in queued)
        return next(filter(None, said), "")

    def _kept(
        self, answers: dict[tuple[str, str], tuple[float, Answer]], ref: DriverRef, ask: Callable[[], Answer]
    ) -> Answer:
        if not in_queue(ref):
            return ask()
        key = ref.backend, ref.id
        if key not in answers or time.monotonic() - answers[key][0] >= self.every:
            answer = ask()  # which may take long: the time counts from then on
            answers[key] = time.monotonic(), answer
        return answers[key][1]


def in_queue(ref: DriverRef) -> bool:
    """Return whether a queue alone knows of a driver: a process is of a host, where it can be looked for."""
    return "host" not in ref.details


def liveliest(states: Collection[DriverState]) -> DriverState:
    """Return the state of a job's driver, of the states of all that it may have."""
    return next((state for state in _LIVELIEST if state in states), "unknown")


_LIVELIEST: tuple[DriverState, ...] = ("running", "pending", "ending", "unknown", "gone")


def without_answer(
    refs: list[DriverRef], states: list[DriverState], last: Holder | None
) -> DriverRef | None:
    """Return the driver of which its queue alone could tell, and does not; None where one lives, or none is left.

    Parameters
    ----------
    refs : list of DriverRef
        As `drivers` returns them. One of another backend than the last is from before the job was given to that one,
        and was asked about then.
    states : list of DriverState
        What is said of each.
    last : Holder or None
        Who holds the lease, or held it last. Another user's driver that held it and is silent for long is not waited
        for: a queue that says nothing of it may keep it from us, or have forgotten it, and never says more.
    """
    if liveliest(states) != "unknown":
        return None
    holding = DriverRef.read(last.lease.get("driver")) if last is not None and last.lease else None
    silent = last is not None and last.alive is False

    def is_waited_for(ref: DriverRef) -> bool:
        given_up = silent and ref.is_anothers and (holding is None or holding.is_same(ref))
        return in_queue(ref) and ref.backend == refs[-1].backend and not given_up

    known = zip(refs, states, strict=True)
    return next((ref for ref, state in known if state == "unknown" and is_waited_for(ref)), None)
