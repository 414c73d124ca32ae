"""Events drawn for a person: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from dneuro import events
from dneuro.quantities import format_duration

PERIOD = 2.0
"""Seconds between two lines of one step where there is no terminal."""


@contextlib.contextmanager
def showing(*, quiet: bool = False) -> Iterator[None]:
    """Draw every event inside the ``with`` block on stderr."""
    console = Console(file=sys.stderr, soft_wrap=True)
    view = _Quiet(console) if quiet else _Bars(console) if console.is_terminal else _Lines(console)
    with view, events.listening(view.draw):
        yield


class _Quiet:
    """Warnings alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._said: set[tuple[str, str]] = set()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def draw(self, event: events.Event) -> None:
        if event.kind in ("warning", "failed"):
            self.line(event)

    def line(self, event: events.Event) -> None:
        if (event.step, event.message) in self._said:  # once is enough, though every layer has cause to say it
            return
        self._said.add((event.step, event.message))
        where = f"{event.step}: " if event.step else ""
        style = "yellow" if event.kind in ("warning", "failed") else "dim"
        self.console.print(f"{where}{event.message}", style=style, markup=False, highlight=False)


class _Rates:
    """How fast each step is: of late while it runs, on the whole once it is done."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, float]] = {}
        self._paces: defaultdict[str, events.Pace] = defaultdict(events.Pace)

    def text(self, event: events.Event) -> str:
        key = event.parent + "/" + event.step
        if event.kind == "started" or key not in self._began:
            self._began[key] = (event.time, event.done)
        self._paces[key].take(event)
        began, before = self._began[key]
        seconds, done = event.time - began, event.done - before
        if event.kind == "finished":
            return f"{done / seconds:.1f} {event.what}/s, {format_duration(seconds)}" if min(seconds, done) > 0 else ""
        if rate := self._paces[key].rate:
            return f"{rate:.1f} {event.what}/s, {format_duration((event.total - event.done) / rate)} left"
        return ""


class Lines:
    """Events as lines of text: one per step and per few seconds, whenever they happened."""

    def __init__(self) -> None:
        self._rates = _Rates()
        self._shown: dict[str, float] = {}
        self._said: set[tuple[str, str]] = set()

    def of(self, entry: dict[str, Any]) -> list[str]:
        """Return the lines of an event as `Event.to_dict` gives it, or as a job's log keeps it."""
        known = {field.name for field in fields(events.Event)}
        event = events.Event(**{key: value for key, value in entry.items() if key in known})
        if event.kind in ("warning", "failed", "note"):
            trace = str(entry.get("trace") or "").splitlines()
            return [*self._once(event), *trace]
        line = self.progress(event)
        return [] if line is None else [line]

    def _once(self, event: events.Event) -> list[str]:
        if (event.step, event.message) in self._said:
            return []
        self._said.add((event.step, event.message))
        return [f"{event.step}: {event.message}" if event.step else event.message]

    def progress(self, event: events.Event) -> str | None:
        """Return the line of an event of a step; None if it is not worth one."""
        rate = self._rates.text(event)
        key = event.parent + "/" + event.step
        # A pass inside a step is worth a line only if it takes a while.
        of_interest = event.kind != "progress" and not event.parent
        if event.kind == "started":
            self._shown[key] = event.time
        if not of_interest and (event.done == event.total or event.time - self._shown.get(key, 0) < PERIOD):
            return None
        self._shown[key] = event.time
        where = f"{event.parent}, {event.step}" if event.parent not in ("", event.step) else event.step
        words = [f"{where}: {event.done:g} of {event.total:g} {event.what}", rate, event.message]
        return ", ".join(filter(None, words))


class _Lines(_Quiet):
    """One line per step and per few seconds."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._lines = Lines()

    def draw(self, event: events.Event) -> None:
        if event.kind in ("warning", "failed", "note"):
            self.line(event)
        elif (line := self._lines.progress(event)) is not None:
            self.console.print(line, markup=False, highlight=False)


class _Bars(_Quiet):
    """One bar per step."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._rates = _Rates()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:g}/{task.total:g} {task.fields[what]}"),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def draw(self, event: events.Event) -> None:
        if event.kind in ("warning", "failed", "note"):
            self.line(event)
            return
        note = ", ".join(filter(None, [self._rates.text(event), event.message]))
        if event.parent:
            if event.parent in self._tasks:
                self._progress.update(self._tasks[event.parent], note=f"{event.done:g}/{event.total:g} {event.what}")
            return
        if event.step not in self._tasks:
            self._tasks[event.step] = self._progress.add_task(event.step, total=event.total, what=event.what, note=note)
        self._progress.update(
            self._tasks[event.step], completed=event.done, total=event.total, what=event.what, note=note
        )
