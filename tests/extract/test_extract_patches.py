"""Patches against crops of the padded view, of pictures with and without colours, masked, moved, changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, FingerprintError, ImageSourceError, StoreError
from dneuro.extract import patches, views
from dneuro.images.sources import open_source
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.spec.images import DigitsImages
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
MakePhotos = Callable[..., dict[str, Any]]
FIELDS = {"conv1": (5, 1, 0), "relu1": (6, 2, 0), "relu2": (16, 4, 0)}
"""Size, stride and start of what a position sees, by hand: no layer of the network pads."""

COLOURED = """
from torch import nn
def make():
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU())
"""
PREPROCESSING = {"resize": 20, "crop": 16, "mean": [0.5, 0.25, 0.75], "std": 0.25}


@pytest.fixture
def digits(make_job: MakeJob, threads: ThreadExecutor) -> dn.Store:
    kept = {"conv1": "full", "relu1": "max", "pool2": "mean", "relu2": "stats", "fc": "full"}
    layers = {name: {"keep": keep} for name, keep in kept.items()}
    return dn.open(run_job(make_job(layers=layers, top_k=7), threads).store)


@pytest.fixture
def coloured(make_job: MakeJob, threads: ThreadExecutor, tmp_path: Path) -> dn.Store:
    """A store of 20 photographs of two sizes, of which three cannot be read, through convolutions that pad."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "photos" / "abc"[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30 + number % 2, 3), np.uint8)).save(path, compress_level=0)
        if number in (3, 11, 12):
            path.write_bytes(b"no picture")
    (tmp_path / "net.py").write_text(COLOURED)
    network = {"name": f"python:{tmp_path}/net.py:make", "preprocessing": PREPROCESSING}
    images = {"source": "folder", "root": str(tmp_path / "photos")}
    job = make_job(network=network, images=images, layers=["1", "4"], top_k=6)
    return dn.open(run_job(job, threads).store)


def seen_by(store: dn.Store) -> dict[int, np.ndarray]:
    """The views of the coloured store with a margin of the mean's colour, by Pillow alone."""
    found = {}
    root = Path(store.attrs["images"]["root"])
    for number, name in enumerate(store.images["filename"].values.tolist()):
        if int(store.images["status"][number]):
            continue
        picture = Image.open(root / name)
        width, height = picture.size
        picture = picture.resize((int(20 * width / height), 20), Image.Resampling.BILINEAR)
        left, top = round((picture.width - 16) / 2), 2
        view = np.asarray(picture)[top : top + 16, left : left + 16]
        padded = np.empty((56, 56, 3), np.uint8)
        padded[:] = (128, 64, 191)
        padded[20:36, 20:36] = view
        found[number] = padded
    return found


@pytest.mark.parametrize("layer", FIELDS)
def test_patches__are_what_the_winning_position_saw(digits: dn.Store, layer: str) -> None:
    size, stride, start = FIELDS[layer]
    source = open_source(DigitsImages(source="digits", sample=40))
    found = dn.top_patches(digits, layer, k=7)
    assert found.dims == ("channel", "sample", "row", "column", "color")
    assert found.shape[1:] == (7, size, size, 1)
    assert (found.dtype, found.attrs["layer"]) == (np.uint8, layer)
    top = digits.statistics(layer).load()
    values = found.values
    for channel in range(found.sizes["channel"]):
        count = int((top["top_value"][channel] > 0).sum())
        assert int(found["count"][channel]) == count
        for sample in range(7):
            if sample >= count:
                assert (values[channel, sample] == 0).all()
                assert int(found["top_image"][channel, sample]) == -1
                assert np.isnan(found["top_value"][channel, sample])
                continue
            image, y, x = (int(top[f"top_{name}"][channel, sample]) for name in ("image", "y", "x"))
            assert int(found["top_image"][channel, sample]) == image
            picture = source.read(image)[0]
            row, column = start + stride * y, start + stride * x
            expected = picture[row : row + size, column : column + size]
            np.testing.assert_array_equal(values[channel, sample, ..., 0], expected)


@pytest.mark.parametrize(("layer", "size", "stride", "start"), [("1", 3, 1, -1), ("4", 8, 2, -3)])
def test_patches__in_colour_with_borders_and_masked_images(
    coloured: dn.Store, layer: str, size: int, stride: int, start: int
) -> None:
    found = dn.top_patches(coloured, layer, k=6)
    padded = seen_by(coloured)
    outside = 0
    for channel, sample in np.ndindex(found.shape[:2]):
        if sample >= int(found["count"][channel]):
            continue
        image, y, x = (int(found[f"top_{name}"][channel, sample]) for name in ("image", "y", "x"))
        row, column = 20 + start + stride * y, 20 + start + stride * x
        outside += not (20 <= row <= 36 - size and 20 <= column <= 36 - size)
        expected = padded[image][row : row + size, column : column + size]
        np.testing.assert_array_equal(found[channel, sample].values, expected)
    assert outside, "some patch reaches over the border"


