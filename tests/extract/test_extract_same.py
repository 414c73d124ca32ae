"""What is added to a store later, or made again, is of the same images as what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import FingerprintError
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]


def replace(path: Path) -> None:
    """Put another picture of the same size in bytes in the place of one."""
    size = path.stat().st_size
    Image.fromarray(np.full((28, 28), 77, np.uint8)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert path.stat().st_size == size


def test_added_layer__of_a_file_that_was_replaced_is_refused(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor, tmp_path: Path
) -> None:
    photos = make_photos()
    first = run_job(make_job(**photos, layers=["fc"]), threads)
    replace(tmp_path / "photos/dog/017.png")
    with pytest.raises(FingerprintError, match=r"image 17, dog/017\.png, has another content than when .* was made"):
        run_job(make_job(**photos, layers=["fc", "relu1"]), threads)
    assert np.isfinite(dn.open(first.store)["fc"].values).all(), "what was there is as it was"


@pytest.mark.parametrize(
    ("broken", "message"),
    [((), "cannot be read any more, as it could"), ((17,), "can be read, which it could not")],
)
def test_added_layer__of_a_file_that_broke_or_was_mended_is_refused(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor, tmp_path: Path,
    broken: tuple[int, ...], message: str,
) -> None:  # fmt: skip
    photos = make_photos()
    path = tmp_path / "photos/dog/017.png"
    whole = path.read_bytes()
    torn = b"no picture".ljust(len(whole), b"\0")
    path.write_bytes(torn if broken else whole)
    run_job(make_job(**photos, layers=["fc"]), threads)
    path.write_bytes(whole if broken else torn)
    with pytest.raises(FingerprintError, match=message):
        run_job(make_job(**photos, layers=["fc", "relu1"]), threads)


def test_added_layer__of_the_same_images_is_added(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor
) -> None:
    photos = make_photos(broken=[5])
    run_job(make_job(**photos, layers=["fc"]), threads)
    both = dn.open(run_job(make_job(**photos, layers=["fc", "relu1"]), threads).store)
    assert np.isnan(both["relu1"].values[5]).all()
    assert np.isfinite(np.delete(both["relu1"].values, 5, axis=0)).all()


def lose_pictures(store: Path) -> None:
    shutil.rmtree(store / "pictures")


def damage_pictures(store: Path) -> None:
    zarr.open_array(store, path="pictures/picture", mode="r+")[17] = 3
    assert dn.verify(store, repair=True).repaired == 1


def damage_checksums(store: Path) -> None:
    zarr.open_array(store, path="checksum", mode="r+")[19] = 7
    assert dn.verify(store, repair=True).repaired == 1


def damage_unseen(store: Path) -> None:
    zarr.open_array(store, path="checksum", mode="r+")[19] = 7
    lose_pictures(store)


def tear_checksums(store: Path) -> None:
    (path,) = (store / "checksum/c").rglob("1")
    path.write_bytes(b"torn")
    lose_pictures(store)


def lose_checksums(store: Path) -> None:
    shutil.rmtree(store / "checksum")


NAMED = r"image 17, dog/017\.png, has another content than when .* was made"
OF_UNIT = r"of images \d+ to \d+ some have another content than when .* was made; .*which of them cannot be told"
LOSSES: list[tuple[Callable[[Path], None], str]] = [
    (lose_pictures, NAMED), (damage_pictures, NAMED), (damage_checksums, OF_UNIT),
    (damage_unseen, OF_UNIT), (tear_checksums, OF_UNIT), (lose_checksums, OF_UNIT),
]  # fmt: skip


@pytest.mark.parametrize("layers", [["fc"], ["fc", "relu1"], ["relu1"]])
def test_entries_per_image__that_are_made_again_are_of_the_images_of_every_layer(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor, tmp_path: Path,
    layers: list[str],
) -> None:  # fmt: skip
    photos = make_photos(broken=[20])
    store = Path(run_job(make_job(**photos, layers=["fc"]), threads).store)
    lose_pictures(store)
    replace(tmp_path / "photos/dog/017.png")
    with pytest.raises(FingerprintError, match=NAMED):
        run_job(make_job(**photos, layers=layers), threads)
    assert np.isfinite(np.delete(dn.open(store)["fc"].values, 20, axis=0)).all(), "what was there is as it was"


@pytest.mark.parametrize(("lose", "message"), LOSSES)
def test_entries_per_image__that_are_made_again_are_of_no_other_images(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor, tmp_path: Path,
    same_store: Callable[[Path, Path], None], lose: Callable[[Path], None], message: str,
) -> None:  # fmt: skip
    job = make_job(**make_photos(broken=[20]), layers=["fc"])
    store = Path(run_job(job, threads).store)
    shutil.copytree(store, tmp_path / "as-written.zarr")
    lose(store)
    path = tmp_path / "photos/dog/017.png"
    whole = path.read_bytes()
    replace(path)
    for _ in range(2):
        with pytest.raises(FingerprintError, match=message):
            run_job(job, threads)
    path.write_bytes(whole)
    run_job(job, threads)
    assert dn.verify(store).findings == []
    same_store(store, tmp_path / "as-written.zarr")


def test_entries_per_image__of_an_older_store_are_made_again(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor
) -> None:
    job = make_job(**make_photos(), layers=["fc"])
    store = Path(run_job(job, threads).store)
    for path in units_folder(store).glob("extract/fc/*.done"):
        said = json.loads(path.read_text())
        del said["images_crc32"]
        path.write_text(json.dumps(said))
    damage_unseen(store)
    run_job(job, threads)
    assert dn.verify(store).findings == [], "nothing was known of the images, and nothing is said"
