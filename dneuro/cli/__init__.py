"""The command line. Data on stdout, progress and errors on stderr, an exit code for each kind of end.

One file per kind of command; each is a plain function that imports what it needs when it is called, so that
``dneuro --help`` waits for nothing.
"""

from __future__ import annotations

import sys

import typer

from dneuro.allocation import share_one_pool
from dneuro.cli import clusters, jobs, networks, running, stores
from dneuro.errors import CancelledError, DneuroError

INTERRUPTED = 130
"""What typer makes of Ctrl-C, unless it makes an `Abort` of it."""

app = typer.Typer(
    help="The activations of neural networks, out of core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(running.run)
app.command()(running.plan)
app.command()(jobs.submit)
app.command()(jobs.status)
app.command()(jobs.logs)
app.command()(jobs.cancel)
app.command()(jobs.resume)
app.command()(jobs.retry)
app.command("list")(jobs.every)
app.command()(jobs.gc)
app.command(hidden=True)(jobs.drive)
app.command()(networks.layers)
app.command()(stores.report)
app.command()(stores.export)
app.command()(stores.verify)
app.add_typer(clusters.app, name="cluster")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as of

    typer.echo(of("dneuro"))


def main() -> None:
    """Run the command line; every deliberate error ends as a line, a hint and its exit code."""
    share_one_pool()  # before there are threads
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except DneuroError as error:
        _complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped by the user", None)
        sys.exit(CancelledError.exit_code)
    except OSError as error:
        _complain(str(error), None)
        sys.exit(DneuroError.exit_code)
    except Exception as error:
        show = getattr(error, "show", None)  # click's own: usage errors
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


def _complain(message: str, hint: str | None) -> None:
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)
