"""What several commands take, and how they print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dneuro.jobs.folder import JobFolder

Job = Annotated[str, typer.Argument(help="Job file, or the name of one in ./jobs or among those shipped (demo).")]
Cluster = Annotated[str | None, typer.Option(help="Profile: where to compute, a file or a name.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE in place of the file's: steps.svd.rank=16.")]
JobId = Annotated[str, typer.Argument(help="Id of a job, the unique beginning of one, its name, or its folder.")]
OfCluster = Annotated[str | None, typer.Option("--cluster", help="Profile whose jobs are meant, a file or a name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings and errors.")]


def set_by(cluster: str | None) -> str:
    """Return what commands about the job need besides its id; empty if nothing."""
    import shlex

    return "" if cluster is None else f" --cluster {shlex.quote(cluster)}"


@contextlib.contextmanager
def hints_for(cluster: str | None) -> Iterator[None]:
    """Complete the commands in the hint of an error: without the profile they would look for the job elsewhere."""
    import re

    from dneuro.errors import DneuroError

    try:
        yield
    except DneuroError as error:
        if error.hint and "--cluster" not in error.hint:
            commands = r"\bdneuro (?:submit|status|logs|cancel|resume|retry) [^\s,;`]+(?: -f| --failed)*"
            error.hint = re.sub(commands, lambda found: found[0] + set_by(cluster), error.hint)
        raise


def find_job(job: str) -> Path:
    """Return the path of a job file, also of one that is given by its name."""
    from dneuro.cluster.profiles import shipped

    path = Path(job)
    if path.suffix or path.exists() or "/" in job:
        return path
    return next((found for folder in shipped("jobs") if (found := folder / f"{job}.yaml").is_file()), path)


def state_of(cluster: str | None) -> str:
    """Return the folder in which the jobs of a profile have their folders."""
    from dneuro.cluster import profile_folders
    from dneuro.spec import find_profile, read_profile

    return read_profile(find_profile(cluster, profile_folders())).state


def find_folder(job: str, cluster: str | None) -> JobFolder:
    """Return the folder of a job."""
    from dneuro.jobs.folder import find

    return find(job, state_of(cluster))


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    import json

    typer.echo(json.dumps(value, indent=1))
