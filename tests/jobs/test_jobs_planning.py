from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dneuro as dn
from dneuro.engine.executors import PROCESS_BYTES, ThreadExecutor
from dneuro.errors import ImageSourceError, MemoryLimitError, NetworkError, UsageError
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.quantities import GiB, MiB, format_bytes
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
MakePhotos = Callable[..., dict[str, Any]]
STEPS: list[Any] = [
    {"moments": None},
    {"svd": {"rank": 2, "layer": "fc"}},
    {"cooccurrence": {"k": 5}},
    {"similarity": {"of": "cooccurrence"}},
    {"similarity": {"name": "alike", "layer": "fc"}},
]


class Workers:
    """Sizes of a place to compute that is never used."""

    process_bytes = PROCESS_BYTES
    coalescing = False

    def __init__(self, memory: int) -> None:
        self.slots, self.slots_per_process, self.memory, self.driver_memory = 4, 1, memory, memory


def test_plan__writes_nothing_and_starts_nothing(make_job: MakeJob, tmp_path: Path) -> None:
    planned = plan_job(make_job(*STEPS), Workers(4 * GiB))
    assert list(tmp_path.iterdir()) == []
    assert [(q.step.id, q.layer, plan.method if plan.passes == 0 else plan.passes) for q, plan in planned.steps] == [
        ("moments", "relu1", "with extract"),
        ("moments", "fc", "with extract"),
        ("svd", "fc", 1),
        ("cooccurrence", "relu1", "with extract"),
        ("cooccurrence", "fc", "with extract"),
        ("similarity", "relu1", "in the driver"),
        ("similarity", "fc", "in the driver"),
        ("alike", "fc", 1),
    ]


