"""What pictures take of memory, known from their headers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dneuro.images import headers
from dneuro.images.decode import decoding_bytes
from dneuro.images.files import FileSource
from dneuro.images.headers import PictureSizes, picture_sizes
from dneuro.images.memory import LEAST
from dneuro.images.preprocess import view_bytes
from dneuro.images.sources import open_source
from dneuro.quantities import MiB
from dneuro.spec.images import ArrayImages, FilesImages
from dneuro.spec.network import Preprocessing

HOW = Preprocessing(resize=256, crop=224)


def write(root: Path, name: str, side: int) -> int:
    """Write a picture without structure; return what reading it takes."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)).save(file, "JPEG")
    (root / name).write_bytes(file.getvalue())
    with Image.open(file) as image:
        return 2 * len(file.getvalue()) + max(decoding_bytes(image), view_bytes(side, side, HOW))


def files(root: Path) -> FileSource:
    source = open_source(FilesImages(source="files", root=str(root)))
    assert isinstance(source, FileSource)
    return source


@pytest.mark.parametrize("packed", [False, True])
def test_sizes__are_those_of_the_files_and_nothing_is_decoded(
    packed: bool, tmp_path: Path, make_tar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    taken = sorted(write(root, f"{side}.jpg", side) for side in (20, 300, 40, 50, 60, 70, 80, 90, 100, 110, 900))
    monkeypatch.setattr("dneuro.images.decode._picture", lambda image: pytest.fail("a picture was decoded"))
    found = picture_sizes(files(make_tar(root) if packed else root), HOW)
    assert found == PictureSizes(usual=taken[-2], largest=taken[-1], looked_at=11)
    assert found.of(1) == taken[-1]
    assert found.of(4) == taken[-1] + 3 * taken[-2]


def test_sizes__find_the_largest_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "LOOKED_AT", 4)
    for number in range(40):
        write(tmp_path, f"{number:02d}.jpg", 30 + number % 3)
    largest = write(tmp_path, "17.jpg", 800)
    found = picture_sizes(files(tmp_path), HOW)
    assert found.looked_at <= 8
    assert found.largest == largest


def test_sizes__read_no_more_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "0.jpg", 400)
    usual = [write(tmp_path, f"{number}.jpg", 60) for number in range(1, 9)]
    one = (tmp_path / "1.jpg").stat().st_size
    monkeypatch.setattr(headers, "READ", 5 * one)
    found = picture_sizes(files(tmp_path), HOW)
    assert (found.largest, found.looked_at) == (usual[0], 5), "one file is too large to be read for its header"


def test_sizes__of_an_array_are_those_of_its_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 120, 100, 3), np.uint8))
    found = picture_sizes(open_source(ArrayImages(source="array", root=str(tmp_path / "a.npz"))), HOW)
    assert found.looked_at == 1
    assert found.usual == found.largest >= view_bytes(100, 120, HOW)


def test_sizes__where_nothing_can_be_read_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "b.jpg").write_bytes(b"")
    found = picture_sizes(files(tmp_path), HOW)
    assert found == PictureSizes(LEAST, LEAST, 0)
    assert found.of(1) == 128 * MiB
