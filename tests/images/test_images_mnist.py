from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import MNIST

from dneuro.errors import ImageSourceError
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import MnistImages

PREFIX = {"train": "train", "test": "t10k"}


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write(folder: Path, split: str, images: np.ndarray, labels: Any, end: str = "", dash: str = "-") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values, dims in (("images", images, 3), ("labels", np.asarray(labels), 1)):
        content = idx(values)
        path = folder / f"{PREFIX[split]}-{name}{dash}idx{dims}-ubyte{end}"
        path.write_bytes(gzip.compress(content) if end else content)
    return folder


def open_mnist(root: Path, split: str = "test", **options: int) -> ImageSource:
    return open_source(MnistImages(source="mnist", root=str(root), split=split, **options))


def refusal(root: Path) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_mnist(root)
    return error.value


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize(("end", "dash"), [("", "-"), (".gz", "-"), ("", ".")])
def test_mnist__reads_its_files_wherever_they_lie(tmp_path: Path, layout: str, end: str, dash: str):
    images, labels = noise(6), [3, 1, 4, 1, 5, 9]
    write(tmp_path / layout, "test", images, labels, end, dash)
    write(tmp_path / layout, "train", 255 - images[:4], labels[:4], end, dash)
    source = open_mnist(tmp_path)
    assert source.manifest.labels.tolist() == labels
    assert source.manifest.class_names == tuple("0123456789")
    assert source.manifest.names.tolist() == [f"test-{i:05d}" for i in range(6)]
    for index in range(6):
        picture, crc = source.read(index)
        np.testing.assert_array_equal(picture, images[index], strict=True)
        assert crc == zlib.crc32(images[index].tobytes())
        picture[:] = 0  # the caller's own: what is kept stays as it is
        np.testing.assert_array_equal(source.read(index)[0], images[index])
    np.testing.assert_array_equal(open_mnist(tmp_path, "train").read(3)[0], 255 - images[3])


def test_mnist__is_what_torchvision_reads(tmp_path: Path):
    write(tmp_path / "MNIST/raw", "test", noise(5), [0, 1, 2, 3, 4])
    write(tmp_path / "MNIST/raw", "train", noise(7, seed=1), [9] * 7)
    for split, train in (("test", False), ("train", True)):
        reference, source = MNIST(str(tmp_path), train=train), open_mnist(tmp_path, split)
        assert len(reference) == len(source.manifest)
        assert source.manifest.labels.tolist() == reference.targets.tolist()
        for index, (picture, _) in enumerate(reference):
            np.testing.assert_array_equal(source.read(index)[0], np.asarray(picture))


def test_mnist__sample(tmp_path: Path):
    images = noise(30)
    source = open_mnist(write(tmp_path, "test", images, np.arange(30) % 10), sample=7, seed=3)
    for index, row in enumerate(source.manifest.indices):
        np.testing.assert_array_equal(source.read(index)[0], images[row])
        assert source.manifest.labels[index] == row % 10
        assert source.manifest.names[index] == f"test-{row:05d}"


def test_mnist__a_worker_reads_by_the_manifest(tmp_path: Path):
    source = open_mnist(write(tmp_path, "test", noise(5), [0] * 5), sample=2)
    worker = open_source(MnistImages(source="mnist", root=str(tmp_path), split="test", sample=2), source.manifest)
    assert worker.manifest is source.manifest
    assert worker.read(1)[1] == source.read(1)[1]


def test_mnist__missing_files(tmp_path: Path):
    error = refusal(tmp_path)
    assert "has no t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte.gz, here or in MNIST/raw" in error.message
    assert "four files" in str(error.hint)
    write(tmp_path, "test", noise(2), [0, 1])
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "has no t10k-labels-idx1-ubyte" in refusal(tmp_path).message
    assert "is a file; source: mnist needs the folder" in refusal(tmp_path / "t10k-images-idx3-ubyte").message
    assert "does not exist" in refusal(tmp_path / "gone").message


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise(3), [0, 1], "has 3 images, t10k-labels-idx1-ubyte has 2 labels"),
        (noise(2), [0, 10], "are not MNIST's: images of shape (2, 28, 28), labels up to 10"),
        (noise(0), [], "are not MNIST's"),
    ],
)
def test_mnist__what_does_not_fit(tmp_path: Path, images: np.ndarray, labels: list[int], message: str):
    assert message in refusal(write(tmp_path, "test", images, labels)).message


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist__damaged_files(tmp_path: Path, end: str):
    path = write(tmp_path, "test", noise(4), [0] * 4, end) / f"t10k-images-idx3-ubyte{end}"
    content = path.read_bytes()
    for damaged in (content[:2], content[:20], content[:-1], b"\0\0\x0d\x03" + content[4:], b"<html>not found</html>"):
        path.write_bytes(damaged)
        error = refusal(tmp_path)
        assert str(path) in error.message
        assert error.hint == "fetch it again"


def test_mnist__files_that_were_written_anew_are_read_anew(tmp_path: Path):
    first = open_mnist(write(tmp_path, "test", noise(3), [0, 1, 2])).manifest.fingerprint()
    write(tmp_path, "test", noise(3, seed=1), [0, 1, 2])
    os.utime(tmp_path / "t10k-images-idx3-ubyte", ns=(1, 1))
    assert open_mnist(tmp_path).manifest.fingerprint() != first


def test_mnist__the_real_one():
    data = os.environ.get("DNEURO_TEST_DATA")
    if not data:
        pytest.skip("DNEURO_TEST_DATA does not name the folder of real data")
    source = open_mnist(Path(data) / "mnist")
    assert len(source.manifest) == 10_000
    assert np.bincount(source.manifest.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert source.manifest.labels[:5].tolist() == [7, 2, 1, 0, 4]
