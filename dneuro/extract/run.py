"""What the driver does with all units: a window of tasks, retries, progress, and the statistics at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from dneuro import events
from dneuro.allocation import give_up_memory, keep_memory
from dneuro.engine.executors import Executor
from dneuro.engine.window import Window, each
from dneuro.errors import DneuroError, FingerprintError, StoreError
from dneuro.extract.markers import published
from dneuro.extract.pipeline import forget
from dneuro.extract.task import QuarantinedError, UnitReport, extract_unit
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.kernels.base import State
from dneuro.kernels.feeds import Feed
from dneuro.store.files import Location, disk_error, read_json, write_json
from dneuro.store.remote import RemotePath
from dneuro.store.units import MAX_ATTEMPTS


@dataclass
class Outcome:
    """What came of an extraction.

    Parameters
    ----------
    units, done_before : int
        Units in all, and those that were done already.
    masked : list of (str, str)
        Name and cause of each image that is masked.
    quarantined : dict of int to str
        Units that failed again and again, with the last error.
    seconds : float
        Time it took.
    images : int
        Images that went through the network now.
    """

    units: int
    done_before: int
    masked: list[tuple[str, str]] = field(default_factory=list)
    quarantined: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0


def extract(work: ExtractWork, executor: Executor, *, retry: bool = True) -> Outcome:
    """Extract every unit that has no valid marker.

    Parameters
    ----------
    work : ExtractWork
        The extraction; its store exists.
    executor : Executor
        Where units are worked on.
    retry : bool
        Also those units that earlier runs have put into quarantine; else they stay there.

    Returns
    -------
    Outcome
        Also when units were quarantined: the rest is done.

    Raises
    ------
    DneuroError
        If an error says that no unit can succeed (bad weights, another run has taken over).
    StoreError
        If the disk is full or the store cannot be written; or what was done elsewhere is not seen from here.
    """
    began = time.perf_counter()
    plan = work.plan
    missing = {number: parts for number in range(plan.units) if (parts := work.missing(number))}
    outcome = Outcome(units=plan.units, done_before=plan.units - len(missing))
    outcome.quarantined = _left_out(work, missing, retry=retry)
    for number in range(plan.units):
        if number not in missing:
            marker = work.unit(IMAGES, number).marker(work.fingerprints[IMAGES]) or {}
            outcome.masked += [(name, why) for name, why in marker.get("masked", [])]
    done = sum(b - a for number in range(plan.units) if number not in missing for a, b in [plan.span(number)])
    resumed = f"{outcome.done_before} of {plan.units} units were done before" if outcome.done_before else ""
    units = _Units(outcome)
    events.emit("started", "extract", resumed, done=done, total=plan.images, what="images", data=units.data())
    keep_memory()  # before the threads that may work here
    shared = executor.share(work)
    window: Window[int] = Window(executor)
    tries = dict.fromkeys(missing, 0)
    for number, parts in missing.items():
        if number not in outcome.quarantined:
            window.add(number, extract_unit, shared, number, parts)
    with contextlib.closing(iter(window)) as ended:  # an error that ends the run ends what is in flight
        for number, future in ended:
            error = future.exception()
            if error is None:
                report: UnitReport = future.result()
                outcome.masked += report.masked
                outcome.images += report.images
                done += report.images
                units.done += 1
                rate = outcome.images / max(time.perf_counter() - began, 1e-9)
                data = {"unit": number, "unit_seconds": report.seconds, "rate": rate, **units.data()}
                events.emit("progress", "extract", done=done, total=plan.images, what="images", data=data)
                continue
            _raise_if_final(error, work)
            tries[number] += 1
            if isinstance(error, QuarantinedError) or tries[number] >= MAX_ATTEMPTS:
                outcome.quarantined[number] = f"{type(error).__name__}: {error}"
                kept = {"unit": number, "attempt": work.attempt.number, "error": outcome.quarantined[number]}
                write_json(work.left_out(number), kept)
                message = f"unit {number} failed {MAX_ATTEMPTS} times and is left out: {error}"
                events.emit("warning", "extract", message, data=units.data())
            else:
                events.emit("warning", "extract", f"unit {number} failed and is tried again: {error}")
                window.add(number, extract_unit, shared, number, missing[number])
    forget()  # workers do so when other work comes
    give_up_memory()
    _see(work, {number: parts for number, parts in missing.items() if number not in outcome.quarantined})
    for name, why in outcome.masked:
        events.emit("warning", "extract", f"masked {name}: {why}")
    outcome.seconds = time.perf_counter() - began
    message = f"{plan.images} images, {len(outcome.masked)} masked"
    events.emit("finished", "extract", message, done=done, total=plan.images, what="images", data=units.data())
    return outcome


class _Units:
    """The units of an extraction, counted for those who watch."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.done = outcome.done_before

    def data(self) -> dict[str, Any]:
        found = {"total": self._outcome.units, "done": self.done, "failed": len(self._outcome.quarantined)}
        return {"units": {**found, "masked": len(self._outcome.masked)}}


