"""Commands about a store that is there: report, export, verify."""

from __future__ import annotations

from typing import Annotated

import typer

from dneuro.cli.arguments import AsJson, Quiet, print_json

SHOWN = 20
"""Masked images that `verify` names; all are in its JSON."""


def report(
    store: Annotated[str, typer.Argument(help="A store, or its URL.")],
    out: Annotated[str | None, typer.Option(help="Folder or URL of the pages; the default is STORE.report.")] = None,
    neurons: Annotated[int, typer.Option(min=1, help="Channels shown per layer.")] = 12,
    images: Annotated[int, typer.Option(min=1, help="Images per channel and component.")] = 9,
) -> None:
    """Write the report of a store again."""
    from dneuro.jobs.reporting import report as write

    typer.echo(str(write(store, out=out, neurons=neurons, images=images)))


def export(
    store: Annotated[str, typer.Argument(help="A store, or its URL.")],
    to: Annotated[str | None, typer.Option(help="Folder of the files; the default is STORE.export.")] = None,
    figures: Annotated[bool, typer.Option(help="Draw the figures, as PNG and SVG.")] = True,
    quiet: Quiet = False,
) -> None:
    """Write results as files: tables (Parquet, CSV), datasets (netCDF), figures (PNG, SVG)."""
    from dneuro.jobs.exporting import export as write
    from dneuro.progress import showing

    with showing(quiet=quiet):
        folder = write(store, to=to, figures=figures)
    typer.echo(str(folder))


def verify(
    store: Annotated[str, typer.Argument(help="A store, or its URL.")],
    repair: Annotated[bool, typer.Option("--repair", help="Withdraw what is damaged: the next run redoes it.")] = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Compare a store with what was written: exit code 0 all is well, 3 something is missing, 4 damaged."""
    from dneuro.jobs.verifying import verify as compare
    from dneuro.progress import showing

    with showing(quiet=quiet):
        found = compare(store, repair=repair)
    if json:
        print_json(found.to_dict())
    else:
        for finding in found.findings:
            typer.echo(finding)
        for name, why in list(found.masked.items())[:SHOWN]:
            typer.echo(f"masked: {name}: {why}")
        if len(found.masked) > SHOWN:
            typer.echo(f"masked: {len(found.masked) - SHOWN} more images")
        counts = [f"{found.units} units"] + [
            f"{len(some)} {what}" for some, what in ((found.damaged, "damaged"), (found.missing, "missing")) if some
        ]
        withdrawn = f"; {found.repaired} withdrawn" if found.repaired else ""
        typer.echo(f"{store}: {', '.join(counts)}{withdrawn}" + (", all as it was written" if found.ok else ""))
        if found.advice:
            typer.echo(f"hint: {found.advice}", err=True)
    raise typer.Exit(found.exit_code)
