from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images import arrays as arrays_module
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import ArrayImages

KINDS = ("npz", "zarr")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def store(path: Path, kind: str, chunk: int = 2, **arrays: Any) -> Path:
    """Write arrays as .npz file or as Zarr group with `chunk` rows per chunk."""
    root = path / f"images.{kind}"
    if kind == "npz":
        np.savez_compressed(root, **arrays)
        return root
    group = zarr.open_group(str(root), mode="w")
    for name, values in arrays.items():
        array = np.asarray(values)
        if array.dtype.kind == "U":
            array = array.astype(np.dtypes.StringDType())
        group.create_array(name, data=array, chunks=(chunk, *array.shape[1:]) if array.ndim else "auto")
    return root


def open_array(root: Path, **options: Any) -> ImageSource:
    return open_source(ArrayImages(source="array", root=str(root), **options))


def refusal(root: Path, **options: Any) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_array(root, **options)
    return error.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (1, 1, 1)])
def test_array__reads_rows_and_crc(tmp_path: Path, kind: str, shape: tuple[int, ...]):
    images = noise(*shape)
    source = open_array(store(tmp_path, kind, images=images))
    expected = images[..., 0] if shape[-1] == 1 and len(shape) == 4 else images
    for index in range(shape[0]):
        picture, crc = source.read(index)
        np.testing.assert_array_equal(picture, expected[index], strict=True)
        assert crc == zlib.crc32(images[index].tobytes())
        picture[:] = 0  # the caller's own: what is kept stays as it is
        np.testing.assert_array_equal(source.read(index)[0], expected[index])
    assert source.manifest.identity.tolist() == [f"{zlib.crc32(row.tobytes()):08x}" for row in images]


@pytest.mark.parametrize("kind", KINDS)
def test_array__manifest(tmp_path: Path, kind: str):
    root = store(
        tmp_path, kind, images=noise(4, 2, 2), labels=np.array([1, 0, -1, 1]), class_names=np.array(["é", "dog"])
    )
    manifest = open_array(root).manifest
    assert manifest.names.tolist() == ["image-0000", "image-0001", "image-0002", "image-0003"]
    assert manifest.labels.tolist() == [1, 0, -1, 1]
    assert manifest.class_names == ("é", "dog")
    assert manifest.indices.tolist() == [0, 1, 2, 3]
    assert manifest.source["root"] == str(root)


def test_array__npz_and_zarr_have_the_same_fingerprint(tmp_path: Path):
    content = {"images": noise(4, 2, 2), "labels": np.array([1, 0, 0, 1], np.uint8)}
    prints = {open_array(store(tmp_path, kind, **content)).manifest.fingerprint() for kind in KINDS}
    assert len(prints) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_array__other_names_and_given_class_names(tmp_path: Path, kind: str):
    root = store(tmp_path, kind, x=noise(3, 2, 2), y=np.array([0, 2, 1]), class_names=np.array(["wrong"]))
    manifest = open_array(root, images="x", labels="y", class_names=["a", "b", "c", "unused"]).manifest
    assert manifest.labels.tolist() == [0, 2, 1]
    assert manifest.class_names == ("a", "b", "c", "unused")


@pytest.mark.parametrize("kind", KINDS)
def test_array__without_labels(tmp_path: Path, kind: str):
    manifest = open_array(store(tmp_path, kind, images=noise(3, 2, 2))).manifest
    assert manifest.labels.tolist() == [-1, -1, -1]
    assert manifest.class_names == ()


@pytest.mark.parametrize("kind", KINDS)
def test_array__without_class_names_they_are_numbers(tmp_path: Path, kind: str):
    manifest = open_array(store(tmp_path, kind, images=noise(3, 2, 2), labels=np.array([2, 0, 2]))).manifest
    assert manifest.class_names == ("0", "1", "2")


def test_array__all_labels_unknown(tmp_path: Path):
    manifest = open_array(store(tmp_path, "npz", images=noise(2, 2, 2), labels=np.array([-1, -1]))).manifest
    assert manifest.class_names == ()


def test_array__class_names_in_bytes(tmp_path: Path):
    root = store(tmp_path, "npz", images=noise(1, 2, 2), class_names=np.array(["é".encode()]))
    assert open_array(root).manifest.class_names == ("é",)


def test_array__fortran_order(tmp_path: Path):
    images = np.asfortranarray(noise(3, 4, 5, 3))
    source = open_array(store(tmp_path, "npz", images=images))
    picture, crc = source.read(2)
    np.testing.assert_array_equal(picture, images[2])
    assert crc == zlib.crc32(images[2].tobytes())


