from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError
from dneuro.jobs.planning import JobPlan, plan_job
from dneuro.quantities import GiB
from dneuro.spec import read_job

JOBS = Path(__file__).parents[2] / "jobs"


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((300, 260, 3), 90, np.uint8)).save(path, format="JPEG")


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are about a machine with much memory, whatever this one has free."""
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: 64 * GiB)


def plan(name: str, *overrides: str, memory: int = 8 * GiB) -> JobPlan:
    return plan_job(read_job(JOBS / name, ["network.weights=none", *overrides]), ThreadExecutor(1, memory=memory))


def test_files__every_job_is_planned_here() -> None:
    assert {path.name for path in JOBS.glob("*.yaml")} == {"demo.yaml", "photos.yaml", "imagenet.yaml", "vgg16.yaml",
                                                        "zhang-features.yaml", "sadeghi-concepts.yaml"}  # fmt: skip


def test_demo__is_planned(tmp_path: Path) -> None:
    found = plan("demo.yaml", f"store={tmp_path / 'demo.zarr'}")
    assert found.extract.images == 1797
    assert {question.step.id for question, _ in found.steps} == {
        "moments", "top_images", "cooccurrence", "svd", "similarity", "similarity-of-counts"
    }  # fmt: skip


def test_photos__is_planned_for_folders_named_by_wnid(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n03888257"):
        for number in range(8):
            paint(tmp_path / "photos" / wnid / f"{number}.JPEG")
    found = plan("photos.yaml", f"images.root={tmp_path / 'photos'}", f"store={tmp_path / 'photos.zarr'}")
    assert found.study.source.manifest.labels.tolist() == [0] * 8 + [701] * 8
    assert "correct" in {array.name for array in found.extract.root}
    kept = {layer.name: (layer.keep, layer.shape) for layer in found.extract.layers}
    assert kept["features.12"] == ("full", (512, 13, 13))


def imagenet(tmp_path: Path) -> list[str]:
    """Return the settings of a small folder like ImageNet's."""
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 51)]
    for name in names:
        paint(tmp_path / "val" / name)
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,wnid\n" + "".join(f"{name},n03888257\n" for name in names))
    return [f"images.root={tmp_path / 'val'}", f"images.labels={labels}", f"store={tmp_path / 'a.zarr'}"]


def test_imagenet__is_planned_for_its_flat_folder(tmp_path: Path) -> None:
    found = plan("imagenet.yaml", *imagenet(tmp_path))
    widths = {layer.name: int(np.prod(layer.shape)) for layer in found.extract.layers}
    assert widths["features.12"] == 9216
    assert widths["classifier.5"] == 4096
    assert found.study.class_names[701] == "parachute"


def test_vgg16__writes_no_activations_and_reads_nothing_again(tmp_path: Path) -> None:
    found = plan("vgg16.yaml", *imagenet(tmp_path))
    assert [layer.shape for layer in found.extract.layers][-1] == (512, 14, 14)
    assert len(found.extract.layers) == 13
    assert not [array for layer in found.extract.layers for array in layer.arrays(50, 16)]
    assert {plan.passes for _, plan in found.steps} == {0}


def test_submit__runs_a_job_and_opens_its_store(tmp_path: Path) -> None:
    small = ["images.sample=40", "steps.train.epochs=1", "steps.svd.rank=2", "store=d.zarr", "steps.extract.batch=20",
             "steps.extract.layers=[fc]", "steps.report.neurons=1"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, JOBS / "submit.py", JOBS / "demo.yaml", *small],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"<dneuro store {tmp_path / 'd.zarr'}: 40 images>" in done.stdout
    assert (tmp_path / "d.zarr.report" / "index.html").is_file()


def test_zhang__is_planned_for_imagenet_and_for_the_convolutions_on_photographs(tmp_path: Path) -> None:
    small = ["steps.svd.rank=8", "steps.svd-8.select.sample=40", *imagenet(tmp_path)]
    found = plan("zhang-features.yaml", *small, memory=16 * GiB)
    asked = {(question.step.id, question.layer) for question, _ in found.steps}
    assert ("svd", "classifier.6") in asked
    assert {layer for step, layer in asked if step == "connections"} == {
        "features.5", "features.7", "features.9", "features.12", "classifier.2", "classifier.5", "classifier.6"
    }  # fmt: skip
    for number in range(12):
        paint(tmp_path / "photos" / "n01440764" / f"{number}.JPEG")
    layers = "{features.2: {}, features.5: {}, features.7: {}, features.9: {}, features.12: {}}"
    images = f"{{source: folder, root: {tmp_path / 'photos'}, classes: imagenet}}"
    fewer = ["steps.svd.rank=8", f"images={images}", f"store={tmp_path / 'b.zarr'}"]
    with pytest.raises(ArrayError, match=r"svd-8 of features\.12: sample=6000 of 12 images, of which .* right"):
        plan("zhang-features.yaml", *fewer, f"steps.extract.layers={layers}")
    photos = plan("zhang-features.yaml", *fewer, f"steps.extract.layers={layers}", "steps.svd-8.select={}")
    assert {layer.name for layer in photos.extract.layers} == {f"features.{n}" for n in (2, 5, 7, 9, 12)}
    methods = {question.step.id: one.method for question, one in photos.steps}
    assert methods["connections"] == "from the weights"
    assert methods["regression"] == "on features.9, products of images"


def test_sadeghi__is_planned_for_imagenet_and_for_the_convolutions_on_photographs(tmp_path: Path) -> None:
    found = plan("sadeghi-concepts.yaml", *imagenet(tmp_path))
    assert [(layer.keep, layer.shape[0]) for layer in found.extract.layers] == [
        ("max", width) for width in (64, 64, 128, 128, *[256] * 3, *[512] * 6)
    ]
    asked = {(question.step.id, question.layer): one for question, one in found.steps}
    assert asked["facets", "layers"].passes == 0
    assert asked["mean_similarity", "layers"].read_bytes == 2 * 8 * sum(
        layer.shape[0] ** 2 for layer in found.extract.layers
    )
    for name in ("facets", "mean-similarity-of-counts"):
        assert [layer for step, layer in asked if step == name] == ["layers"]
    for number in range(12):
        paint(tmp_path / "photos" / "n01440764" / f"{number}.JPEG")
    images = f"{{source: folder, root: {tmp_path / 'photos'}, classes: imagenet}}"
    photos = plan("sadeghi-concepts.yaml", f"images={images}", f"store={tmp_path / 'b.zarr'}")
    assert photos.extract.images == 12
