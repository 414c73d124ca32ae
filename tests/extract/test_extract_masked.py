"""Images that cannot be read: listed, left out of every statistic, never silently something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError
from dneuro.jobs.driver import run_job
from dneuro.jobs.reporting import report
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
MakePhotos = Callable[..., dict[str, Any]]
BROKEN = [0, 5, 17, *range(32, 40)]  # the last unit of three has none that can be read
KEPT = {"relu1": {"keep": "full"}, "conv1": {"keep": "max"}, "pool2": {"keep": "mean"},
        "relu2": {"keep": "stats"},
        "fc": {"keep": "full"}}  # fmt: skip


@pytest.fixture
def job(make_job: MakeJob, make_photos: MakePhotos) -> JobSpec:
    steps: list[Any] = [{"moments": None}, {"top_images": {"k": 4}}, {"moments": {"name": "each", "per": "neuron"}}]
    steps[2]["moments"]["layer"] = "relu1"
    return make_job(*steps, {"svd": {"layer": "fc", "rank": 2}}, layers=KEPT, batch=4, **make_photos(40, BROKEN))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_masked__rows_are_nan_and_listed_with_their_names(
    make_job: MakeJob, make_photos: MakePhotos, threads: ThreadExecutor, dtype: str
) -> None:
    job = make_job(layers=KEPT, dtype=dtype, batch=4, **make_photos(40, BROKEN))
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = run_job(job, threads)
    names = [f"{'cat' if n < 20 else 'dog'}/{n:03d}.png" for n in BROKEN]
    assert sorted(name for name, _ in result.outcome.masked) == sorted(names)
    assert all("not a picture" in why for _, why in result.outcome.masked)
    warned = [event.message for event in seen if event.kind == "warning"]
    assert sorted(text.split()[1].rstrip(":") for text in warned) == sorted(names)

    store = dn.open(result.store)
    status = np.isin(np.arange(40), BROKEN)
    np.testing.assert_array_equal(store.images["status"], status)
    np.testing.assert_array_equal(store.images["checksum"] == 0, status)
    for layer in ("relu1", "conv1", "pool2"):
        array = store[layer]
        np.testing.assert_array_equal(array.coords["status"], status)
        missing = np.isnan(array.values.reshape(40, -1))
        assert missing[status].all()
        assert not missing[~status].any()
    np.testing.assert_array_equal(store.images["prediction"].values[status], -1)
    assert not store.images["correct"].values[status].any()
    assert not store.tree["pictures/picture"].values[status].any()
    assert store.images["filename"].values[BROKEN].tolist() == names
    assert sorted(store.masked) == BROKEN
    assert all("not a picture" in why for why in store.masked.values())
    page = (report(result.store, index=False)).read_text(encoding="utf-8")
    assert f"<td>{names[1]}</td><td>not a picture in a format known here" in page
    shutil.rmtree(units_folder(job.store))
    assert dn.open(result.store).masked == dict.fromkeys(BROKEN, "")


def test_masked__rows_do_not_move_the_others(
    make_job: MakeJob, make_photos: MakePhotos, threads: ThreadExecutor
) -> None:
    whole = dn.open(run_job(make_job(layers=["fc"], store="whole.zarr", **make_photos(40)), threads).store)
    torn = dn.open(run_job(make_job(layers=["fc"], **make_photos(40, BROKEN)), threads).store)
    rest = np.setdiff1d(np.arange(40), BROKEN)
    np.testing.assert_allclose(torn["fc"].values[rest], whole["fc"].values[rest], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(torn.images["prediction"][rest], whole.images["prediction"][rest])
    np.testing.assert_array_equal(
        torn.tree["pictures/picture"].values[rest], whole.tree["pictures/picture"].values[rest]
    )


def test_masked__images_take_no_part_in_statistics(job: JobSpec, threads: ThreadExecutor) -> None:
    store = dn.open(run_job(job, threads).store)
    values = store["relu1"].values[np.setdiff1d(np.arange(40), BROKEN)].astype(np.float64)
    largest = values.max(axis=(2, 3))
    found = store.statistics("relu1")
    np.testing.assert_array_equal(found["count"], 29)
    np.testing.assert_allclose(found["mean"], largest.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["variance"], largest.var(axis=0), rtol=1e-10, atol=1e-15)
    assert not np.isin(found["top_image"], BROKEN).any()
    assert not np.isin(found["bottom_image"], BROKEN).any()
    assert not np.isnan(found["bottom_value"]).any()
    np.testing.assert_array_equal(store.statistics("relu2")["count"], 29)
    results = store.results
    np.testing.assert_allclose(results["each"]["relu1"]["mean"], values.mean(axis=0), rtol=1e-12, atol=1e-15)
    assert results["top_images"]["conv1"].sizes["rank"] == 4
    score = results["svd"]["fc"]["score"]
    assert score.sizes["image"] == 40
    np.testing.assert_array_equal(np.isnan(score.values).all(axis=1), np.isin(np.arange(40), BROKEN))


def test_masked__images_are_named_again_by_a_run_that_finds_them_done(job: JobSpec, threads: ThreadExecutor) -> None:
    first = run_job(job, threads)
    again = run_job(job, threads)
    assert again.outcome.done_before == 3
    assert sorted(again.outcome.masked) == sorted(first.outcome.masked)
    marker = json.loads((units_folder(job.store) / "extract/images/00002.done").read_bytes())
    assert len(marker["masked"]) == marker["images"] == 8


def test_masked__all_images_leave_nothing_to_analyse(
    make_job: MakeJob, make_photos: MakePhotos, threads: ThreadExecutor
) -> None:
    photos = make_photos(20, range(20))
    photos["network"]["preprocessing"] = {"color": "grey", "resize": [28, 28]}
    result = run_job(make_job(**photos), threads)
    assert len(result.outcome.masked) == 20
    store = dn.open(result.store)
    assert np.isnan(store["relu1"].values).all()
    assert "mean" not in store.statistics("relu1")
    with pytest.raises(ArrayError, match="step moments, layer relu1: none of the 20 images could be read"):
        run_job(make_job({"moments": None}, **photos), threads)


def test_image__that_vanishes_after_it_was_listed_is_masked(
    make_job: MakeJob, make_photos: MakePhotos, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dneuro.jobs import driver

    photos = make_photos(20)
    honest = driver.extract

    def extract(*args: Any, **settings: Any) -> Any:
        (Path(photos["images"]["root"]) / "cat" / "003.png").unlink()
        return honest(*args, **settings)

    monkeypatch.setattr(driver, "extract", extract)
    result = run_job(make_job(**photos), threads)
    assert [name for name, _ in result.outcome.masked] == ["cat/003.png"]
    assert "No such file" in result.outcome.masked[0][1]
