"""Commands about a cluster that stands: up, status, down."""

from __future__ import annotations

from typing import Annotated

import typer

from dneuro.cli.arguments import AsJson, print_json

Profile = Annotated[str, typer.Argument(help="Profile: a file, or the name of one.")]

app = typer.Typer(help="A cluster that stands, for many jobs and notebooks.", no_args_is_help=True)


@app.command()
def up(profile: Profile, json: AsJson = False) -> None:
    """Start a cluster that stands until it is ended; print its address and where its credentials are."""
    from dneuro.cluster import standing
    from dneuro.progress import showing

    with showing(quiet=json):
        found = standing.up(profile)
    _show(found, json)
    if not json:
        typer.echo(f'use    dneuro.connect("{profile}"), or dask.distributed.Client with these credentials')
        typer.echo(f"end    dneuro cluster down {profile}")


@app.command()
def status(profile: Profile, json: AsJson = False) -> None:
    """Print where a cluster stands and what workers it has; exit code 4 if it is gone."""
    from dneuro.cluster import standing

    found = standing.status(profile)
    _show(found, json)
    if found.state == "gone":
        raise typer.Exit(4)


@app.command()
def down(profile: Profile, json: AsJson = False) -> None:
    """End a cluster and everything that it has started."""
    from dneuro.cluster import standing

    ended = standing.down(profile)
    if json:
        print_json({"ended": ended})
    else:
        typer.echo("ended" + (f", and by force {', '.join(ended)}" if ended else ""))


def _show(found: object, json: bool) -> None:
    from dneuro.cluster.standing import StandingCluster

    assert isinstance(found, StandingCluster)
    if json:
        print_json(found.to_dict())
        return
    typer.echo(f"state  {found.state}")
    lines = {"note": found.note, "address": found.address, "credentials": found.credentials,
             "dashboard": found.dashboard}  # fmt: skip
    for name, value in lines.items():
        if value:
            typer.echo(f"{name}  {value}")
    for pool, workers in found.workers.items():
        typer.echo(f"pool {pool}  {workers} workers")
