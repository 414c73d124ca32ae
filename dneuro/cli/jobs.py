"""Commands about submitted jobs: submit, status, logs, cancel, resume, retry, list, gc, and the driver's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dneuro.cli.arguments import (
    AsJson,
    Cluster,
    Job,
    JobId,
    OfCluster,
    Set,
    find_folder,
    find_job,
    hints_for,
    print_json,
    set_by,
    state_of,
)


def submit(job: Job, cluster: Cluster = None, settings: Set = None, json: AsJson = False) -> None:
    """Check a job and start it on a driver of its own; prints its id and what to do next."""
    from dneuro.jobs.submitting import read_both
    from dneuro.jobs.submitting import submit as start
    from dneuro.progress import showing
    from dneuro.quantities import format_bytes
    from dneuro.spec import store_pattern

    with showing(quiet=True), hints_for(cluster):
        folder, plan = start(*read_both(str(find_job(job)), cluster or "local", settings or ()))
    store = store_pattern(folder.read_job())
    if json:
        print_json({"id": folder.id, "folder": str(folder.path), "store": store, "plan": plan.to_dict()})
        return
    typer.echo(folder.id)
    units = f"{plan.units} units" + (f", {plan.done} of them done" if plan.done else "")
    typer.echo(f"{units}, {format_bytes(plan.disk_bytes)} before compression; store {store}", err=True)
    more = set_by(cluster)
    for command, what in (("status", "how far it is"), ("logs -f", "follow it"), ("cancel", "end it")):
        verb, *flags = command.split()
        line = " ".join(["dneuro", verb, folder.id, *flags])
        typer.echo(f"  {line + more:44} # {what}", err=True)


def status(
    job: Annotated[
        str | None, typer.Argument(help="Id, beginning of one, name or folder; all jobs if left out.")
    ] = None,
    cluster: OfCluster = None,
    json: AsJson = False,
) -> None:
    """Say how a job is: state, steps, units, rate, time left, workers, memory, last error."""
    from dneuro.jobs.watching import status as of
    from dneuro.tables import show_status

    if job is None:
        every(cluster, json)
        return
    found = of(find_folder(job, cluster))
    if json:
        print_json(found.to_dict())
    else:
        show_status(found, set_by(cluster))


def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends; with its exit code.")
    ] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; the default is the newest.")] = None,
    cluster: OfCluster = None,
    json: AsJson = False,
) -> None:
    """Print what happened in a job, line by line; -f follows it until it ends."""
    from dneuro.cluster.processes import log_of
    from dneuro.errors import UsageError
    from dneuro.jobs.watching import entries, status
    from dneuro.jobs.watching import follow as following
    from dneuro.progress import Lines

    folder = find_folder(job, cluster)
    if attempt is not None and attempt not in (there := folder.attempt_numbers()):
        known = ", ".join(map(str, there)) or "none yet"
        raise UsageError(f"job {folder.id} has no attempt {attempt}", hint=f"attempts there: {known}")
    lines = Lines()
    for entry in following(folder) if follow else entries(folder, attempt)[0]:
        if json:
            from json import dumps

            typer.echo(dumps(entry))
        else:
            for line in lines.of(entry):
                typer.echo(line)
    now = status(folder)
    if not json:
        if now.state in ("lost", "failed", "interrupted") and not follow:
            _print_tail(log_of(folder.path))
        error = now.found.get("error")
        typer.echo(f"{now.state}: {error['message']}" if error else now.state, err=True)
        if now.advice:
            typer.echo(f"hint: {now.advice}{set_by(cluster)}", err=True)
    if follow:
        raise typer.Exit(now.exit_code if now.exit_code is not None else 4)


def cancel(job: JobId, cluster: OfCluster = None, json: AsJson = False) -> None:
    """End a job and all its machines, its driver alive or dead; what is done stays done."""
    from dneuro.jobs.ending import cancel as end

    with hints_for(cluster):
        found = end(find_folder(job, cluster))
    if json:
        print_json({**found.status.to_dict(), "machines_ended": found.ended})
        return
    left = f", ended {', '.join(found.ended)}" if found.ended else ""
    typer.echo(f"{found.status.id}: {found.status.state}{left}")


def resume(job: JobId, cluster: OfCluster = None, json: AsJson = False) -> None:
    """Start another driver for a job whose own is gone; what is done stays done."""
    from dneuro.jobs.submitting import resume as start
    from dneuro.progress import showing

    folder = find_folder(job, cluster)
    with showing(quiet=True), hints_for(cluster):
        plan = start(folder)
    if json:
        print_json({"id": folder.id, "units": plan.units, "units_done": plan.done})
    else:
        typer.echo(f"{folder.id}: goes on, {plan.done} of {plan.units} units are done")


def retry(
    job: JobId,
    failed: Annotated[
        bool, typer.Option("--failed", help="The units that failed again and again; must be said.")
    ] = False,
    cluster: OfCluster = None,
    json: AsJson = False,
) -> None:
    """Try again the units that failed again and again, and what needs them."""
    from dneuro.errors import UsageError
    from dneuro.jobs.submitting import retry as start
    from dneuro.progress import showing

    folder = find_folder(job, cluster)
    if not failed:
        raise UsageError("what is to be tried again?", hint=f"dneuro retry {folder.id} --failed{set_by(cluster)}")
    with showing(quiet=True), hints_for(cluster):
        count = start(folder)
    if json:
        print_json({"id": folder.id, "units": count})
    else:
        typer.echo(f"{folder.id}: {count} unit{'s' if count > 1 else ''} again")


def every(cluster: OfCluster = None, json: AsJson = False) -> None:
    """List the jobs of a profile, the newest first."""
    from dneuro.jobs.folder import folders
    from dneuro.jobs.watching import status_of_any as of
    from dneuro.tables import show_jobs

    found = [of(folder) for folder in folders(state_of(cluster))]
    found.sort(key=lambda one: -(one.found.get("submitted") or 0))
    if json:
        print_json([one.to_dict() for one in found])
    else:
        show_jobs(found)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed; without it, it is only listed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List only, whatever else is said.")] = False,
    days: Annotated[float, typer.Option(min=0, help="Only of jobs that ended so many days ago or more.")] = 0.0,
    cluster: OfCluster = None,
    json: AsJson = False,
) -> None:
    """List, or remove, the folders of jobs that are done or cancelled, and files left half written; never a store."""
    from dneuro.jobs.ending import clear, waste
    from dneuro.jobs.folder import folders
    from dneuro.progress import showing

    with showing(quiet=True):
        found = waste(list(folders(state_of(cluster))), older=days * 86400)
    removed = yes and not dry_run
    if removed:
        clear(found)
    if json:
        print_json({"removed": removed, "found": [one.to_dict() for one in found]})
        return
    for one in found:
        typer.echo(f"{one.what:8} {one.path}  ({one.why})")
    if found and not removed:
        typer.echo(f"hint: dneuro gc --yes{set_by(cluster)} removes these", err=True)


def drive(folder: Annotated[str, typer.Argument(help="Folder of a job.")]) -> None:
    """Run the job of a folder: what a driver does."""
    from dneuro.cluster.signals import ended_by_signals
    from dneuro.errors import CancelledError, SchedulerLostError
    from dneuro.jobs.attempt import INTERRUPTED
    from dneuro.jobs.drive import drive as run
    from dneuro.jobs.drive import was_cancelled
    from dneuro.progress import showing

    with showing(), ended_by_signals():
        try:
            run(folder)
        except (KeyboardInterrupt, CancelledError):
            if was_cancelled(folder):
                raise
            raise typer.Exit(INTERRUPTED) from None
        except SchedulerLostError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _print_tail(place: Path, count: int = 30) -> None:
    """Print the last lines of what a driver said, if it said anything here."""
    if place.is_file():
        for line in place.read_text(errors="replace").splitlines()[-count:]:
            typer.echo(f"driver.log: {line}", err=True)
