from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision.datasets import imagenet as reference
from torchvision.models._meta import _IMAGENET_CATEGORIES

from dneuro.errors import ImageSourceError
from dneuro.images.imagenet import imagenet_classes, is_wnid
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import ImagenetValImages

Maker = Callable[..., Path]
DEVKIT = "ILSVRC2012_devkit_t12"

# (number, wnid, words, children): numbered in an order that is not that of the wnids; the last has children.
SYNSETS = [
    (1, "n03888257", "parachute, chute", 0),
    (2, "n01440764", "tench, Tinca tinca", 0),
    (3, "n02012849", "crane", 0),
    (4, "n03126707", "crane", 0),
    (5, "n00001740", "entity", 3),
]
TRUTH = [2, 1, 4, 3, 3, 1]
LABELS = [0, 3, 2, 1, 1, 3]
"""By hand: the wnids in sorted order are n01440764, n02012849, n03126707, n03888257."""


def val(*numbers: int) -> list[str]:
    return [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]


def meta(synsets: list[tuple[int, str, str, int]]) -> bytes:
    """Return a meta.mat such as ImageNet's: a structure array, of which some fields matter here."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = np.array([[(i, wnid, words, "gloss", n)] for i, wnid, words, n in synsets], kinds)
    file = io.BytesIO()
    savemat(file, {"synsets": rows})
    return file.getvalue()


@pytest.fixture
def make_devkit(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a devkit's archive; beside it lies the folder it unpacks to."""

    def make(
        synsets: list[tuple[int, str, str, int]] = SYNSETS, truth: str = "\n".join(map(str, TRUTH)), **files: bytes
    ) -> Path:
        data = tmp_path / DEVKIT / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        contents = {"meta.mat": meta(synsets), "ILSVRC2012_validation_ground_truth.txt": truth.encode()} | files
        for name, content in contents.items():
            (data / name).write_bytes(content)
        with tarfile.open(tmp_path / f"{DEVKIT}.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / DEVKIT, DEVKIT)
        return tmp_path / f"{DEVKIT}.tar.gz"

    return make


def open_val(root: Path | str, labels: Path | str | None = None, **options: int) -> ImageSource:
    given = {} if labels is None else {"labels": str(labels)}
    return open_source(ImagenetValImages(source="imagenet-val", root=str(root), **given, **options))


def refusal(root: Path | str, labels: Path | str | None = None) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_val(root, labels)
    return error.value


def test_classes__are_sorted_and_torchvisions():
    classes = imagenet_classes()
    assert len(classes) == len(set(classes.wnids)) == 1000
    assert all(is_wnid(wnid) for wnid in classes.wnids)
    assert list(classes.wnids) == sorted(classes.wnids)
    # torchvision tells the two cranes and the two maillots apart by hand.
    renamed = {"crane bird": "crane", "maillot tank suit": "maillot"}
    assert list(classes.names) == [renamed.get(name, name) for name in _IMAGENET_CATEGORIES]


def test_classes__are_the_ones_every_network_was_trained_on():
    # WordNet ids are not in torchvision: the digest of the list keeps them as they were checked once.
    joined = "\n".join(imagenet_classes().wnids).encode()
    assert hashlib.sha256(joined).hexdigest() == "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


@pytest.mark.parametrize("packed", [True, False])
def test_imagenet_val__labels_are_torchvisions(
    make_folder: Maker, make_tar: Maker, make_devkit: Maker, monkeypatch: pytest.MonkeyPatch, packed: bool
):
    root, devkit = make_folder(*val(*range(1, 7))), make_devkit()
    source = open_val(root, devkit if packed else devkit.parent / DEVKIT)

    monkeypatch.setattr(reference, "_verify_archive", lambda *_: None)  # ours is not the one they know the sum of
    reference.parse_devkit_archive(devkit.parent)
    names_of, wnid_of = torch.load(devkit.parent / "meta.bin", weights_only=True)
    wnids = sorted(names_of)
    assert source.manifest.labels.tolist() == [wnids.index(wnid) for wnid in wnid_of] == LABELS
    assert source.manifest.wnids == tuple(wnids)
    assert source.manifest.class_names == tuple(names_of[wnid][0] for wnid in wnids)
    assert source.manifest.class_names == ("tench", "crane", "crane", "parachute")
    assert source.manifest.names.tolist() == val(*range(1, 7))

    tar = open_val(make_tar(root), devkit)
    assert tar.manifest.fingerprint() == source.manifest.fingerprint()
    assert [tar.read(index)[1] for index in range(6)] == [source.read(index)[1] for index in range(6)]


def test_imagenet_val__some_of_the_images(make_folder: Maker, make_devkit: Maker):
    manifest = open_val(make_folder(*val(6, 3)), make_devkit()).manifest
    assert manifest.labels.tolist() == [LABELS[2], LABELS[5]]
    part = open_val(make_folder(*val(*range(1, 7))), make_devkit(), sample=3, seed=1).manifest
    assert part.labels.tolist() == [LABELS[index] for index in part.indices]


@pytest.mark.parametrize("below", ["", "val/"])
def test_imagenet_val__in_folders_named_by_wnid(make_folder: Maker, make_tar: Maker, below: str):
    root = make_folder("n03888257/ILSVRC2012_val_00000002.JPEG", "n01440764/ILSVRC2012_val_00000001.JPEG")
    manifest = open_val(make_tar(root, below=below)).manifest
    assert manifest.labels.tolist() == [0, 701]
    assert manifest.class_names == imagenet_classes().names
    assert manifest.wnids == imagenet_classes().wnids
    if not below:
        assert open_val(root).manifest.fingerprint() == manifest.fingerprint()


def test_imagenet_val__without_labels(make_folder: Maker):
    manifest = open_val(make_folder(*val(1, 2))).manifest
    assert manifest.labels.tolist() == [-1, -1]
    assert manifest.class_names == imagenet_classes().names


@pytest.mark.parametrize(
    "text", ["{},n01440764\n{},n03888257\n", "filename,class_index\n{},0\n{},701\n", "{},tench\n{},parachute\n"]
)
def test_imagenet_val__labels_from_a_table(make_folder: Maker, tmp_path: Path, text: str):
    (tmp_path / "labels.csv").write_text(text.format(*val(1, 2)))
    manifest = open_val(make_folder(*val(1, 2)), tmp_path / "labels.csv").manifest
    assert manifest.labels.tolist() == [0, 701]
    assert manifest.wnids[701] == "n03888257"


def test_imagenet_val__table_that_does_not_fit(make_folder: Maker, tmp_path: Path):
    (tmp_path / "labels.csv").write_text("{},n01440764\n{},n00000000\n".format(*val(1, 2)))
    error = refusal(make_folder(*val(1, 2)), tmp_path / "labels.csv")
    assert "labels.csv:2: 'n00000000' is not the wnid of one of the 1,000 classes" in error.message
    (tmp_path / "labels.csv").write_text("2\n1\n4\n")
    error = refusal(make_folder(*val(1, 2)), tmp_path / "labels.csv")
    assert "labels.csv:1: 1 columns without names (2)" in error.message


@pytest.mark.parametrize(
    "names",
    [
        ["val/n01440764/a.JPEG", "train/n01440764/b.JPEG"],
        ["n01440764/a.JPEG", "b.JPEG"],
        ["test/a.JPEG", "val/b.JPEG"],
        ["cat/a.JPEG", "dog/b.JPEG"],
    ],
)
def test_imagenet_val__more_than_one_set(make_folder: Maker, names: list[str]):
    error = refusal(make_folder(*names))
    assert "holds images in several places (" in error.message
    assert "source: folder" in str(error.hint)


def test_imagenet_val__folder_that_is_no_class(make_folder: Maker):
    assert "'n00001740' is not the wnid of one of the 1,000" in refusal(make_folder("n00001740/a.JPEG")).message


def test_devkit__image_that_it_does_not_label(make_folder: Maker, make_devkit: Maker):
    error = refusal(make_folder(*val(7)), make_devkit())
    assert "ILSVRC2012_val_00000007.JPEG is image 7; " in error.message
    assert "labels the images 1…6" in error.message
    error = refusal(make_folder("photo.JPEG", root="other"), make_devkit())
    assert "photo.JPEG is not named as an image of the validation set" in error.message


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("2\n9\n1", "ILSVRC2012_validation_ground_truth.txt:2: '9' is not the number of one of the 4 classes"),
        ("5", "ground_truth.txt:1: '5' is not the number"),
        ("2\n1\nx", "ground_truth.txt:3: 'x' is not the number"),
    ],
)
def test_devkit__numbers_that_are_no_class(make_folder: Maker, make_devkit: Maker, truth: str, message: str):
    assert message in refusal(make_folder(*val(1)), make_devkit(truth=truth)).message


