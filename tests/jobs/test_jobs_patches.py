"""The step about top patches, through a job: what it finds, where it lies, what it leaves out, how it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.analysis import gathering
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ImageSourceError, MemoryLimitError, SpecError, UsageError
from dneuro.extract import views
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.quantities import GiB, MiB
from dneuro.spec import JobSpec, parse_job
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
MakePhotos = Callable[..., dict[str, Any]]
KEPT = {"conv1": {"keep": "full"}, "relu1": {"keep": "max"}, "relu2": {"keep": "stats"}, "fc": {"keep": "full"}}
STEP: dict[str, Any] = {"k": 12, "rank": 3, "keep": 4, "max_iter": 50}


def run(job: JobSpec, threads: ThreadExecutor) -> tuple[Any, list[events.Event]]:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        return run_job(job, threads), seen


def test_step__is_the_functions_whatever_is_kept(make_job: MakeJob, threads: ThreadExecutor) -> None:
    result, seen = run(make_job({"patch_components": STEP}, layers=KEPT), threads)
    store = dn.open(result.store)
    found = store.results["patch_components"]
    assert set(found) == {"conv1", "relu1", "relu2"}
    assert "leaves out layer fc, which has no positions" in [event.message for event in seen]
    for layer in found:
        patches = dn.top_patches(store, layer, k=5)  # as many as were recorded
        assert found[layer]["patch"].equals(patches[:, :4].drop_vars(list(patches.coords)).rename("patch"))
        assert found[layer]["count"].values.max() == 12
        assert found[layer].attrs["analysis"] == "patch_components"
        assert found[layer].attrs["step"] == "patch_components"
        assert found[layer].attrs["parameters"]["k"] == 12
        assert "rgb" not in found[layer], "digits have no colours"
    top = dn.top_images(store["conv1"], k=12, client=threads)
    expected = dn.patch_components(dn.top_patches(store, "conv1", k=12, top=top), client=threads, **STEP)
    mine = found["conv1"].load()
    for name in expected.data_vars:
        np.testing.assert_array_equal(mine[name], expected[name], err_msg=str(name))
    again, _ = run(make_job({"patch_components": STEP}, layers=KEPT), threads)
    assert (again.computed, again.kept) == (0, 3)


def test_step__writes_nothing_twice_and_verifies(make_job: MakeJob, threads: ThreadExecutor) -> None:
    result, _ = run(make_job({"patch_components": STEP}, layers=["conv1"]), threads)
    left = sorted(path.name for path in (units_folder(result.store) / "results" / "patch_components").iterdir())
    assert left == ["conv1.done"]
    assert dn.verify(result.store, client=threads).ok
    chunk = next((Path(result.store) / "results" / "patch_components" / "conv1" / "grey").rglob("c/0/0/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    damaged = dn.verify(result.store, client=threads).damaged
    assert [finding.where for finding in damaged] == ["results/patch_components/conv1/grey"]


def test_step__of_a_layer_without_positions_takes_whole_views(make_job: MakeJob, threads: ThreadExecutor) -> None:
    result, _ = run(make_job({"patch_components": {**STEP, "layer": "fc"}}, layers=["fc"]), threads)
    found = dn.open(result.store).results["patch_components"]["fc"]
    assert dict(found["patch"].sizes) == {"channel": 10, "sample": 4, "row": 28, "column": 28, "color": 1}


def test_step__of_selected_and_masked_images(
    make_job: MakeJob, make_photos: MakePhotos, threads: ThreadExecutor
) -> None:
    photos = make_photos(24, broken=[3, 20])
    more: list[dict[str, Any]] = [{"select": {"classes": ["dog"]}}, {"name": "all"}]
    steps = [{"patch_components": {**STEP, **one}} for one in more]
    result, _ = run(make_job(*steps, layers=["conv1"], **photos), threads)
    results = dn.open(result.store).results
    for step, wanted in (("patch_components", set(range(12, 24)) - {20}), ("all", set(range(24)) - {3, 20})):
        images = results[step]["conv1"]["top_image"].values
        assert set(images[images >= 0].tolist()) <= wanted
    assert results["patch_components"]["conv1"].attrs["selection"]["images"] == 11
    assert results["patch_components"]["conv1"].sizes["sample"] == 4


class Reads:
    """Counts the pictures that are read, and fails after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.most = 0, 10**9
        see = views.Views.see

        def counted(its: views.Views, number: int, *more: Any) -> Any:
            self.count += 1
            if self.count > self.most:
                raise OSError("the storage has gone away")
            return see(its, number, *more)

        monkeypatch.setattr(views.Views, "see", counted)