def test_patches__of_a_layer_that_sees_everything_are_whole_views(digits: dn.Store) -> None:
    found = dn.top_patches(digits, "fc", k=3)
    assert found.shape[1:] == (3, 28, 28, 1)
    count, image = int(found["count"][0]), int(found["top_image"][0, 0])
    assert count > 0
    view = digits.tree["pictures"]["picture"][image].values  # as large as the input here, so not reduced
    np.testing.assert_array_equal(found[0, 0], view)


def test_patches__are_the_same_however_they_are_cut(digits: dn.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dn.top_patches(digits, "conv1", k=7)
    assert len(whole.chunks[0]) == 10, "a layer of few channels gives as many tasks"
    monkeypatch.setattr(patches, "TASKS", 1)
    monkeypatch.setattr(patches, "BLOCK_BYTES", 3 * 7 * 25)
    other = dn.top_patches(digits, "conv1", k=7)
    assert other.chunks[0] == (3, 3, 3, 1)
    xr.testing.assert_identical(whole.compute(), other.compute())


def test_patches__each_image_of_a_chunk_is_read_once(digits: dn.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    see = views.Views.see

    def spy(self: views.Views, number: int, *more: Any) -> Any:
        read.append(number)
        return see(self, number, *more)

    monkeypatch.setattr(views.Views, "see", spy)
    monkeypatch.setattr(patches, "TASKS", 1)
    found = dn.top_patches(digits, "conv1", k=7)
    assert read == [], "nothing is read before it is asked for"
    found.isel(channel=slice(0, 2)).compute(scheduler="synchronous")
    assert found.chunks[0] == (10,)
    images = found["top_image"].values
    assert read == np.unique(images[images >= 0]).tolist()


def test_patches__are_taken_by_ica_as_any_array(digits: dn.Store, threads: ThreadExecutor) -> None:
    found = dn.top_patches(digits, "relu1", k=7)
    lazy = dn.ica(found, rank=3, client=threads)
    held = dn.ica(found.compute(), rank=3, client=threads)
    xr.testing.assert_identical(lazy, held)
    count = found["count"].values
    assert (lazy["rank"].values <= np.maximum(count - 1, 0)).all()
    half = dn.ica(found.astype("f4").mean("color") / 255, rank=2, client=threads)
    assert half["mixing"].sizes["row"] == 6


def test_patches__of_other_lists(digits: dn.Store, threads: ThreadExecutor) -> None:
    chosen = dn.select(digits["conv1"], images=[3, 4, 11])
    top = dn.top_images(chosen, k=5, client=threads)
    found = dn.top_patches(digits, "conv1", k=5, top=top)
    images = found["top_image"].values
    assert found.sizes["sample"] == 3
    assert set(images[images >= 0]) <= {3, 4, 11}
    assert found.attrs["selection"]["images"] == 3


@pytest.mark.parametrize(
    ("layer", "settings", "message"),
    [
        ("relu1", {"k": 8}, "k=8, and of layer relu1 the 7 top images of each channel are recorded"),
        ("relu1", {"k": 0}, "k=0 is not a whole number"),
        ("relu1", {"k": 3, "top": xr.Dataset()}, "top is a Dataset without top_image"),
        ("relu3", {"k": 3}, "has no layer 'relu3'"),
    ],
)
def test_patches__what_cannot_be_cut(digits: dn.Store, layer: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ArrayError, StoreError), match=message) as caught:
        dn.top_patches(digits, layer, **settings)
    assert caught.value.hint


@pytest.mark.parametrize("layer", ["relu2", "pool2", "relu1"])
def test_patches__of_lists_that_were_not_recorded_are_found_as_the_hint_says(
    make_job: MakeJob, threads: ThreadExecutor, layer: str
) -> None:
    layers = {"relu2": {"keep": "stats"}, "pool2": {"keep": "mean"}, "relu1": {"keep": "max"}}
    store = dn.open(run_job(make_job(layers=layers, statistics=["moments"]), threads).store)
    with pytest.raises(ArrayError, match=f"no top images were recorded of layer {layer}") as caught:
        dn.top_patches(store, layer, k=6)
    again = "run the job again with extract: {statistics: [top_images], top_k: 6}"
    assert str(caught.value.hint).startswith("top=dn.top_images(" if layer == "relu1" else again)
    if layer == "relu1":
        found = dn.top_patches(store, layer, k=6, top=dn.top_images(store[layer], k=6, client=threads))
    else:
        job = make_job(layers=layers, statistics=["top_images"], top_k=6)
        found = dn.top_patches(run_job(job, threads).store, layer, k=6)
    assert found.sizes["sample"] == 6


def test_patches__of_means_are_refused(digits: dn.Store, threads: ThreadExecutor) -> None:
    top = dn.top_images(digits["pool2"], k=3, pool="mean", client=threads)
    with pytest.raises(ArrayError, match="the top images of pool2 come without the positions that won"):
        dn.top_patches(digits, "pool2", k=3, top=top)
    assert dn.top_patches(digits, "pool2", k=3).sizes["row"] == 16, "what was recorded on the way is of maxima"


def test_patches__of_neurons_are_refused(digits: dn.Store, threads: ThreadExecutor) -> None:
    top = dn.top_images(digits["conv1"], k=3, per="neuron", client=threads)
    with pytest.raises(ArrayError, match="patches are of channels"):
        dn.top_patches(digits, "conv1", k=3, top=top)


def test_source__that_is_gone_or_moved(coloured: dn.Store, tmp_path: Path) -> None:
    before = dn.top_patches(coloured, "4", k=6).compute()
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere")
    with pytest.raises(ImageSourceError, match=r"cannot be read again from .*photos") as caught:
        dn.top_patches(coloured, "4", k=6).compute()
    assert "images=" in str(caught.value.hint)
    moved = dn.top_patches(coloured, "4", k=6, images=tmp_path / "elsewhere")
    xr.testing.assert_identical(moved.compute(), before)
    said = {"source": "folder", "root": str(tmp_path / "elsewhere")}
    xr.testing.assert_identical(dn.top_patches(str(coloured.path), "4", k=6, images=said).compute(), before)
    with pytest.raises(ImageSourceError, match="unknown source"):
        dn.top_patches(coloured, "4", images={"source": "photos"}, k=6)


def test_patches__of_images_that_the_store_has_not_are_refused(digits: dn.Store, threads: ThreadExecutor) -> None:
    top = dn.top_images(digits["relu1"], k=3, client=threads)
    with pytest.raises(ArrayError, match=r"image \d+ is among the top images, and .* has \d+"):
        dn.top_patches(digits, "relu1", k=3, top=top.assign(top_image=top["top_image"] + 10**6))


def test_source__of_other_images_is_refused(coloured: dn.Store, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "photos", tmp_path / "other")
    (tmp_path / "other" / "a" / "00.png").unlink()
    with pytest.raises(ImageSourceError, match=r"holds other images than .*acts\.zarr was made of: 19"):
        dn.top_patches(coloured, "4", k=6, images=tmp_path / "other").compute()


def test_source__with_an_image_of_other_content(coloured: dn.Store, tmp_path: Path) -> None:
    first = int(dn.top_patches(coloured, "4", k=6)["top_image"].values.max())
    path = tmp_path / "photos" / str(coloured.images["filename"][first].values)
    size, pixels = path.stat().st_size, np.asarray(Image.open(path))
    Image.fromarray(255 - pixels).save(path, compress_level=0)
    assert path.stat().st_size == size, "nothing else tells it from what it was"
    with pytest.raises(FingerprintError, match=f"image {first}, .* has another content"):
        dn.top_patches(coloured, "4", k=6).compute()


def test_store__without_the_folder_beside_it(coloured: dn.Store) -> None:
    before = dn.top_patches(coloured, "1", k=6).compute()
    shutil.rmtree(units_folder(coloured.path))
    xr.testing.assert_identical(dn.top_patches(coloured, "1", k=6).compute(), before)


def test_patches__on_the_workers_of_a_cluster(coloured: dn.Store) -> None:
    from distributed import Client, LocalCluster

    before = dn.top_patches(coloured, "4", k=6).compute()
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, host="127.0.0.1",
                     dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        found = dn.top_patches(coloured, "4", k=6)
        xr.testing.assert_identical(found.compute(), before)
        there = dn.patch_components(found, k=6, rank=3, client=client)
    xr.testing.assert_identical(there, dn.patch_components(before, k=6, rank=3, client=ThreadExecutor(1)))