def _left_out(work: ExtractWork, missing: Collection[int], *, retry: bool) -> dict[int, str]:
    """Return the units that stay in quarantine, and why; or let all of them out."""
    folder = work.quarantine
    kept: list[Location] = list(folder.iterdir()) if isinstance(folder, RemotePath) or folder.is_dir() else []
    found: dict[int, str] = {}
    for path in kept:
        number = int(path.stem)
        if retry or number not in missing:
            path.unlink(missing_ok=True)
        else:
            found[number] = (read_json(path) or {}).get("error", "the reason was not kept")
    return found


def _see(work: ExtractWork, done: Mapping[int, Iterable[str]]) -> None:
    """Wait until this machine sees the markers of parts of units that were extracted now, perhaps on other ones."""
    if isinstance(work.store, RemotePath):  # there whoever looks sees them
        return
    for number, parts in done.items():
        for part in parts:
            published(work, part, number)


def _raise_if_final(error: BaseException, work: ExtractWork) -> None:
    """Raise what no further try can mend; what may pass (a lost worker, a hiccup of the disk) comes back."""
    of_disk = disk_error(error, work.store)
    if of_disk is not None:
        raise of_disk from error
    may_pass = isinstance(error, QuarantinedError | StoreError) and not isinstance(error, FingerprintError)
    if isinstance(error, DneuroError) and not may_pass:
        raise error


def keys_of_units(work: ExtractWork, layer: str) -> list[tuple[tuple[str, ...], int]]:
    """Return, for each unit of a layer, the names of its partial states and its number of images.

    Units that are left out have none; all others are done.

    Raises
    ------
    StoreError
        If the marker of one that is done is not there, or not seen from here.
    """
    found = []
    for number in range(work.plan.units):
        marker = published(work, layer, number) or {}
        start, stop = work.plan.span(number)
        found.append((tuple(marker.get("kernels", ())), stop - start))
    return found


def merge_feeds(
    work: ExtractWork, wanted: Iterable[tuple[str, Feed]], executor: Executor
) -> dict[tuple[str, str], dict[str, NDArray[Any]]]:
    """Return what kernels find in all units, by layer and key, made of the units' partial states on the workers.

    Where some unit has no such state, or no image could be read, there is no result. The order of merging is that of
    the units, whoever extracted them.
    """
    shared = executor.share(work)
    calls = [((layer, feed.key), _merge_units, (shared, layer, feed)) for layer, feed in wanted]
    with contextlib.closing(each(executor, calls)) as ended:
        found = {key: future.result() for key, future in ended}
    return {key: results for key, results in found.items() if results is not None}


def _merge_units(work: ExtractWork, layer: str, feed: Feed) -> dict[str, NDArray[Any]] | None:
    total: State = {}
    for number, (keys, images) in enumerate(keys_of_units(work, layer)):
        key = feed.found_in(keys, images)
        if key is None:
            return None
        total = feed.kernel.merge(total, work.unit(layer, number).load_partials([key]).get(key, {}))
    return feed.kernel.finalise(total) if total else None
