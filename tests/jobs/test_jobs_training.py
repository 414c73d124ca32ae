from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DneuroError, FingerprintError, ImageSourceError
from dneuro.jobs import training
from dneuro.jobs.driver import run_job
from dneuro.jobs.progress import Progress
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
IMAGES = {"source": "digits", "sample": 200}


def notes(job: JobSpec, threads: ThreadExecutor) -> list[tuple[str, str]]:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        run_job(job, threads)
    return [(event.kind, event.message) for event in seen if event.step == "train"]


def test_train__makes_the_weights_that_are_extracted(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job({"train": {"epochs": 8, "batch": 16}}, images=IMAGES)
    told = notes(job, threads)
    assert [kind for kind, _ in told] == ["started", *["progress"] * 8, "finished"]
    store = dn.open(job.store)
    right = float(store.images["correct"].mean())
    assert right > 0.8, "random weights name a tenth"
    assert store.attrs["trained"]["epochs"] == 8
    (marker,) = (units_folder(job.store) / "train").glob("*.done")
    found = json.loads(marker.read_bytes())
    assert store.attrs["weights_sha256"] == found["sha256"]
    assert len(found["history"]) == 8

    import safetensors.numpy

    weights = safetensors.numpy.load_file(marker.with_suffix(".safetensors"))
    hidden = dn.open(run_job(make_job({"train": {"epochs": 8, "batch": 16}}, images=IMAGES, layers=["relu2", "fc"]),
                             threads).store)  # fmt: skip
    expected = hidden["relu2"].values.reshape(200, -1) @ weights["fc.weight"].T + weights["fc.bias"]
    np.testing.assert_allclose(hidden["fc"].values, expected, rtol=1e-3, atol=1e-4)


def test_train__is_not_repeated(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job({"train": {"epochs": 1}}, images=IMAGES)
    run_job(job, threads)
    (weights,) = (units_folder(job.store) / "train").glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    seen = Progress(["train", "extract"])
    with events.listening(seen.take):
        told = notes(job, threads)
    assert told == [("finished", "trained before; its weights are used again")]
    assert (seen.steps["train"].state, seen.steps["train"].done) == ("done", 1)
    assert weights.stat().st_mtime_ns == before


def test_train__with_other_settings_is_another_network(make_job: MakeJob, threads: ThreadExecutor) -> None:
    run_job(make_job({"train": {"epochs": 1}}, images=IMAGES), threads)
    before = dn.open(make_job().store)["fc"].values
    with pytest.raises(FingerprintError, match=r"weights: \w+… → \w+…"):
        run_job(make_job({"train": {"epochs": 1, "seed": 1}}, images=IMAGES), threads)
    np.testing.assert_array_equal(dn.open(make_job().store)["fc"].values, before)


def test_train__that_was_killed_begins_again(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dneuro.nets import weights as nets_weights

    job = make_job({"train": {"epochs": 2}}, images=IMAGES)
    with monkeypatch.context() as patched:

        def die(*_: Any) -> None:
            raise RuntimeError("killed")

        patched.setattr(nets_weights, "state_bytes", die)
        with pytest.raises(RuntimeError, match="killed"):
            run_job(job, threads)
    assert not list((units_folder(job.store) / "train").glob("*.done"))
    assert not Path(job.store).exists()
    assert [kind for kind, _ in notes(job, threads)] == ["started", "progress", "progress", "finished"]


def test_train__whose_workers_are_lost_or_stand_still_is_not_waited_for_without_end(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def nobody() -> None:
        raise DneuroError("every worker is lost")

    monkeypatch.setattr(training, "_train", lambda *_: over.wait(30))
    monkeypatch.setattr(threads, "watch", nobody)
    try:
        with pytest.raises(DneuroError, match="every worker is lost"):
            run_job(make_job({"train": {"epochs": 1}}, images=IMAGES), threads)
    finally:
        over.set()


def test_train__needs_one_image_that_can_be_read(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor
) -> None:
    photos = make_photos(4, range(4))
    photos["network"]["preprocessing"] = {"color": "grey", "resize": [28, 28]}
    with pytest.raises(ImageSourceError, match="no image with a class could be read"):
        run_job(make_job({"train": {"epochs": 1}}, **photos), threads)
