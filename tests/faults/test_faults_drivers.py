"""Drivers that are killed at random, two at once, told to end: what is done is never redone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec, PoolSpec, ProfileSpec
from dneuro.store.units import units_folder

WORKERS = 2
BETWEEN = (0, 12)
"""Units after which a driver is killed, at random."""


def markers(job: JobSpec) -> dict[str, int]:
    """Time of every marker of the extraction."""
    folder = units_folder(job.store) / "extract"
    found = {}
    for path in folder.glob("*/*.done"):
        found[f"{path.parent.name}/{path.name}"] = path.stat().st_mtime_ns
    return found


def begun(job: JobSpec) -> set[str]:
    """Units that were begun and are not done: they are what is redone."""
    return {path.stem for path in (units_folder(job.store) / "extract").glob("*/*.attempts")}


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in time"
        time.sleep(0.02)


def test_driver__killed_at_random_and_resumed_redoes_next_to_nothing(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, tmp_path: Path,
    same_store: Callable[[Path, Path], None], times: Callable[[int, int], int], measured: Callable[..., None],
) -> None:  # fmt: skip
    kills = times(1, 25)
    sample, unit = (1792, 4) if kills > 1 else (320, 16)
    settings: dict[str, Any] = {"images": {"source": "digits", "sample": sample}, "images_per_unit": unit, "batch": 1}
    spec = make_job({"moments": None}, store="killed.zarr", **settings)
    pool = PoolSpec(workers=WORKERS, memory="2GiB")
    profile = ProfileSpec(backend="local", state=str(tmp_path / "state"), pools={"extract": pool})
    one, redone, first = random.Random(6), [], []
    job = dn.submit(spec, profile)
    for number in range(kills):
        before = markers(spec)
        goal = len(before) + 3 * one.randint(*BETWEEN)
        if number:
            began = time.monotonic()
            job.resume()
            until(lambda before=before: markers(spec).keys() - before.keys() or job.status().is_over)
            first.append(time.monotonic() - began)
        until(lambda goal=goal: len(markers(spec)) >= goal or job.status().is_over)
        time.sleep(one.random() / 4)
        if job.status().is_over:
            break
        os.kill(int(job._folder.read("driver")["id"]), signal.SIGKILL)
        until(lambda: job.status().state == "lost", 30)
        time.sleep(1)  # its workers notice and end
        redone.append(len(begun(spec)))
        after = markers(spec)
        assert all(after[name] == before[name] for name in before), "what is done is left alone"
        assert redone[-1] <= 2 * WORKERS
    began, before = time.monotonic(), markers(spec)
    job.resume()
    until(lambda: markers(spec).keys() - before.keys() or job.status().is_over)
    first.append(time.monotonic() - began)
    end = job.wait(400)
    assert end.state == "done", end.found.get("error")
    assert len(redone) == kills, "killed before the job was done"
    clean = run_job(make_job({"moments": None}, store="clean.zarr", **settings), threads)
    same_store(Path(spec.store), clean.store)
    measured(
        drivers_killed=len(redone),
        most_units_redone=max(redone),
        slots=WORKERS,
        seconds_to_first_unit=round(max(first), 1),
    )


def test_second_driver__of_a_job_that_runs_leaves_within_seconds(
    make_job: Callable[..., JobSpec], tmp_path: Path, measured: Callable[..., None]
) -> None:
    settings: dict[str, Any] = {"images": {"source": "digits", "sample": 1600}, "images_per_unit": 4, "batch": 1}
    spec = make_job(store="two.zarr", **settings)
    pool = PoolSpec(workers=1, memory="2GiB")
    job = dn.submit(spec, ProfileSpec(backend="local", state=str(tmp_path / "state"), pools={"extract": pool}))
    until(lambda: job.status().state == "running")
    command = [sys.executable, "-m", "dneuro", "drive", str(job._folder.path)]
    began = time.monotonic()
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    assert second.returncode == 4
    assert "is at work on this job (run 1)" in second.stderr
    with pytest.raises(dn.DneuroError, match="is at work on this store"):
        run_job(spec)
    assert job.status().state == "running"
    assert job.cancel().exit_code == 5
    measured(seconds_until_the_second_left=round(took, 1))
