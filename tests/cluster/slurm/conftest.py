"""What the tests of what is sent to Slurm, and made of its answers, share; tests/slurm has a real one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster import backend_of
from dneuro.cluster.slurm.scripts import Site, worker_script
from dneuro.spec import ProfileSpec


def profile(**settings: Any) -> ProfileSpec:
    return ProfileSpec.model_validate(
        {
            "backend": "slurm",
            "state": "/scratch/me",
            "pools": {
                "extract": {
                    "workers": 2, "gpus": 1, "gres": "gpu:a100:1", "cpus": 8, "threads": 2, "memory": "32GiB",
                    "partition": "gpu", "walltime": "4h", "constraint": "nvme", "directives": ["--exclude=n7"],
                    "env": {"WHERE": "a b"},
                },
                "memory": {"memory": "8GiB"},
            },
            "driver": {"cpus": 3, "memory": "4GiB", "walltime": "24h", "max_restarts": 2, "partition": "cpu"},
            "slurm": {"account": "lab", "qos": "high", "setup": ["module load cuda"], "scratch": "/local",
                      "python": "apptainer exec --nv dneuro.sif python"},
            "security": {"bind": "ib0"},
            **settings,
        }
    )  # fmt: skip


def script(of: ProfileSpec, group: str) -> list[str]:
    site = Site(of, Path("/scratch/me/jobs/a/attempts/001"), "tls://10.0.0.1:99", {"--tls-key": "/k/worker.key"})
    return worker_script(site, group, backend_of(of).sizes(group), "a-1f-extract-0-0", f"{group}-0").splitlines()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return ``commands(name, shell)``: Slurm's commands as scripts of the test."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, shell: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{shell}\n")
        (tmp_path / name).chmod(0o755)

    return make