def test_array__in_a_subgroup(tmp_path: Path):
    root = store(tmp_path, "zarr", images=noise(2, 2, 2))
    images = noise(3, 2, 2)
    zarr.open_group(str(root)).require_group("val").create_array("images", data=images)
    np.testing.assert_array_equal(open_array(root, images="val/images").read(2)[0], images[2])
    error = refusal(root, images="val")
    assert "'val' is a group, not an array" in error.message
    assert "val/images" in str(error.hint)


@pytest.mark.parametrize("kind", KINDS)
def test_array__sample(tmp_path: Path, kind: str):
    images = noise(20, 3, 3)
    root = store(tmp_path, kind, chunk=3, images=images, labels=np.arange(20))
    source = open_array(root, sample=6, seed=1)
    drawn = source.manifest.indices
    assert len(drawn) == 6
    assert source.manifest.names.tolist() == [f"image-{i:04d}" for i in drawn]
    assert source.manifest.labels.tolist() == drawn.tolist()
    for index, row in enumerate(drawn):
        np.testing.assert_array_equal(source.read(index)[0], images[row])


class Counted:
    """A Zarr array that counts how often it is read."""

    def __init__(self, array: Any) -> None:
        self.array, self.reads, self.shape, self.chunks = array, 0, array.shape, array.chunks

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return self.array[key]


def test_array__zarr_chunks_are_read_once_each(tmp_path: Path):
    images = noise(10, 2, 2)
    root = store(tmp_path, "zarr", chunk=4, images=images)
    counted = Counted(zarr.open_group(str(root))["images"])
    rows = arrays_module._Rows(counted)
    np.testing.assert_array_equal([rows[i] for i in range(10)], images)
    assert counted.reads == 3


def test_array__npz_is_loaded_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = store(tmp_path, "npz", images=noise(3, 2, 2), labels=np.zeros(3, int))
    source = open_array(root)
    monkeypatch.setattr(np, "load", None)
    again = open_source(ArrayImages(source="array", root=str(root)), source.manifest)
    np.testing.assert_array_equal(again.read(2)[0], source.read(2)[0])


def test_array__npz_that_was_written_anew_is_loaded_anew(tmp_path: Path):
    source = open_array(store(tmp_path, "npz", images=noise(3, 2, 2)))
    root = store(tmp_path, "npz", images=255 - noise(3, 2, 2))
    os.utime(root, ns=(1, 1))
    again = open_source(ArrayImages(source="array", root=str(root)), source.manifest)
    with pytest.raises(UnreadableImageError, match=r"images\.npz: array 'images', image 1: changed since it was"):
        again.read(1)


@pytest.mark.parametrize("kind", KINDS)
def test_array__threads_may_share_a_source(tmp_path: Path, kind: str):
    images = noise(40, 5, 5, 3)
    source = open_array(store(tmp_path, kind, chunk=3, images=images))
    order = np.random.default_rng(1).integers(0, 40, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, (picture, _) in zip(order, pool.map(source.read, order), strict=True):
            np.testing.assert_array_equal(picture, images[index])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("images", "message", "hint"),
    [
        (np.zeros((2, 3, 3), np.float32), "float32 of shape (2, 3, 3); pictures are uint8", "255 * images"),
        (np.zeros((2, 3, 3), np.uint16), "uint16", "uint8"),
        (np.zeros((2, 3, 3), bool), "bool", "uint8"),
        (np.zeros((2, 3, 32, 32), np.uint8), "colours come last", "numpy.moveaxis(images, 1, -1)"),
        (np.zeros((2, 1, 28, 28), np.uint8), "colours come last", "numpy.moveaxis(images, 1, -1)"),
        (np.zeros((2, 8, 8, 4), np.uint8), "uint8 of shape (2, 8, 8, 4); it must be", None),
        (np.zeros((2, 784), np.uint8), "uint8 of shape (2, 784); it must be (n, height, width)", None),
        (np.zeros((0, 3, 3), np.uint8), "there is not one pixel in it", None),
    ],
)
def test_array__refuses_what_are_no_pictures(
    tmp_path: Path, kind: str, images: np.ndarray, message: str, hint: str | None
):
    error = refusal(store(tmp_path, kind, chunk=1, images=images))
    assert "array 'images' is " in error.message
    assert message in error.message
    assert hint is None or hint in str(error.hint)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4, int), "array 'labels' has 4 labels, but there are 3 images"),
        (np.zeros((3, 1), int), "has shape (3, 1), but there are 3 images; one label per image"),
        (np.zeros(3), "array 'labels' is float64; labels are integers"),
        (np.zeros(3, bool), "array 'labels' is bool; labels are integers"),
        (np.array(["a", "b", "a"]), "labels are integers"),
        (np.array([0, -2, 0]), "label -2 of image 1"),
        (np.array([0, 1, 2]), "label 2 of image 2 has no class name; there are 2, for labels 0…1"),
    ],
)
def test_array__refuses_labels_that_do_not_fit(tmp_path: Path, kind: str, labels: np.ndarray, message: str):
    root = store(tmp_path, kind, images=noise(3, 2, 2), labels=labels, class_names=np.array(["a", "b"]))
    assert message in refusal(root).message