@pytest.mark.parametrize("content", [b"", b"no matlab file", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_devkit__damaged_meta(make_folder: Maker, make_devkit: Maker, content: bytes):
    error = refusal(make_folder(*val(1)), make_devkit(**{"meta.mat": content}))
    assert "meta.mat is damaged, or not ImageNet's" in error.message


def test_devkit__two_classes_of_one_number(make_folder: Maker, make_devkit: Maker):
    synsets = [*SYNSETS, (1, "n15075141", "toilet tissue", 0)]
    assert "no numbers of their own" in refusal(make_folder(*val(1)), make_devkit(synsets)).message


def test_devkit__packed_with_something_missing_or_damaged(make_folder: Maker, make_devkit: Maker, tmp_path: Path):
    root, devkit = make_folder(*val(1)), make_devkit()
    content = devkit.read_bytes()
    for length in (100, len(content) // 2, len(content) - 20):
        devkit.write_bytes(content[:length])
        assert f"{devkit} is " in refusal(root, devkit).message
    with tarfile.open(devkit, "w:gz") as tar:
        tar.add(tmp_path / DEVKIT / "data/meta.mat", "data/meta.mat")
    error = refusal(root, devkit)
    assert "is no devkit: there is no ILSVRC2012_validation_ground_truth.txt in it" in error.message
    (tmp_path / DEVKIT / "data/meta.mat").unlink()
    assert "is no devkit: data/meta.mat or data/ILSVRC" in refusal(root, tmp_path / DEVKIT).message
    assert "does not exist" in refusal(root, tmp_path / "gone").message


def test_imagenet_val__of_the_real_photographs():
    data = os.environ.get("DNEURO_TEST_DATA")
    if not data:
        pytest.skip("DNEURO_TEST_DATA does not name the folder of real data")
    manifest = open_val(Path(data) / "photos/imagenette-160").manifest
    assert len(manifest) == 2000
    assert {manifest.class_names[label] for label in manifest.labels} >= {"tench", "parachute", "church"}
    assert all(manifest.wnids[label] == name[:9] for label, name in zip(manifest.labels, manifest.names, strict=True))
