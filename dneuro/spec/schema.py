"""JSON schemas of job and profile files, for editors that complete and check YAML.

``python -m dneuro.spec.schema [FOLDER]`` writes them into the ``jobs`` and ``cluster`` folders of FOLDER, by
default the one it is started in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dneuro.spec.job import JobSpec
from dneuro.spec.outline import describe
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.series import SeriesSpec


def job_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a job file."""
    job, series = describe(JobSpec), describe(SeriesSpec)
    networks = {name: series["properties"][name] for name in ("network", "networks")}
    networks["network"] = {**job["properties"]["network"], "anyOf": [
        {"$ref": "#/$defs/NetworkSpec"}, {"$ref": "#/$defs/CheckpointsSpec"},
    ]}  # fmt: skip
    networks["network"].pop("$ref", None)
    together = {
        "properties": {**job["properties"], **networks},
        "required": [name for name in job["required"] if name != "network"],
        "oneOf": [{"required": [name]} for name in networks],
        "$defs": {**job["$defs"], **series["$defs"]},
    }
    return _document("dneuro job", {**job, **together})


def profile_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a profile file."""
    return _document("dneuro profile", describe(ProfileSpec))


def write_schemas(root: Path) -> list[Path]:
    """Write ``jobs/job.schema.json`` and ``cluster/profile.schema.json`` below `root`; return their paths."""
    schemas = {
        root / "jobs" / "job.schema.json": job_schema(),
        root / "cluster" / "profile.schema.json": profile_schema(),
    }
    for path, schema in schemas.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return list(schemas)


def _document(title: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": title}


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
