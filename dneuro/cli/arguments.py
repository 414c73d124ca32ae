"""What several commands take, and how they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Job = Annotated[str, typer.Argument(help="Job file, or the name of one in ./jobs or among those shipped (demo).")]
Cluster = Annotated[str | None, typer.Option(help="Profile: where to compute, a file or a name.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE in place of the file's: steps.svd.rank=16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings and errors.")]


def find_job(job: str) -> Path:
    """Return the path of a job file, also of one that is given by its name."""
    from dneuro.cluster.profiles import shipped

    path = Path(job)
    if path.suffix or path.exists() or "/" in job:
        return path
    return next((found for folder in shipped("jobs") if (found := folder / f"{job}.yaml").is_file()), path)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    import json

    typer.echo(json.dumps(value, indent=1))
