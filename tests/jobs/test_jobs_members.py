"""Several networks or checkpoints over the same images: a store for each, resumed, planned together, compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DneuroError, NetworkError, PartialError
from dneuro.jobs import drive, ending, study, submitting
from dneuro.jobs.driver import run_job
from dneuro.jobs.folder import JobFolder, folders
from dneuro.jobs.members import MembersResult, plan_members, run_members
from dneuro.jobs.watching import status
from dneuro.nets.convnet import ConvNet
from dneuro.nets.weights import save_state
from dneuro.spec import PoolSpec, ProfileSpec, SeriesSpec, parse_study

STEPS = [{"extract": {"layers": ["relu1", "fc"], "images_per_unit": 16}}, {"svd": {"layer": "fc", "rank": 2}}]


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """Files of two sets of weights."""
    files = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        files.append(str(tmp_path / f"epoch-{seed}.safetensors"))
        save_state(ConvNet().state_dict(), files[-1])
    return files


@pytest.fixture
def make(tmp_path: Path, checkpoints: list[str]) -> Callable[..., SeriesSpec]:
    def series(*more: Any, **settings: Any) -> SeriesSpec:
        job = {
            "name": "training", "images": {"source": "digits", "sample": 40}, "store": str(tmp_path / "training.zarr"),
            "network": {"name": "dneuro:convnet", "weights": checkpoints}, "steps": [*STEPS, *more],
        }  # fmt: skip
        found = parse_study(json.dumps({key: value for key, value in (job | settings).items() if value is not None}))
        assert isinstance(found, SeriesSpec)
        return found

    return series


def test_members__each_is_as_if_run_alone(
    make: Callable[..., SeriesSpec], tmp_path: Path, threads: ThreadExecutor, same_store: Callable[[Path, Path], None]
) -> None:
    found = run_members(make(), threads)
    assert list(found) == ["epoch-1", "epoch-2"]
    assert found.stores == {name: tmp_path / f"training-{name}.zarr" for name in found}
    assert found.report is None
    alone = make().members["epoch-2"]
    alone = alone.model_copy(update={"store": str(tmp_path / "alone.zarr")})
    run_job(alone, threads)
    one, other = (dn.open(tmp_path / name) for name in ("alone.zarr", "training-epoch-2.zarr"))
    xr.testing.assert_identical(one["fc"].load(), other["fc"].load())
    assert not one["fc"].equals(dn.open(tmp_path / "training-epoch-1.zarr")["fc"].load())


def test_members__the_images_are_listed_once(
    make: Callable[..., SeriesSpec], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []

    def opened(images: Any, *rest: Any) -> Any:
        listed.append(images)
        return open_source(images, *rest)

    open_source = study.open_source
    monkeypatch.setattr(study, "open_source", opened)
    plan_members(make(), threads)
    assert len(listed) == 1


def test_members__run_again_only_what_is_missing(
    make: Callable[..., SeriesSpec], checkpoints: list[str], threads: ThreadExecutor
) -> None:
    first = make(network={"name": "dneuro:convnet", "weights": checkpoints[:1]})
    assert [result.computed for result in run_members(first, threads).values()] == [1]
    found = run_members(make(), threads)
    assert [(one.outcome.done_before, one.computed, one.kept) for one in found.values()] == [(3, 0, 1), (0, 1, 0)]


def test_members__are_planned_together(make: Callable[..., SeriesSpec], threads: ThreadExecutor) -> None:
    plans = plan_members(make(), threads)
    each = list(plans.members.values())
    assert plans.disk_bytes == sum(plan.disk_bytes for plan in each) == 2 * each[0].disk_bytes
    assert plans.worker_bytes == max(plan.worker_bytes for plan in each)
    assert plans.to_dict()["members"]["epoch-2"]["store"].endswith("training-epoch-2.zarr")


def test_members__all_are_checked_before_one_is_started(
    make: Callable[..., SeriesSpec], checkpoints: list[str], tmp_path: Path, threads: ThreadExecutor
) -> None:
    networks = {
        "good": {"name": "dneuro:convnet", "weights": checkpoints[0]},
        "other": {"name": "dneuro:convnet", "weights": checkpoints[1], "layers": ["relu7"]},
    }
    with pytest.raises(NetworkError, match=r"other: .*no layer 'relu7'") as caught:
        run_members(make(network=None, networks=networks), threads)
    assert "relu" in str(caught.value.hint)
    assert not list(tmp_path.glob("*.zarr"))


def test_members__are_compared_on_one_page(
    make: Callable[..., SeriesSpec], checkpoints: list[str], tmp_path: Path, threads: ThreadExecutor
) -> None:
    networks = {
        "first": {"name": "dneuro:convnet", "weights": checkpoints[0]},
        "second": {"name": "dneuro:convnet", "weights": checkpoints[1], "layers": ["fc", "relu2"]},
    }
    steps = [{"similarity": {"metric": ["pearson"]}}, "selectivity", {"report": {"index": False}}]
    heard: list[events.Event] = []
    with events.listening(heard.append):
        found = run_members(make(*steps, network=None, networks=networks), threads)
    assert found.report == tmp_path / "training.zarr.report" / "index.html"
    page = found.report.read_text()
    for name, result in found.items():
        assert isinstance(result.report, Path)
        link = f"../{result.report.parent.name}/index.html"
        assert f'href="{link}">{name}' in page
        assert (found.report.parent / link).resolve() == result.report.resolve()
    for word in ("relu1", "relu2", "fc", "svd: variance explained", "similarity: |pearson|", "selectivity: Gini index"):
        assert word in page, word
    mean = float(dn.open(found["second"].store).statistics("relu2")["mean"].mean())
    assert f'<td class="number">–</td><td class="number">{mean:.3f}'.rstrip("0") in page
    assert [event.message for event in heard if "of 2" in event.message] == ["first, 1 of 2", "second, 2 of 2"]


def test_run__gives_the_results_by_member(make: Callable[..., SeriesSpec], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(make().model_dump_json(exclude_none=True))
    found = dn.run(path, overrides=["steps.svd.rank=1"])
    assert isinstance(found, MembersResult)
    assert len(found) == 2
    assert found["epoch-1"].store == tmp_path / "training-epoch-1.zarr"
    assert dn.open(found["epoch-1"].store).results["svd"]["fc"].sizes["component"] == 1
    with pytest.raises(DneuroError, match=r"epoch-1: .*was made from something else"):
        dn.run(path, overrides=["images.sample=30"])


@pytest.fixture
def profile(tmp_path: Path) -> ProfileSpec:
    pool = PoolSpec(workers=1, memory="3GiB")
    return ProfileSpec(backend="local", state=str(tmp_path / "state"), pools={"extract": pool})


def test_members__are_one_job_when_they_are_submitted(make: Callable[..., SeriesSpec], profile: ProfileSpec) -> None:
    spec = make({"report": {"index": False}})
    job = dn.submit(spec, profile)
    assert job.id.startswith("training-")
    end = job.wait(180)
    assert end.state == "done", (job._folder.path / "driver.log").read_text()
    assert [(step["step"], step["state"]) for step in end.found["steps"]] == [
        (f"{member}/{step}", "done") for member in ("epoch-1", "epoch-2") for step in ("extract", "svd", "report")
    ]
    assert end.found["units"] == {"total": 6, "done": 6, "failed": 0, "masked": 0}
    assert Path(end.found["store"]).name == "training-*.zarr"
    assert Path(end.found["report"]).parent.name == "training.zarr.report"
    stores = job.result()
    assert isinstance(stores, dict)
    assert list(stores) == ["epoch-1", "epoch-2"]
    assert not stores["epoch-1"]["fc"].equals(stores["epoch-2"]["fc"])
    assert len(end.found["memory"]) == 1, "one worker for both"


def test_members__that_failed_in_part_are_tried_again(
    make: Callable[..., SeriesSpec], profile: ProfileSpec, threads_as_machines: ThreadExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from dneuro.extract import task

    honest = task.batches

    def batches(work: Any, layers: Any, start: int, stop: int) -> Any:
        if start == 16 and work.store.name == "training-epoch-1.zarr":
            raise ValueError("torn")
        return honest(work, layers, start, stop)

    monkeypatch.setattr(task, "batches", batches)
    with pytest.raises(PartialError, match="epoch-1: 1 of 3 units"):
        dn.run(make(), cluster=profile)
    (folder,) = folders(profile.state)
    found = status(folder)
    assert (found.state, found.found["units"]["failed"]) == ("partial", 1)
    assert dn.open(make().members["epoch-2"].store).results["svd"]["fc"].sizes["component"] == 2, "the other is done"
    monkeypatch.setattr(submitting, "_start", lambda *args: None)
    assert submitting.retry(folder) == 1
    monkeypatch.setattr(task, "batches", honest)
    done = drive.drive(str(folder.path))
    assert isinstance(done, MembersResult)
    assert [one.outcome.done_before for one in done.values()] == [2, 3]
    assert status(folder).state == "done"


@pytest.mark.usefixtures("threads_as_machines")
def test_members__gc_clears_beside_each_of_their_stores(make: Callable[..., SeriesSpec], profile: ProfileSpec) -> None:
    spec = make()
    dn.run(spec, cluster=profile)
    strays = [Path(f"{one.store}.units") / "extract" / ".00000.done.x.partial" for one in spec.members.values()]
    for stray in strays:
        stray.write_text("half")
    found = ending.waste(list(folders(profile.state)))
    assert {one.path for one in found} == {*strays, JobFolder.of(profile.state, spec).path}
