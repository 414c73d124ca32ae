"""`dneuro run` as a process of its own, ended in every way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dneuro.engine.executors import ThreadExecutor
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec, read_job
from dneuro.store.units import units_folder

UNITS = 20
SETTINGS: dict[str, Any] = {"images": {"source": "digits", "sample": 16 * UNITS}, "batch": 1}
STEPS: list[Any] = [{"moments": None}, {"top_images": {"per": "neuron", "layer": "relu1", "k": 3}}]
# A shell without job control lets its children ignore Ctrl-C; a terminal does not.
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from dneuro.cli import main; main()"


class Run:
    """A process group with `dneuro run` in it."""

    def __init__(self, job: Path) -> None:
        (job.parent / "one.yaml").write_text("backend: local\npools: {extract: {workers: 1, memory: 3GiB}}\n")
        self.log = job.parent / f"{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "run", str(job), "--cluster", "one.yaml", "--json"],
                cwd=job.parent, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True,
            )  # fmt: skip

    def wait_until_done(self, store: Path, units: int) -> None:
        """Wait until so many units have been extracted."""
        folder = units_folder(store) / "extract" / "fc"
        while len(list(folder.glob("*.done"))) < units:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.005)

    def signal_all(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, _ = self.process.communicate(timeout=120)
        return self.process.returncode, out, self.log.read_text()


@pytest.fixture
def start() -> Iterator[Callable[[Path], Run]]:
    runs: list[Run] = []

    def begin(job: Path) -> Run:
        runs.append(Run(job))
        return runs[-1]

    yield begin
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            run.signal_all(signal.SIGKILL)
        run.process.communicate()


def published(store: Path) -> dict[str, tuple[int, int]]:
    """Attempt and time of every marker."""
    folder = units_folder(store) / "extract"
    return {
        str(path.relative_to(folder)): (json.loads(path.read_bytes())["attempt"], path.stat().st_mtime_ns)
        for path in folder.glob("*/*.done")
    }


def test_sigkill__of_the_whole_run_then_the_same_job_redoes_only_what_was_not_done(
    start: Callable[[Path], Run], write_job: Callable[..., Path], make_job: Callable[..., JobSpec],
    threads: ThreadExecutor, same_store: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    job = write_job(*STEPS, **SETTINGS)
    store = Path(read_job(job).store)
    first = start(job)
    first.wait_until_done(store, 3)
    first.signal_all(signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL
    before = published(store)
    assert {attempt for attempt, _ in before.values()} == {1}
    whole = [n for n in range(UNITS) if all(f"{part}/{n:05d}.done" in before for part in ("images", "relu1", "fc"))]
    assert 3 <= len(whole) < UNITS, "the run was killed in the middle"

    resumed = run_job(read_job(job), threads)
    assert resumed.outcome.done_before == len(whole)
    assert resumed.outcome.images == 16 * (UNITS - len(whole))
    after = published(store)
    assert {name: after[name] for name in before} == before, "what was done is left alone"
    assert {after[name][0] for name in after.keys() - before.keys()} <= {2}
    assert len([name for name in after if name.startswith("fc/")]) == UNITS

    clean = run_job(make_job(*STEPS, store="clean.zarr", **SETTINGS), threads)
    same_store(store, clean.store)


def test_ctrl_c__ends_the_run_with_its_own_code_and_it_goes_on_later(
    start: Callable[[Path], Run], write_job: Callable[..., Path], threads: ThreadExecutor
) -> None:
    job = write_job(**SETTINGS)
    spec = read_job(job)
    run = start(job)
    run.wait_until_done(Path(spec.store), 2)
    run.signal_all(signal.SIGINT)  # as a terminal does: to the driver and to its workers
    code, out, log = run.end()
    assert code == 5, log
    assert out == ""
    assert "error: stopped by the user; what is done stays done" in log
    assert "hint: the same command again goes on from here" in log
    assert "Traceback" not in log
    (status,) = (job.parent / ".dneuro" / "jobs").glob("*/status.json")
    assert json.loads(status.read_bytes())["state"] == "cancelled"
    resumed = run_job(spec, threads)
    assert 2 <= resumed.outcome.done_before < UNITS
    assert resumed.outcome.quarantined == {}
