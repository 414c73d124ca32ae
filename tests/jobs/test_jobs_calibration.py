"""A forecast is scaled from what a trial measured, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.jobs import calibration
from dneuro.jobs.calibration import bytes_below, forecast
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec
from dneuro.spec.profile import ProfileSpec


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_a_job_that_is_tried_on_half_of_its_images(
    make_job: Callable[..., JobSpec], tmp_path: Path, threads: ThreadExecutor
) -> None:
    job = make_job({"svd": {"rank": 2, "layer": "fc"}}, {"train": {"epochs": 1}}, "report")
    plan = plan_job(job, threads)
    heard: list[events.Event] = []
    with events.listening(heard.append):
        found = forecast(plan, ProfileSpec(backend="local"), images=20)
    assert found.tried == 20
    assert list(found.seconds) == ["train", "extract", "svd", "report"], "in the order of the job"
    assert found.seconds["extract"] == pytest.approx(40 / found.rate)
    assert found.total == pytest.approx(sum(found.seconds.values()))
    assert found.worker_bytes > 0
    assert 0 < found.disk_bytes < 100 * plan.disk_bytes
    assert heard == [], "a trial is not the job"
    assert not Path(job.store).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__is_never_tried_on_more_images_than_there_are(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    assert forecast(plan_job(make_job(), threads), ProfileSpec(backend="local"), images=1000).tried == 40


def test_rate__does_not_count_the_units_that_load_the_network() -> None:
    def progress(done: int, time: float) -> events.Event:
        return events.Event("progress", "extract", done=done, total=80, time=time, data={"rate": 1.0})

    seen = [progress(10, 100.0), progress(20, 100.1), progress(30, 101.0), progress(60, 102.1)]
    assert calibration._rate(seen, slots=2) == pytest.approx(40 / 2.0)
    assert calibration._rate(seen[:1], slots=2) == 1.0, "nothing else is known"


@pytest.mark.usefixtures("threads_as_machines")
def test_forecast__of_the_disk_is_what_the_job_then_takes(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    job = make_job({"cooccurrence": {"k": 5}}, {"svd": {"rank": 2, "layer": "fc"}}, "report")
    plan = plan_job(job, threads)
    foretold = forecast(plan, ProfileSpec(backend="local"), images=20).disk_bytes
    run_job(job, threads)
    store = Path(job.store)
    taken = sum(bytes_below(folder) for folder in store.parent.glob(f"{store.name}*"))
    assert foretold == pytest.approx(taken, rel=0.15)