def test_step__goes_on_where_it_was_killed(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "EVERY", 0.0)
    reads, step = Reads(monkeypatch), {"patch_components": STEP}
    clean = run_job(make_job(step, layers=["conv1"], store="clean.zarr"), threads)
    in_all, reads.count, reads.most = reads.count, 0, reads.count // 2
    job = make_job(step, layers=["conv1"])
    with pytest.raises(OSError, match="the storage has gone away"):
        run_job(job, ThreadExecutor(1))
    folder = Path(units_folder(job.store)) / "results" / "patch_components"
    assert {path.suffix for path in (folder / "conv1.state").iterdir()} == {".npz", ".zarr"}
    assert "patch_components" not in dn.open(job.store).results
    assert dn.verify(job.store, client=threads).ok
    reads.count, reads.most = 0, 10**9
    result, seen = run(job, threads)
    assert result.computed == 1
    assert 0 < reads.count < in_all
    assert any("done before" in event.message for event in seen)
    one, other = (dn.open(r.store).results["patch_components"]["conv1"].load() for r in (result, clean))
    xr.testing.assert_identical(one, other)
    assert not (folder / "conv1.state").exists()


def test_step__with_images_that_are_gone_says_the_way_out(
    make_job: MakeJob, make_photos: MakePhotos, threads: ThreadExecutor, tmp_path: Path
) -> None:
    photos = make_photos(24)
    run_job(make_job(layers=["conv1"], **photos), threads)
    job = make_job({"patch_components": STEP}, layers=["conv1"], **photos)
    plan = plan_job(job, threads)
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere")
    said = r"step patch_components, layer conv1: image .* cannot be read again"
    with pytest.raises(ImageSourceError, match=said) as caught:
        run_job(plan, threads)
    assert "root" in str(caught.value.hint)
    photos["images"] = {**photos["images"], "root": str(tmp_path / "elsewhere")}
    result = run_job(make_job({"patch_components": STEP}, layers=["conv1"], **photos), threads)
    assert (result.outcome.images, result.computed) == (0, 1)


def test_plan__says_passes_bytes_and_memory(make_job: MakeJob, threads: ThreadExecutor) -> None:
    planned = plan_job(make_job({"patch_components": STEP}, layers=KEPT), threads)
    steps = {question.layer: plan for question, plan in planned.steps}
    assert {layer: plan.passes for layer, plan in steps.items()} == {"conv1": 0, "relu1": 0, "relu2": 0}
    assert steps["conv1"].result_bytes > 10 * 3 * 25 * 2
    assert "pictures read again" in steps["conv1"].method
    assert steps["conv1"].driver_bytes < MiB
    selected = plan_job(make_job({"patch_components": {**STEP, "select": {"sample": 30}}}, layers=["conv1"]), threads)
    assert [plan.passes for _, plan in selected.steps] == [1], "what was taken along is of all images"


def test_plan__refuses_what_cannot_be(make_job: MakeJob, threads: ThreadExecutor) -> None:
    with pytest.raises(UsageError, match="patch_components of conv1: rank=26 of 40 patches × 25 pixels"):
        plan_job(make_job({"patch_components": {"rank": 26}}, layers=["conv1"]), threads)
    with pytest.raises(UsageError, match="patch_components of conv1: rank=8 of 5 patches"):
        plan_job(make_job({"patch_components": {"select": {"sample": 5}}}, layers=["conv1"]), threads)
    with pytest.raises(MemoryLimitError, match="patch_components of conv1 needs"):
        plan_job(make_job({"patch_components": STEP}, layers=["conv1"]),
                 lambda pool: Workers(4 * GiB if pool == "extract" else 280 * MiB))  # fmt: skip
    with pytest.raises(UsageError, match="layer conv1 has keep: mean, and the step needs the max over positions"):
        job = make_job({"patch_components": {**STEP, "layer": "conv1", "select": {"sample": 30}}},
                       layers={"conv1": {"keep": "mean"}})  # fmt: skip
        plan_job(job, threads)


class Workers:
    """Workers of some memory."""

    slots = slots_per_process = 1
    process_bytes = 280 * MiB
    coalescing = False

    def __init__(self, memory: int) -> None:
        self.memory = self.driver_memory = memory


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("patch_components: {renderings: [grey, sepia]}", "unknown value 'sepia'"),
        ("patch_components: {renderings: [grey, grey]}", "named twice: grey"),
        ("patch_components: {renderings: []}", "renderings: must not be empty"),
        ("patch_components: {keep: -1}", "at least 0"),
        ("patch_components: {of: channel}", "unknown key 'of'"),
    ],
)
def test_step__refuses_what_cannot_be(step: str, message: str) -> None:
    text = (
        "name: a\nimages: {source: digits}\nnetwork: {name: 'dneuro:convnet', weights: none}\nstore: a.zarr\n"
        f"steps:\n  - extract: {{layers: [conv1]}}\n  - {step}\n"
    )
    with pytest.raises(SpecError, match=message):
        parse_job(text, "a.yaml")


def test_step__takes_one_rendering_as_a_word() -> None:
    text = (
        "name: a\nimages: {source: digits}\nnetwork: {name: 'dneuro:convnet', weights: none}\nstore: a.zarr\n"
        "steps:\n  - extract: {layers: [conv1]}\n  - patch_components: {renderings: grey}\n  - report\n"
    )
    job = parse_job(text, "a.yaml")
    assert job.steps[1].renderings == ["grey"]  # type: ignore[union-attr]
    assert parse_job(job.model_dump_json(), "b.yaml") == job
