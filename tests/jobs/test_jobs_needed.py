"""What a job reads and writes on disks, for backends that must bring it to their machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.jobs.needed import needed_files
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]
FILES = {"source": "files", "root": "zip::/data/../data/photos.zip", "labels": "/data/labels.csv"}
ARRAY = {"source": "array", "root": "file:///data/photos.zarr", "labels": "labels"}
FOLDER = {"source": "folder", "root": "s3://bucket/photos"}


@pytest.mark.parametrize(
    ("images", "network", "read"),
    [
        ({"source": "digits"}, {"name": "dneuro:convnet", "weights": "none"}, {}),
        (FILES, {"name": "torchvision:alexnet"},
         {"images.root": "/data/photos.zip", "images.labels": "/data/labels.csv"}),
        (ARRAY, {"name": "python:mine/nets.py:make", "weights": "w.pth"},
         {"images.root": "/data/photos.zarr", "network.name": "mine/nets.py",
          "network.weights": "w.pth"}),
        (FOLDER, {"name": "python:nets:make"}, {}),
        (FOLDER, {"name": "export:/n/net.pt2", "weights": "https://there/w.pth"}, {"network.name": "/n/net.pt2"}),
    ],
)  # fmt: skip
def test_job__needs_the_files_that_it_names(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Any, network: Any,
    read: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(images=images, network=network).model_copy(update={"store": "out/acts.zarr"})
    found = {file.key: file for file in needed_files(job)}
    store = found.pop("store")
    assert (store.path, store.written) == (tmp_path / "out" / "acts.zarr", True)
    assert {key: str(file.path).removeprefix(f"{tmp_path}/") for key, file in found.items()} == read
    assert not any(file.written for file in found.values())


def test_job__in_an_object_store_needs_no_file(make_job: MakeJob) -> None:
    assert list(needed_files(make_job().model_copy(update={"store": "s3://bucket/acts.zarr"}))) == []
