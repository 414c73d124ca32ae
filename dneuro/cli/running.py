"""Commands that compute here and now, or say what it will cost: run, plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dneuro.cli.arguments import AsJson, Cluster, Job, Quiet, Set, find_job, hints_for, print_json

if TYPE_CHECKING:
    from dneuro.cluster.sizes import WorkerSizes
    from dneuro.jobs.driver import JobResult
    from dneuro.spec import ProfileSpec, SeriesSpec


def run(job: Job, cluster: Cluster = None, settings: Set = None, quiet: Quiet = False, json: AsJson = False) -> None:
    """Run a job here and now; run it again to resume it."""
    from dneuro.cluster.signals import ended_by_signals
    from dneuro.jobs import face
    from dneuro.jobs.members import MembersResult
    from dneuro.progress import showing
    from dneuro.spec import read_study

    spec = read_study(find_job(job), settings or ())
    with showing(quiet=quiet), ended_by_signals(), hints_for(cluster):
        result = face.run(spec, cluster=cluster or "local")
    if isinstance(result, MembersResult):
        found = {"members": {member: _found(one) for member, one in result.items()}, "seconds": result.seconds}
        found["report"] = str(result.report) if result.report else None
        stores = list(result.stores.values())
    else:
        found, stores = _found(result), [result.store]
    if json:
        print_json(found)
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


def plan(
    job: Job,
    cluster: Cluster = None,
    settings: Set = None,
    calibrate: Annotated[
        int, typer.Option(min=0, help="Also try the job on this many of its images, and say how long it will take.")
    ] = 0,
    json: AsJson = False,
) -> None:
    """Print what a job will cost, and on a cluster what would be sent to it. Starts nothing but a trial."""
    from functools import cache

    from dneuro.cluster import backend_of, profile_folders
    from dneuro.cluster.signals import ended_by_signals
    from dneuro.jobs.folder import JobFolder
    from dneuro.jobs.needed import check_files
    from dneuro.jobs.planning import plan_job
    from dneuro.jobs.submitting import command_of
    from dneuro.progress import showing
    from dneuro.spec import SeriesSpec, find_profile, read_profile, read_study
    from dneuro.tables import show_forecast, show_plan

    profile = read_profile(find_profile(cluster or "local", profile_folders()))
    spec = read_study(find_job(job), settings or ())
    backend = backend_of(profile)
    check_files(spec, backend)
    sizes = cache(backend.sizes)
    folder = JobFolder.of(profile.state, spec)
    sent = backend.preview(folder.path, command_of(folder), spec.name)
    if isinstance(spec, SeriesSpec):
        _plan_members(spec, profile, sizes, calibrate, json, sent)
        return
    with showing(quiet=True), ended_by_signals():
        found = plan_job(spec, sizes)
        if not json:
            show_plan(found, sizes)
        foretold = None
        if calibrate:
            from dneuro.jobs.calibration import forecast

            foretold = forecast(found, profile, calibrate)
    if json:
        print_json({**found.to_dict(), "forecast": foretold and foretold.to_dict(), "sent": sent})
        return
    if foretold:
        show_forecast(foretold)
    _show_sent(profile, sent)


def _show_sent(profile: ProfileSpec, sent: str) -> None:
    """Print what a cluster would be sent, where that is a file of its own."""
    if profile.backend in ("slurm", "kubernetes"):
        typer.echo(f"\nsent by `dneuro submit`:\n\n{sent}", nl=False)


def _plan_members(
    series: SeriesSpec, profile: ProfileSpec, sizes: Callable[[str], WorkerSizes], calibrate: int, json: bool, sent: str
) -> None:
    """Print what a job over several networks or checkpoints will cost."""
    from dneuro.cluster.signals import ended_by_signals
    from dneuro.jobs.members import plan_members
    from dneuro.progress import showing
    from dneuro.tables import show_forecast, show_members

    with showing(quiet=True), ended_by_signals():
        plans = plan_members(series, sizes)
        if not json:
            show_members(plans, sizes)
        forecasts = plans.forecasts(profile, calibrate) if calibrate else {}
    if json:
        print_json({**plans.to_dict(), "forecasts": {name: one.to_dict() for name, one in forecasts.items()},
                    "sent": sent})  # fmt: skip
        return
    for member, one in forecasts.items():
        typer.echo(f"\n{member}:")
        show_forecast(one)
    _show_sent(profile, sent)
