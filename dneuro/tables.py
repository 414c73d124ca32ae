"""The tables that commands print on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dneuro.quantities import format_bytes, format_duration

if TYPE_CHECKING:
    from dneuro.cluster.local import WorkerSizes
    from dneuro.jobs.calibration import Forecast
    from dneuro.jobs.members import MembersPlan
    from dneuro.jobs.planning import JobPlan


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


def show_plan(plan: JobPlan, sizes: WorkerSizes) -> None:
    """Print the plan of a job on stdout."""
    console = _console()
    extract, job = plan.extract, plan.study.job
    console.print(f"{job.name}: {extract.images} images, {job.network.name}, store {job.store}")
    console.print(
        f"workers: {sizes.workers} × {format_bytes(sizes.memory)}, "
        f"{sizes.threads} task{'s' if sizes.threads > 1 else ''} each, {sizes.cpus} threads per task"
    )
    table = _table("step", "layer", "units / passes>", "read>", "written>", "per worker>", "driver>", "how")
    done = f", {plan.done} done" if plan.done else ""
    if job.train is not None:
        table.add_row("train", "", f"{job.train.epochs} epochs", *[""] * 5)
    table.add_row(
        "extract", "", f"{extract.units} units{done}", "", format_bytes(extract.store_bytes),
        format_bytes(extract.worker_bytes), "", f"{extract.unit} images per unit, batches of {extract.batch}",
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
            format_bytes(one.driver_bytes), one.method,
        )  # fmt: skip
    console.print(table)
    console.print(
        f"on disk {format_bytes(plan.disk_bytes)} before compression; peak {format_bytes(plan.worker_bytes)} of "
        f"{format_bytes(plan.memory)} per worker"
    )


def show_members(plans: MembersPlan, sizes: WorkerSizes) -> None:
    """Print the plans of a job over several networks or checkpoints on stdout, and what they come to."""
    for member, plan in plans.members.items():
        _console().print(f"{member}:")
        show_plan(plan, sizes)
        _console().print()
    count = len(plans.members)
    _console().print(
        f"{plans.series.name}: {count} member{'s' if count > 1 else ''}, one after the other; on disk "
        f"{format_bytes(plans.disk_bytes)} before compression; peak {format_bytes(plans.worker_bytes)} per worker"
    )


def show_forecast(forecast: Forecast) -> None:
    """Print what the trial of a job foretells, on stdout."""
    console = _console()
    console.print(f"\ntried on {forecast.tried} images: {forecast.rate:.1f} images/s")
    table = _table("step", "will take>")
    for step, seconds in forecast.seconds.items():
        table.add_row(step, format_duration(seconds))
    table.add_row("in all", format_duration(forecast.total))
    console.print(table)
    console.print(
        f"on disk {format_bytes(forecast.disk_bytes)}; a worker held {format_bytes(forecast.worker_bytes)} at most"
    )


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