@pytest.mark.parametrize("label", [10**6, 2**64 - 1])
def test_array__labels_that_are_no_class_indices(tmp_path: Path, label: int):
    root = store(tmp_path, "npz", images=noise(2, 2, 2), labels=np.array([0, label], np.uint64))
    assert f"goes up to {label:,}; labels number the classes" in refusal(root).message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["images", "labels"])
def test_array__missing_array_lists_those_there_are(tmp_path: Path, kind: str, option: str):
    error = refusal(store(tmp_path, kind, images=noise(1, 2, 2), label=np.zeros(1, int)), **{option: "label_s"})
    assert "has no array 'label_s'" in error.message
    assert error.hint == "did you mean 'label'? choices: images, label"


def test_array__pickles_are_refused(tmp_path: Path):
    root = store(tmp_path, "npz", images=np.array([np.zeros((2, 2)), None], object))
    assert "array 'images' holds Python objects, which are refused" in refusal(root).message
    root = store(tmp_path, "npz", images=noise(1, 2, 2), class_names=np.array(["a"], object))
    error = refusal(root)
    assert "array 'class_names' holds Python objects" in error.message
    assert "astype(str)" in str(error.hint)


def test_array__class_names_of_wrong_shape(tmp_path: Path):
    root = store(tmp_path, "npz", images=noise(1, 2, 2), class_names=np.array([["a"]]))
    assert "'class_names' has shape (1, 1), not (classes,)" in refusal(root).message


def test_array__missing_file_names_its_neighbours(tmp_path: Path):
    store(tmp_path, "npz", images=noise(1, 2, 2))
    error = refusal(tmp_path / "image.npz")
    assert "image.npz does not exist" in error.message
    assert "did you mean 'images.npz'?" in str(error.hint)


def test_array__neither_npz_nor_zarr(tmp_path: Path):
    np.save(tmp_path / "images.npy", noise(1, 2, 2))
    error = refusal(tmp_path / "images.npy")
    assert "neither an .npz file nor a Zarr group" in error.message
    assert "numpy.savez" in str(error.hint)
    (tmp_path / "folder").mkdir()
    assert "no Zarr group that can be opened" in refusal(tmp_path / "folder").message


def test_array__zarr_array_in_place_of_its_group(tmp_path: Path):
    root = store(tmp_path, "zarr", images=noise(1, 2, 2))
    error = refusal(root / "images")
    assert "is a Zarr array, not a group" in error.message
    assert error.hint == f"set root: {root} and images: images"


def test_array__damaged_npz(tmp_path: Path):
    root = store(tmp_path, "npz", images=noise(50, 20, 20))
    data = bytearray(root.read_bytes())
    data[2000:2100] = bytes(100)
    root.write_bytes(data)
    assert "array 'images' cannot be read: " in refusal(root).message


def damage(root: Path, chunk: int) -> None:
    (root / f"images/c/{chunk}/0/0").write_bytes(b"no chunk")


def test_array__damaged_zarr_chunk_when_listing(tmp_path: Path):
    root = store(tmp_path, "zarr", images=noise(6, 4, 4))
    damage(root, 1)
    assert "array 'images': image 2 cannot be read: " in refusal(root).message


def test_array__damaged_zarr_chunk_when_reading(tmp_path: Path):
    images = noise(6, 4, 4)
    root = store(tmp_path, "zarr", images=images)
    source = open_array(root)
    damage(root, 1)
    np.testing.assert_array_equal(source.read(0)[0], images[0])
    with pytest.raises(UnreadableImageError, match=r"images\.zarr: array 'images', image 3: cannot be read: "):
        source.read(3)
    np.testing.assert_array_equal(source.read(4)[0], images[4])


def test_array__failing_storage_is_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_array(store(tmp_path, "zarr", images=noise(6, 4, 4)))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(arrays_module._Rows, "__getitem__", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source.read(0)


def test_array__fewer_images_than_the_manifest_lists(tmp_path: Path):
    manifest = open_array(store(tmp_path, "npz", images=noise(5, 2, 2))).manifest
    root = store(tmp_path, "zarr", images=noise(4, 2, 2))
    with pytest.raises(ImageSourceError, match="has 4 images, but the manifest lists one with index 4"):
        open_source(ArrayImages(source="array", root=str(root)), manifest)
