"""Events drawn for a person: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from dneuro import events
from dneuro.quantities import format_bytes, format_duration

if TYPE_CHECKING:
    from dneuro.cluster.local import WorkerSizes
    from dneuro.jobs.planning import JobPlan

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
    """How fast a step is, from its own beginning; work that was done before it does not count."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, float]] = {}

    def text(self, event: events.Event) -> str:
        key = event.parent + "/" + event.step
        if event.kind == "started" or key not in self._began:
            self._began[key] = (event.time, event.done)
        began, before = self._began[key]
        seconds, done = event.time - began, event.done - before
        if seconds <= 0 or done <= 0:
            return ""
        if event.kind == "finished":
            return f"{done / seconds:.1f} {event.what}/s, {format_duration(seconds)}"
        left = (event.total - event.done) * seconds / done
        return f"{done / seconds:.1f} {event.what}/s, {format_duration(left)} left"


class _Lines(_Quiet):
    """One line per step and per few seconds."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._rates = _Rates()
        self._shown: dict[str, float] = {}

    def draw(self, event: events.Event) -> None:
        if event.kind in ("warning", "failed", "note"):
            self.line(event)
            return
        rate = self._rates.text(event)
        key = event.parent + "/" + event.step
        # A pass inside a step is worth a line only if it takes a while.
        of_interest = event.kind != "progress" and not event.parent
        if event.kind == "started":
            self._shown[key] = time.monotonic()
        if not of_interest and (event.done == event.total or time.monotonic() - self._shown.get(key, 0) < PERIOD):
            return
        self._shown[key] = time.monotonic()
        where = f"{event.parent}, {event.step}" if event.parent not in ("", event.step) else event.step
        words = [f"{where}: {event.done:g} of {event.total:g} {event.what}", rate, event.message]
        self.console.print(", ".join(filter(None, words)), markup=False, highlight=False)


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


def show_plan(plan: JobPlan, sizes: WorkerSizes) -> None:
    """Print the plan of a job on stdout."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width to fit
    extract, job = plan.extract, plan.study.job
    console.print(f"[bold]{job.name}[/bold]: {extract.images} images, {job.network.name}, store {job.store}")
    console.print(
        f"workers: {sizes.workers} × {format_bytes(sizes.memory)}, "
        f"{sizes.threads} task{'s' if sizes.threads > 1 else ''} each, {sizes.cpus} threads per task"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("step", "layer"):
        table.add_column(heading)
    for heading in ("units / passes", "read", "written", "per worker", "driver"):
        table.add_column(heading, justify="right")
    table.add_column("how")
    done = f", {plan.done} done" if plan.done else ""
    if job.train is not None:
        table.add_row("train", "", f"{job.train.epochs} epochs", *[""] * 5)
    table.add_row(
        "extract", "", f"{extract.units} units{done}", "", format_bytes(extract.store_bytes),
        format_bytes(extract.worker_bytes), "", f"{extract.unit} images per unit, batches of {extract.batch}",
    )  # fmt: skip
    for layer in extract.layers:
        kept = sum(array.nbytes for array in layer.arrays(extract.images, extract.unit))
        shape = "×".join(map(str, layer.shape))
        table.add_row("", layer.name, "", "", format_bytes(kept), "", "", f"{shape}, keep {layer.keep}, {layer.dtype}")
    for question, one in plan.steps:
        table.add_row(
            question.step.id, question.layer, str(one.passes), format_bytes(one.read_bytes),
            format_bytes(one.result_bytes), format_bytes(one.worker_bytes) if one.worker_bytes else "",
            format_bytes(one.driver_bytes), one.method,
        )  # fmt: skip
    console.print(table)
    console.print(
        f"on disk {format_bytes(plan.disk_bytes)} before compression; peak {format_bytes(plan.worker_bytes)} of "
        f"{format_bytes(plan.memory)} per worker"
    )