def test_plan__is_json_and_counts_what_is_done(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job(*STEPS)
    before = json.loads(json.dumps(plan_job(job, threads).to_dict()))
    assert before["extract"]["units"] == 3
    assert before["extract"]["units_done"] == 0
    assert before["extract"]["layers"]["relu1"] == {"keep": "full", "shape": [10, 12, 12]}
    assert before["worker_bytes"] <= before["worker_limit"]
    run_job(job, threads)
    (units_folder(job.store) / "extract" / "fc" / "00001.done").unlink()
    assert plan_job(job, threads).done == 2


def test_plan__knows_the_bytes_of_the_store(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job(layers={"conv1": {"keep": "full"}, "relu2": {"keep": "max"}}, dtype="float16")
    planned = plan_job(job, threads)
    store = dn.open(run_job(job, threads).store)
    arrays = [store["conv1"], store["relu2"], *(store["relu2"].coords[f"activation_{d}"] for d in "yx")]
    arrays += [store.images[name] for name in ("status", "checksum", "prediction", "correct")]
    assert planned.extract.store_bytes == sum(a.nbytes for a in arrays) + 40 * 28 * 28
    partials = 3 * planned.extract.partial_bytes
    assert planned.disk_bytes == planned.extract.store_bytes + partials
    written = sum(path.stat().st_size for path in units_folder(job.store).rglob("*.npz") if path.stem.isdigit())
    assert partials < written < partials + 3 * 2 * 20 * 300, "what is more are the headers of NumPy's files"


def test_plan__says_that_the_disk_may_become_full(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [0]
    monkeypatch.setattr("dneuro.store.files.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))

    def room_for(job: JobSpec) -> int:
        """Return the bytes from which on the job's disk is large enough, as plans have it."""
        free[0] = plan_job(job, threads).left_bytes
        assert plan_job(job, threads).crowded == ""
        if free[0]:
            free[0] -= 1
            said = plan_job(job, threads).to_dict()["notes"][-1]
            assert f"{job.store} takes up to {format_bytes(free[0] + 1)} more before compression, its disk has " in said
            free[0] += 1
        return free[0]

    full = {"conv1": {"keep": "full"}}
    job = make_job(layers=full, statistics=[])
    assert room_for(job) == plan_job(job, threads).disk_bytes
    free[0] = 1
    run_job(job, threads)
    assert "its disk has" not in str(dn.open(job.store).attrs), "that was of a moment"
    assert room_for(job) == 0
    more = make_job({"svd": {"rank": 2, "layer": "conv1"}}, layers={**full, "relu2": {"keep": "max"}}, statistics=[])
    (_, step), layer = *plan_job(more, threads).steps, plan_job(more, threads).extract.layers[1]
    assert room_for(more) == step.result_bytes + sum(array.nbytes for array in layer.arrays(40, 16)) > step.result_bytes
    run_job(more, threads)
    assert room_for(more) == 0


def test_plan__that_does_not_fit_is_refused_with_the_numbers(make_job: MakeJob) -> None:
    with pytest.raises(MemoryLimitError, match=r"extract needs .* per worker .* the limit is 300 MiB") as caught:
        plan_job(make_job(), Workers(300 * MiB))
    assert caught.value.exit_code == 2
    assert caught.value.hint
    # The extraction fits, the tree of 788,544 neurons (23 TiB) does not.
    network = {"name": "torchvision:squeezenet1_1", "weights": "none"}
    job = make_job({"clusters": {"per": "neuron", "count": 9}}, network=network, layers=["features.0"])
    with pytest.raises(MemoryLimitError, match=r"clusters of features.0 needs .* the limit is 8 GiB"):
        plan_job(job, Workers(8 * GiB))


def test_plan__of_an_svd_of_few_images_says_how_it_can_be_asked_of_the_store(make_job: MakeJob) -> None:
    """A job takes a layer in the chunks of its store, 788,544 neurons of some images at a time."""
    job = make_job({"svd": {"rank": 5}}, layers=["features.0"], images={"source": "digits", "sample": 1000},
                   network={"name": "torchvision:squeezenet1_1", "weights": "none"})  # fmt: skip
    with pytest.raises(MemoryLimitError, match=r"svd of features.0 needs .* per worker") as caught:
        plan_job(job, Workers(2 * GiB))
    hint = str(caught.value.hint)
    assert hint.endswith(f"dn.svd(dn.open({job.store!r})['features.0'].chunk(image=-1, channel=1), …)")
    assert "krylov" not in hint


@pytest.mark.parametrize(
    ("layers", "nearest"),
    [(["relu_1"], "'relu1'"), (["relu1", "features.3"], "choices: conv1"), ({"Conv1": {"keep": "max"}}, "'conv1'")],
)
def test_layer__that_is_unknown_is_refused_with_the_nearest(make_job: MakeJob, layers: Any, nearest: str) -> None:
    with pytest.raises(NetworkError, match="dneuro:convnet has no layer") as caught:
        plan_job(make_job(layers=layers), Workers(4 * GiB))
    assert nearest in str(caught.value.hint)


def test_parameters__that_cannot_be_are_refused_naming_the_step(make_job: MakeJob) -> None:
    with pytest.raises(UsageError, match=r"svd of fc: .*rank=11"):
        plan_job(make_job({"svd": {"rank": 11, "layer": "fc"}}), Workers(4 * GiB))


def test_training__needs_the_class_of_the_images(
    make_job: MakeJob, make_photos: MakePhotos, tmp_path: Path
) -> None:
    import numpy as np

    np.savez(tmp_path / "plain.npz", images=np.zeros((20, 28, 28), np.uint8))
    images = {"source": "array", "root": str(tmp_path / "plain.npz")}
    with pytest.raises(ImageSourceError, match="the train step needs the class of every image"):
        plan_job(make_job({"train": {"epochs": 1}}, images=images), Workers(4 * GiB))
    photos = make_photos(4)
    photos["network"]["classes"] = 1
    with pytest.raises(NetworkError, match="has 1 outputs, the images have 2 classes") as caught:
        plan_job(make_job({"train": {"epochs": 1}}, **photos), Workers(4 * GiB))
    assert "classes: 2" in str(caught.value.hint)
