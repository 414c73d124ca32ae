"""The command line: run, plan, layers, report, verify. Data on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dneuro.errors import CancelledError, DneuroError, UsageError

if TYPE_CHECKING:
    from dneuro.jobs.driver import JobResult
    from dneuro.spec import NetworkSpec

app = typer.Typer(
    help="The activations of neural networks, out of core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
"""What typer makes of Ctrl-C, unless it makes an `Abort` of it."""

Job = Annotated[str, typer.Argument(help="Job file, or the name of one in ./jobs or among those shipped (demo).")]
Cluster = Annotated[str | None, typer.Option(help="Profile: where to compute, a file or a name.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE in place of the file's: steps.svd.rank=16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings and errors.")]


def main() -> None:
    """Run the command line; every deliberate error ends as a line, a hint and its exit code."""
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


@app.command()
def run(job: Job, cluster: Cluster = None, settings: Set = None, quiet: Quiet = False, json: AsJson = False) -> None:
    """Run a job here and now; run it again to resume it."""
    from dneuro.jobs import face
    from dneuro.jobs.members import MembersResult
    from dneuro.progress import showing
    from dneuro.spec import read_study

    spec = read_study(_find_job(job), settings or ())
    with showing(quiet=quiet), _ended_by_signals():
        result = face.run(spec, cluster=cluster or "local")
    if isinstance(result, MembersResult):
        found = {"members": {member: _found(one) for member, one in result.items()}, "seconds": result.seconds}
        found["report"] = str(result.report) if result.report else None
        stores = list(result.stores.values())
    else:
        found, stores = _found(result), [result.store]
    if json:
        _print_json(found)
        return
    for store in stores:
        typer.echo(f"store   {store}")
    if result.report is not None:
        typer.echo(f"report  {result.report}")


def _found(result: JobResult) -> dict[str, Any]:
    """Return what came of a job as a plain dictionary."""
    return {
        "store": str(result.store),
        "report": str(result.report) if result.report else None,
        "images": result.outcome.images,
        "units": result.outcome.units,
        "units_done_before": result.outcome.done_before,
        "masked": result.outcome.masked,
        "results_computed": result.computed,
        "results_kept": result.kept,
        "seconds": round(result.seconds, 2),
    }


@app.command()
def plan(
    job: Job,
    cluster: Cluster = None,
    settings: Set = None,
    calibrate: Annotated[
        int, typer.Option(min=0, help="Also try the job on this many of its images, and say how long it will take.")
    ] = 0,
    json: AsJson = False,
) -> None:
    """Print what a job will cost: units, passes, bytes on disk, peak memory. Starts nothing but a trial."""
    from dneuro.cluster import profile_folders, worker_sizes
    from dneuro.jobs.members import plan_members
    from dneuro.jobs.planning import plan_job
    from dneuro.progress import showing
    from dneuro.spec import SeriesSpec, find_profile, read_profile, read_study
    from dneuro.tables import show_forecast, show_members, show_plan

    profile = read_profile(find_profile(cluster or "local", profile_folders()))
    spec = read_study(_find_job(job), settings or ())
    sizes = worker_sizes(profile)
    if isinstance(spec, SeriesSpec):
        with showing(quiet=True):
            plans = plan_members(spec, sizes)
            if not json:
                show_members(plans, sizes)
            forecasts = plans.forecasts(profile, sizes, calibrate) if calibrate else {}
        if json:
            _print_json({**plans.to_dict(), "forecasts": {name: one.to_dict() for name, one in forecasts.items()}})
        for member, one in () if json else forecasts.items():
            typer.echo(f"\n{member}:")
            show_forecast(one)
        return
    with showing(quiet=True):
        found = plan_job(spec, sizes)
        if not json:
            show_plan(found, sizes)
        foretold = None
        if calibrate:
            from dneuro.jobs.calibration import forecast

            foretold = forecast(found, profile, sizes, calibrate)
    if json:
        _print_json({**found.to_dict(), "forecast": foretold and foretold.to_dict()})
    elif foretold:
        show_forecast(foretold)


@app.command()
def layers(
    network: Annotated[str, typer.Argument(help="torchvision:alexnet, python:file.py:factory, …, or a job file.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images that sizes are given for.")] = 50_000,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the input in pixels, if not the usual.")] = None,
    settings: Set = None,
    json: AsJson = False,
) -> None:
    """List what can be tapped of a network: name, kind, shape, receptive field, bytes as float32."""
    from dneuro.nets.catalogue import find
    from dneuro.nets.describe import layers as describe
    from dneuro.nets.describe import table
    from dneuro.tables import show_layers

    spec = _network(network, settings)
    usual = find(spec).input_shape
    if size is None and usual is None:
        hint = "--size 224, or in place of the network a job file that has its preprocessing"
        raise UsageError(f"the size of the input of {network} is not known", hint=hint)
    square = None if size is None else ((usual or (3,))[0], size, size)
    rows = table(describe(spec, square), images)
    if json:
        _print_json(rows)
    else:
        show_layers(rows, images)


def _network(network: str, settings: list[str] | None) -> NetworkSpec:
    """Return the network of that name, or that of a job file."""
    from dneuro.spec import NetworkSpec, SeriesSpec, read_study

    if network.endswith((".yaml", ".yml")):
        spec = read_study(_find_job(network), settings or ())
        if not isinstance(spec, SeriesSpec):
            return spec.network
        names = [job.network.name for job in spec.members.values()]
        if len(set(names)) > 1:
            raise UsageError(f"{network} is about several networks", hint=f"dneuro layers {names[0]}")
        return next(iter(spec.members.values())).network
    return NetworkSpec(name=network, weights="none")


@app.command()
def report(
    store: Annotated[str, typer.Argument(help="A store, or its URL.")],
    out: Annotated[str | None, typer.Option(help="Folder or URL of the pages; the default is STORE.report.")] = None,
    neurons: Annotated[int, typer.Option(min=1, help="Channels shown per layer.")] = 12,
    images: Annotated[int, typer.Option(min=1, help="Images per channel and component.")] = 9,
) -> None:
    """Write the report of a store again."""
    from dneuro.jobs.reporting import report as write

    typer.echo(str(write(store, out=out, neurons=neurons, images=images)))


@app.command()
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
        _print_json(found.to_dict())
    else:
        for finding in found.findings:
            typer.echo(finding)
        counts = [f"{found.units} units"] + [
            f"{len(some)} {what}" for some, what in ((found.damaged, "damaged"), (found.missing, "missing")) if some
        ]
        withdrawn = f"; {found.repaired} withdrawn" if found.repaired else ""
        typer.echo(f"{store}: {', '.join(counts)}{withdrawn}" + (", all as it was written" if found.ok else ""))
        if found.advice:
            typer.echo(f"hint: {found.advice}", err=True)
    raise typer.Exit(found.exit_code)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as of

    typer.echo(of("dneuro"))


def _find_job(job: str) -> Path:
    from dneuro.cluster.profiles import shipped

    path = Path(job)
    if path.suffix or path.exists() or "/" in job:
        return path
    return next((found for folder in shipped("jobs") if (found := folder / f"{job}.yaml").is_file()), path)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a polite kill (SIGTERM) end a run as Ctrl-C does: workers stopped, what is done kept."""
    import signal

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1))


def _complain(message: str, hint: str | None) -> None:
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)
