"""The demo as a newcomer gives it to Slurm: from a fresh clone, with the profile that lies there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import in_queue, wait_until

ROOT = Path(__file__).parents[2]
CLUSTER = ("--cluster", "deploy/slurm/one-node.yaml")


def test_demo__from_a_clone_ends_with_the_results_of_a_laptop(
    slurm: Path, tmp_path: Path, same_store: Callable[[Path, Path], None]
) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no clone to clone: git is missing here, or its folder")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)

    def dneuro(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dneuro", *words], cwd=clone, env={**os.environ, "PYTHONPATH": str(clone)},
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    assert dneuro("submit", "jobs/demo.yaml", *CLUSTER).startswith("demo-")
    dneuro("logs", "--follow", "demo", *CLUSTER)
    found = json.loads(dneuro("status", "demo", *CLUSTER, "--json"))
    assert found["state"] == "done"
    assert found["units"]["done"] == found["units"]["total"]
    wait_until(lambda: not in_queue(), 30, "an empty queue")
    there = (clone / "demo-output").rename(tmp_path / "there")
    assert (there / "demo.zarr.report" / "index.html").is_file()
    dneuro("run", "jobs/demo.yaml")
    same_store(there / "demo.zarr", clone / "demo-output" / "demo.zarr")
