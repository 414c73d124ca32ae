from __future__ import annotations

import io
import os
import pickle
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from dneuro.errors import ImageSourceError
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import Cifar10Images

BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


def noise(count: int = 3, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 32, 32), np.uint8), rng.integers(0, 10, count).tolist()


def pickled(images: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
    batch = {"batch_label": "a batch", "labels": labels, "data": images.reshape(-1, 3072), "filenames": ["a.png"]}
    return pickle.dumps({key.encode(): value for key, value in batch.items()}, protocol)


def by_python_2(images: np.ndarray, labels: list[int]) -> bytes:
    """Return the bytes that Python 2 wrote, opcode by opcode: text is ``SHORT_BINSTRING`` or ``BINSTRING``."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    data = images.reshape(-1, 3072)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + b"(" + number(0) + b"t" + text(b"b") + b"tR"
        + b"(" + number(1) + b"(" + number(len(data)) + number(3072) + b"t"
        + b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
        + b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
        + b"I00\n" + text(data.tobytes()) + b"tb"
    )  # fmt: skip
    items = text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def records(images: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def write(root: Path, version: str = "python", write_one: Callable[..., bytes] | None = None) -> Path:
    """Write both splits below `root`, with the same pictures in either version."""
    folder = root / FOLDERS[version]
    folder.mkdir(parents=True, exist_ok=True)
    encode = write_one or {"python": pickled, "binary": records}[version]
    for seed, name in enumerate([*BATCHES["train"], *BATCHES["test"]]):
        (folder / (name + (".bin" if version == "binary" else ""))).write_bytes(encode(*noise(seed=seed)))
    return folder


def pack(folder: Path, name: str) -> Path:
    with tarfile.open(folder.parent / name, "w:gz") as tar:
        tar.add(folder, folder.name)
    return folder.parent / name


def open_cifar(root: Path, split: str = "test", **options: int) -> ImageSource:
    return open_source(Cifar10Images(source="cifar10", root=str(root), split=split, **options))


def refusal(root: Path, split: str = "test") -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_cifar(root, split)
    return error.value


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar10__in_every_form_it_comes_in(tmp_path: Path, version: str, split: str):
    folder = write(tmp_path, version)
    (tmp_path / "elsewhere").mkdir()
    archive = pack(folder, f"cifar-10-{version}.tar.gz").rename(tmp_path / f"elsewhere/cifar-10-{version}.tar.gz")
    seeds = range(5) if split == "train" else [5]
    images = np.concatenate([noise(seed=seed)[0] for seed in seeds]).transpose(0, 2, 3, 1)
    labels = [label for seed in seeds for label in noise(seed=seed)[1]]
    prints = set()
    for root in (folder, tmp_path, archive, archive.parent):
        source = open_cifar(root, split)
        assert source.manifest.labels.tolist() == labels
        for index, expected in enumerate(images):
            picture, crc = source.read(index)
            np.testing.assert_array_equal(picture, expected, strict=True)
            assert crc == zlib.crc32(expected.tobytes())
        prints.add(source.manifest.fingerprint())
    assert len(prints) == 1
    assert source.manifest.names[0] == f"{split}-00000"
    assert source.manifest.class_names[3] == "cat"


def test_cifar10__is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path, write_one=by_python_2)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    reference, source = CIFAR10(str(tmp_path), train=True), open_cifar(tmp_path, "train")
    assert source.manifest.labels.tolist() == reference.targets
    assert list(source.manifest.class_names) == reference.classes
    for index, (picture, _) in enumerate(reference):
        np.testing.assert_array_equal(source.read(index)[0], np.asarray(picture))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar10__pickles_of_python_3(tmp_path: Path, protocol: int):
    folder = write(tmp_path, write_one=lambda *batch: pickled(*batch, protocol))
    np.testing.assert_array_equal(open_cifar(folder).read(2)[0], noise(seed=5)[0][2].transpose(1, 2, 0))


def test_cifar10__pickles_of_python_2_as_in_the_official_archive(tmp_path: Path):
    content = by_python_2(*noise(seed=5))
    reference = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(reference[b"data"], noise(seed=5)[0].reshape(3, 3072))
    source = open_cifar(write(tmp_path, write_one=by_python_2))
    assert source.manifest.labels.tolist() == noise(seed=5)[1] == reference[b"labels"]
    np.testing.assert_array_equal(source.read(2)[0], noise(seed=5)[0][2].transpose(1, 2, 0))


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Evil(os.system, "touch {}"), "posix.system"),
        (Evil(subprocess.Popen, ["touch", "{}"]), "subprocess.Popen"),
        (Evil(eval, "open('{}', 'w')"), "__builtin__.eval"),
        (Evil(np.load, "{}"), "numpy.load"),
    ],
)
def test_cifar10__pickles_that_would_run_something_are_refused(tmp_path: Path, call: Evil, name: str):
    folder, trace = write(tmp_path), tmp_path / "trace"
    function, arguments = call.reduced
    filled = (a.format(trace) if isinstance(a, str) else ["touch", str(trace)] for a in arguments)
    call.reduced = (function, tuple(filled))
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": call, b"labels": [1]}, 2))
    error = refusal(folder)
    assert "test_batch is damaged, or not CIFAR-10's: it asks for " in error.message
    assert f"{name.rpartition('.')[2]}, which is refused" in error.message
    assert not trace.exists()


def test_cifar10__stand_ins_cannot_be_talked_into_more(tmp_path: Path):
    folder = write(tmp_path)
    huge = b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftR."  # would be 4 EiB
    encode = b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR."
    other = pickle.dumps({b"data": np.zeros((1, 3072), np.float32), b"labels": [1]}, 2)
    objects = pickle.dumps({b"data": np.array([None] * 3072, object), b"labels": [1]}, 2)
    for content in (huge, encode, other, objects):
        (folder / "test_batch").write_bytes(content)
        assert "test_batch is damaged, or not CIFAR-10's" in refusal(folder).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or not CIFAR-10's"),
        (pickled(*noise())[:500], "is damaged, or not CIFAR-10's"),
        (pickle.dumps([1, 2], 2), "is damaged, or not CIFAR-10's"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [1]}, 2), "has no 'labels'"),
        (pickled(noise()[0], [1, 2]), "pixels of shape (3, 3072), 2 labels up to 2"),
        (pickled(noise()[0], [1, 2, 10]), "3 labels up to 10"),
        (pickle.dumps({b"data": np.zeros((2, 768), np.uint8), b"labels": [1, 2]}, 2), "pixels of shape (2, 768)"),
        (by_python_2(noise()[0][:0], []), "pixels of shape (0, 3072), 0 labels"),
    ],
)
def test_cifar10__what_does_not_fit(tmp_path: Path, content: bytes, message: str):
    folder = write(tmp_path)
    (folder / "test_batch").write_bytes(content)
    error = refusal(folder)
    assert f"{folder}: test_batch " in error.message
    assert message in error.message


def test_cifar10__records_of_another_length(tmp_path: Path):
    folder = write(tmp_path, "binary")
    (folder / "test_batch.bin").write_bytes(bytes(3074))
    assert "test_batch.bin has 3,074 bytes, no multiple of 3,073" in refusal(folder).message


def test_cifar10__missing_files(tmp_path: Path):
    error = refusal(tmp_path)
    assert "has no test_batch nor test_batch.bin, here or in cifar-10-batches-py" in error.message
    assert "cifar-10-python.tar.gz" in str(error.hint)
    assert "does not exist" in refusal(tmp_path / "gone").message
    folder = write(tmp_path)
    (folder / "data_batch_3").unlink()
    error = refusal(folder, "train")
    assert "has no data_batch_3, so it is not the whole of CIFAR-10's train images" in error.message


def test_cifar10__damaged_archives(tmp_path: Path):
    archive = pack(write(tmp_path), "cifar-10-python.tar.gz")
    content = archive.read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2], content[:2000] + bytes(500) + content[2500:]):
        archive.write_bytes(damaged)
        assert f"{archive}" in refusal(archive).message


def test_cifar10__archive_is_not_unpacked_beside_it(tmp_path: Path):
    folder = write(tmp_path / "a")
    archive = pack(folder, "cifar-10-python.tar.gz").rename(tmp_path / "cifar-10-python.tar.gz")
    hostile = tmp_path / "hostile.tar.gz"
    with tarfile.open(archive) as old, tarfile.open(hostile, "w:gz") as new:
        outside = tarfile.TarInfo("../../outside/test_batch")
        outside.size = 3
        new.addfile(outside, io.BytesIO(b"bad"))
        for member in old:
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    before = sorted(tmp_path.rglob("*"))
    refusal(hostile)  # its first test_batch is none
    open_cifar(archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_cifar10__sample_and_worker(tmp_path: Path):
    folder = write(tmp_path)
    source = open_cifar(folder, "train", sample=4, seed=1)
    spec = Cifar10Images(source="cifar10", root=str(folder), split="train", sample=4, seed=1)
    worker = open_source(spec, source.manifest)
    assert worker.manifest is source.manifest
    whole = open_cifar(folder, "train")
    for index, row in enumerate(source.manifest.indices.tolist()):
        np.testing.assert_array_equal(worker.read(index)[0], whole.read(row)[0])
        assert source.manifest.labels[index] == whole.manifest.labels[row]
