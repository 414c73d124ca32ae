"""The tables that commands print on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dneuro.quantities import format_bytes, format_duration

if TYPE_CHECKING:
    from dneuro.cluster import WorkerSizes
    from dneuro.jobs.calibration import Forecast
    from dneuro.jobs.members import MembersPlan
    from dneuro.jobs.planning import JobPlan
    from dneuro.jobs.watching import JobStatus


def show_layers(rows: Sequence[dict[str, Any]], images: int) -> None:
    """Print the layers of a network, as `dneuro.nets.describe.table` has them, with the bytes of so many images."""
    table = _table("layer", "kind", "shape", "dims", "sees>", "per image>", f"{images:,} images>")
    for row in rows:
        field = row["receptive_field"]
        table.add_row(
            row["name"], row["kind"], _times(row["shape"]), ", ".join(row["dims"]) if row["dims"] else "unknown",
            "everything" if field is None else f"{_times(field['size'])} pixels",
            format_bytes(row["bytes_per_image"]), format_bytes(row["bytes"]),
        )  # fmt: skip
    _console().print(table)


def show_plan(plan: JobPlan, sizes: Callable[[str], WorkerSizes]) -> None:
    """Print the plan of a job on stdout; `sizes` says what the workers of each pool have."""
    console = _console()
    extract, job = plan.extract, plan.study.job
    console.print(f"{job.name}: {extract.images} images, {job.network.name}, store {job.store}")
    pools = {pool: sizes(pool) for pool in plan.limits}
    for pool, its in pools.items():
        if its in list(pools.values())[: list(pools).index(pool)]:
            continue
        console.print(
            f"workers{'' if len(set(pools.values())) == 1 else f' of pool {pool}'}: {its.workers} × "
            f"{format_bytes(its.memory)}, {its.threads} task{'s' if its.threads > 1 else ''} each, "
            f"{its.cpus} threads per task"
        )
    table = _table("step", "layer", "units / passes>", "read>", "written>", "per worker>", "driver>", "how")
    done = f", {plan.done} done" if plan.done else ""
    if job.train is not None:
        table.add_row("train", "", f"{job.train.epochs} epochs", *[""] * 5)
    there = f"; {format_bytes(extract.device_bytes)} of each worker's {extract.device}" if extract.device else ""
    table.add_row(
        "extract", "", f"{extract.units} units{done}", "", format_bytes(extract.store_bytes),
        format_bytes(extract.worker_bytes), "",
        f"{extract.unit} images per unit, batches of {extract.batch}{there}",
    )  # fmt: skip
    if extract.partial_bytes:
        table.add_row(
            "", "", "", "", format_bytes(extract.units * extract.partial_bytes), "", "",
            f"partial statistics, {format_bytes(extract.partial_bytes)} per unit",
        )  # fmt: skip
    for layer in extract.layers:
        kept = sum(array.nbytes for array in layer.arrays(extract.images, extract.unit))
        shape = _times(layer.shape)
        what = f"{plan.study.layers[layer.name].kind}, {shape}, keep {layer.keep}, {layer.dtype}"
        table.add_row("", layer.name, "", "", format_bytes(kept), "", "", what)
    for question, one in plan.steps:
        table.add_row(
            question.step.id, question.layer, str(one.passes), format_bytes(one.read_bytes),
            format_bytes(one.result_bytes), format_bytes(one.worker_bytes) if one.worker_bytes else "",
            format_bytes(one.driver_bytes), _how(one),
        )  # fmt: skip
    console.print(table)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"on disk {format_bytes(plan.disk_bytes)} before compression; peak {', '.join(_peaks(plan))}")


def _how(plan: Any) -> str:
    """Return how a step is computed, and what it takes of a device."""
    there = f"{format_bytes(plan.device_bytes)} of each worker's {plan.device}" if plan.device_bytes else plan.device
    return "; ".join(filter(None, (plan.method, there)))


def _peaks(plan: JobPlan) -> list[str]:
    """Return what a worker holds at most: of each pool, where they differ."""
    if len(set(plan.limits.values())) == 1:
        return [f"{format_bytes(plan.worker_bytes)} of {format_bytes(plan.memory)} per worker"]
    return [
        f"{format_bytes(plan.peaks[pool])} of {format_bytes(limit)} per worker of pool {pool}"
        for pool, limit in plan.limits.items()
    ]


def show_members(plans: MembersPlan, sizes: Callable[[str], WorkerSizes]) -> None:
    """Print the plans of a job over several networks or checkpoints on stdout, and what they come to."""
    for member, plan in plans.members.items():
        _console().print(f"{member}:")
        show_plan(plan, sizes)
        _console().print()
    for note in plans.notes:
        _console().print(f"note: {note}", markup=False)
    count = len(plans.members)
    _console().print(
        f"{plans.series.name}: {count} member{'s' if count > 1 else ''}, one after the other; on disk "
        f"{format_bytes(plans.disk_bytes)} before compression; peak {format_bytes(plans.worker_bytes)} per worker"
    )


def show_forecast(forecast: Forecast) -> None:
    """Print what the trial of a job foretells, on stdout."""
    console = _console()
    console.print(
        f"\ntried on {forecast.tried} images: {forecast.rate:.1f} images/s, {forecast.images} to be extracted"
    )
    if forecast.done:
        console.print(f"done already: {', '.join(forecast.done)}")
    table = _table("step", "will take>")
    for step, seconds in forecast.seconds.items():
        table.add_row(step, format_duration(seconds))
    table.add_row("in all", format_duration(forecast.total))
    console.print(table)
    console.print(
        f"on disk {format_bytes(forecast.disk_bytes)} once all is done, what is there already included; "
        f"a worker held {format_bytes(forecast.worker_bytes)} at most"
    )
    for note in forecast.notes:
        console.print(f"note: {note}", markup=False)


def show_status(status: JobStatus, more: str = "") -> None:
    """Print how a job is, on stdout; `more` is what commands about it need besides its id."""
    console, found = _console(), status.found
    attempt = f", attempt {found['attempt']}" if found.get("attempt") else ""
    ended = f", {format_duration(time.time() - found['ended'])} ago" if found.get("ended") and status.is_over else ""
    console.print(f"{status.id}: {status.state}{attempt}{ended}")
    if found.get("note"):
        console.print(found["note"])
    console.print(f"store   {found.get('store', '')}")
    if found.get("report"):
        console.print(f"report  {found['report']}")
    if found.get("steps"):
        table = _table("step", "state", "done>", "rate>", "left>", "took>")
        for step in found["steps"]:
            state = "stopped" if status.is_over and step["state"] == "running" else step["state"]
            done = f"{step['done']:g} of {step['total']:g} {step['what']}" if step["total"] else ""
            rate = f"{step['rate']:.3g}/s" if step["rate"] else ""
            left = "" if step["left"] is None or status.is_over else format_duration(step["left"])
            took = format_duration(step["seconds"]) if step["total"] else ""
            table.add_row(step["step"], state, done, rate, left, took)
        console.print(table)
    if units := found.get("units"):
        console.print(f"units   {units['done']} of {units['total']} done, {units['failed']} failed; "
                      f"{units['masked']} images masked")  # fmt: skip
    if found.get("memory"):
        _show_memory(console, status)
    if error := found.get("error"):
        console.print(f"error   {error['message']}")
    if status.advice:
        console.print(f"hint    {status.advice}{more}")


def _show_memory(console: Console, status: JobStatus) -> None:
    found = status.found
    here = "" if status.is_over else ", ".join(f"{count} {pool}" for pool, count in found.get("workers", {}).items())
    most = format_bytes(found.get("peak_memory", 0))
    console.print(f"workers {here}{'; ' if here else ''}the most that one held: {most}")
    highest = sorted(found["memory"].items(), key=lambda item: -item[1]["peak"])[:8]
    table = _table("worker", "now>", "peak>", "limit>")
    for name, one in highest:
        now = "" if status.is_over else format_bytes(one["now"])
        table.add_row(name, now, format_bytes(one["peak"]), format_bytes(one["limit"]) if one["limit"] else "")
    console.print(table)
    if not status.is_over and (paused := found.get("paused")):
        console.print(f"paused  {', '.join(paused)}: full, and begin nothing more; `dneuro logs` says what to do")


def show_jobs(jobs: Sequence[JobStatus]) -> None:
    """Print jobs on stdout, one line each."""
    table = _table("job", "state", "units>", "left>", "submitted>", "store")
    for job in jobs:
        found = job.found
        units = found.get("units") or {}
        left = found.get("left") if not job.is_over else None
        since = found.get("submitted")
        table.add_row(
            job.id, job.state, f"{units['done']}/{units['total']}" if units else "",
            "" if left is None else format_duration(left),
            f"{format_duration(time.time() - since)} ago" if since else "", str(found.get("store", "")),
        )  # fmt: skip
    _console().print(table)
    for job in jobs:
        if job.state == "unreadable":
            _console().print(f"{job.id}: {job.found['error']['message']}")


def _console() -> Console:
    console = Console(soft_wrap=True, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width to fit
    return console


def _table(*headings: str) -> Table:
    """Return an empty table; columns whose heading ends in > are numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading.removesuffix(">"), justify="right" if heading.endswith(">") else "left")
    return table


def _times(lengths: Sequence[int]) -> str:
    return "×".join(map(str, lengths))
