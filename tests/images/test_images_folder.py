from __future__ import annotations

import errno
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images import folder as folder_module
from dneuro.images.sources import ImageSource, open_source
from dneuro.images.storage import EXTENSIONS
from dneuro.spec.images import FolderImages

Maker = Callable[..., Path]


def open_folder(root: Path | str, **options: int) -> ImageSource:
    return open_source(FolderImages(source="folder", root=str(root), **options))


def refusal(root: Path) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_folder(root)
    assert error.value.hint
    return error.value


def test_folder__lists_what_torchvision_lists(make_folder: Maker):
    root = make_folder("b/2.png", "b/10.jpg", "B/x.JPEG", "a/é.tif", "a/z.PGM", "a b/y.webp", "c/1.bmp", "c/0.ppm")
    (root / "a/notes.txt").write_text("no image")
    manifest = open_folder(root).manifest
    reference = ImageFolder(str(root))
    assert manifest.class_names == tuple(reference.classes) == ("B", "a", "a b", "b", "c")
    assert [str(root / name) for name in manifest.names] == [path for path, _ in reference.samples]
    assert manifest.labels.tolist() == reference.targets
    assert manifest.identity.tolist() == [str((root / name).stat().st_size) for name in manifest.names]
    assert manifest.indices.tolist() == list(range(8))
    assert manifest.source == {
        "source": "folder", "root": str(root), "classes": None, "sample": None, "seed": 0
    }  # fmt: skip


def test_folder__every_extension_in_any_case(make_folder: Maker):
    names = [f"c/{i}{e}" for i, e in enumerate((*EXTENSIONS, *(e.upper() for e in EXTENSIONS)))]
    assert sorted(open_folder(make_folder(*names)).manifest.names) == sorted(names)


def test_folder__reads_picture_and_crc(make_folder: Maker, picture: np.ndarray):
    root = make_folder("cat/a.png", "dog/b.png")
    Image.fromarray(picture).save(root / "dog/b.png")
    source = open_folder(root)
    read, crc = source.read(1)
    np.testing.assert_array_equal(read, picture)
    assert crc == zlib.crc32((root / "dog/b.png").read_bytes())
    assert source.read(0)[0].shape == (4, 5)


def test_folder__worker_opens_with_the_manifest_and_lists_nothing(
    make_folder: Maker, monkeypatch: pytest.MonkeyPatch
):
    root = make_folder("cat/a.png", "dog/b.png")
    source = open_folder(root)

    def refuse(*_: object) -> None:
        raise AssertionError("listed again")

    monkeypatch.setattr(os, "scandir", refuse)
    again = open_source(FolderImages(source="folder", root=str(root)), source.manifest)
    assert again.manifest is source.manifest
    assert again.read(1)[1] == source.read(1)[1]


def test_folder__fingerprint_is_independent_of_the_root(make_folder: Maker, tmp_path: Path):
    root = make_folder("cat/a.png", "dog/b.png")
    shutil.copytree(root, tmp_path / "moved")
    assert open_folder(root).manifest.fingerprint() == open_folder(tmp_path / "moved").manifest.fingerprint()
    (root / "dog/b.png").write_bytes(b"other")
    assert open_folder(root).manifest.fingerprint() != open_folder(tmp_path / "moved").manifest.fingerprint()


def test_folder__no_file_is_opened_by_listing(make_folder: Maker, monkeypatch: pytest.MonkeyPatch):
    root = make_folder("cat/a.png")
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr("io.open", None)
    assert len(open_folder(root).manifest) == 1


def test_folder__sample_keeps_order_labels_and_indices(make_folder: Maker):
    root = make_folder(*(f"{c}/{i}.png" for c in "abcd" for i in range(5)))
    whole, part = open_folder(root).manifest, open_folder(root, sample=7, seed=3).manifest
    assert len(part) == 7
    assert part.indices.tolist() == sorted(part.indices)
    for name in ("names", "labels", "identity"):
        assert getattr(part, name).tolist() == getattr(whole, name)[part.indices].tolist()
    assert part.class_names == whole.class_names
    assert part.fingerprint() != whole.fingerprint()


def test_folder__sample_of_more_than_there_are(make_folder: Maker):
    with pytest.raises(ImageSourceError, match="has 2 images; a sample of 3"):
        open_folder(make_folder("a/1.png", "a/2.png"), sample=3)


def test_folder__of_wnids_is_numbered_as_imagenet_is(make_folder: Maker):
    root = make_folder("n15075141/a.png", "n01440764/b.png", "n03888257/c.png")
    plain = open_folder(root).manifest
    assert (plain.labels.tolist(), plain.class_names[0], plain.wnids) == ([0, 1, 2], "n01440764", ())
    manifest = open_source(FolderImages(source="folder", root=str(root), classes="imagenet")).manifest
    assert manifest.labels.tolist() == [0, 701, 999]
    assert len(manifest.class_names) == len(manifest.wnids) == 1000
    assert (manifest.class_names[701], manifest.wnids[701]) == ("parachute", "n03888257")
    assert manifest.names.tolist() == plain.names.tolist()


def test_folder__that_is_none_of_imagenets(make_folder: Maker):
    root = make_folder("n01440764/a.png", "n01440765/b.png")
    with pytest.raises(ImageSourceError) as error:
        open_source(FolderImages(source="folder", root=str(root), classes="imagenet"))
    assert error.value.message == f"{root}: 'n01440765' is not the wnid of one of the 1,000 classes"
    assert "did you mean 'n01440764'" in str(error.value.hint)


def test_folder__hidden_files_and_folders_are_skipped(make_folder: Maker):
    root = make_folder("cat/a.png", "cat/._a.png", ".thumbs/b.png", "cat/.hidden/c.png")
    (root / ".DS_Store").write_bytes(b"")
    assert open_folder(root).manifest.names.tolist() == ["cat/a.png"]


def test_folder__folders_within_a_class_are_left_out(make_folder: Maker):
    root = make_folder("cat/a.png", "cat/more/b.png", "cat/strange.jpg/c.png")
    assert open_folder(root).manifest.names.tolist() == ["cat/a.png"]


def test_folder__links_are_followed_but_not_in_circles(make_folder: Maker, tmp_path: Path):
    root = make_folder("cat/a.png")
    outside = make_folder("dogs/b.png", root="outside")
    (root / "dog").symlink_to(outside / "dogs", target_is_directory=True)
    (root / "cat/c.png").symlink_to(outside / "dogs/b.png")
    (root / "cat/up").symlink_to(root, target_is_directory=True)
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    source = open_folder(tmp_path / "link")
    assert source.manifest.names.tolist() == ["cat/a.png", "cat/c.png", "dog/b.png"]
    assert source.read(1)[1] == source.read(2)[1]


def test_folder__missing_root_names_its_neighbours(make_folder: Maker):
    root = make_folder("cat/a.png")
    error = refusal(root.with_name("photo"))
    assert "does not exist" in error.message
    assert "did you mean 'photos'?" in str(error.hint)
    assert "does not exist, nor does" in refusal(root / "x/y").message


def test_folder__root_is_a_file(make_folder: Maker):
    root = make_folder("cat/a.png")
    error = refusal(root / "cat/a.png")
    assert "a.png is a file, and no tar" in error.message
    assert "source: array" in str(error.hint)


def test_folder__link_in_a_circle_as_root(tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be accessed: " in refusal(tmp_path / "loop").message


@pytest.mark.parametrize("with_class", [True, False])
def test_folder__images_directly_in_the_root(make_folder: Maker, with_class: bool):
    root = make_folder("one.png", "two.PNG", *(["cat/a.png"] if with_class else []), root="my photos")
    error = refusal(root)
    assert "itself holds image files (one.png, two.PNG; 2 in all)" in error.message
    assert error.hint == f"mkdir '{root}'/all && mv '{root}'/*.png '{root}'/all/"


def test_folder__other_files_in_the_root_do_not_matter(make_folder: Maker):
    root = make_folder("cat/a.png")
    (root / "README.md").write_text("hello")
    assert len(open_folder(root).manifest) == 1


def test_folder__no_class_folders(tmp_path: Path):
    assert "holds no class folders" in refusal(tmp_path).message


def test_folder__empty_class_folder_is_named(make_folder: Maker):
    root = make_folder("cat/a.png", "dog/b.png")
    (root / "dog/b.png").unlink()
    error = refusal(root)
    assert error.message == f"class folder {root / 'dog'} is empty"
    assert error.hint == f"put images into it, or remove it: rmdir {root / 'dog'}"


def test_folder__class_folder_with_folders_only(make_folder: Maker):
    root = make_folder("train/cat/a.png", "train/dog/b.png")
    error = refusal(root)
    assert f"class folder {root / 'train'} holds only folders (cat, dog)" in error.message
    assert error.hint == f"if these are the classes, set root: {root / 'train'}"


def test_folder__class_folder_with_other_files_only(make_folder: Maker):
    root = make_folder("cat/a.txt", "cat/b.npy", "cat/c", "cat/d.heic")
    message = refusal(root).message
    assert "holds no image files: none of a.txt, b.npy, c, … has one of the extensions .bmp .gif" in message


def test_folder__links_and_pipes_with_an_images_name_are_listed(make_folder: Maker):
    root = make_folder("cat/a.png")
    (root / "cat/b.png").symlink_to(root / "gone.png")
    (root / "cat/c.png").symlink_to(root / "cat/c.png")
    os.mkfifo(root / "cat/d.png")
    (root / "cat/e").symlink_to(root / "cat/e")
    source = open_folder(root)
    assert source.manifest.names.tolist() == ["cat/a.png", "cat/b.png", "cat/c.png", "cat/d.png"]
    assert unreadable(source, 1) == f"{root / 'cat/b.png'}: No such file or directory"
    assert unreadable(source, 2) == f"{root / 'cat/c.png'}: Too many levels of symbolic links"
    assert unreadable(source, 3) == f"{root / 'cat/d.png'}: is neither a file nor a folder"


def test_folder__a_broken_link_to_a_class_is_named(make_folder: Maker):
    root = make_folder("cat/a.png")
    (root / "dog").symlink_to(root / "dog")
    assert f"{root / 'dog'} is a link that leads nowhere" in refusal(root).message


def test_folder__names_that_are_not_utf8(make_folder: Maker):
    root = make_folder("cat/a.png")
    try:
        (root / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
        (root / os.fsdecode(b"\xff")).mkdir()
        shutil.copy(root / "cat/a.png", root / os.fsdecode(b"\xff/b.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    source = open_folder(root)
    assert source.manifest.names.tolist() == [r"\xff/b.png", "cat/a.png", r"cat/caf\xe9.png"]
    assert source.manifest.class_names == (r"\xff", "cat")
    assert source.read(0)[1] == source.read(1)[1]
    assert unreadable(source, 2).startswith(rf"{root}/cat/caf\xe9.png: not a picture")


@pytest.mark.parametrize("part", ["", "cat"])
def test_folder__without_permission(make_folder: Maker, monkeypatch: pytest.MonkeyPatch, part: str):
    root = make_folder("cat/a.png")
    scandir = os.scandir

    def guarded(path: Path) -> object:  # root may read all, so permissions alone would not show it
        if Path(path) == root / part:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder_module.os, "scandir", guarded)
    error = refusal(root)
    assert error.message == f"folder {root / part} may not be read: Permission denied"
    assert error.hint == f"chmod u+rx {root / part}"


def unreadable(source: ImageSource, index: int = 0) -> str:
    with pytest.raises(UnreadableImageError) as error:
        source.read(index)
    return str(error.value)


def test_read__names_file_and_cause(make_folder: Maker):
    root = make_folder("cat/a.png", "cat/b.jpg", "cat/c.png")
    (root / "cat/b.jpg").write_text("I am a text")
    (root / "cat/c.png").write_bytes(b"")
    source = open_folder(root)
    assert unreadable(source, 1).startswith(f"{root / 'cat/b.jpg'}: not a picture in a format known here")
    assert unreadable(source, 2) == f"{root / 'cat/c.png'}: the file is empty (0 bytes)"
    (root / "cat/a.png").unlink()
    assert unreadable(source, 0) == f"{root / 'cat/a.png'}: No such file or directory"


@pytest.mark.parametrize(("change", "now"), [(b"", "now 0"), (b"x" * 5000, "now more")])
def test_read__file_that_changed_since_it_was_listed(make_folder: Maker, change: bytes, now: str):
    root = make_folder("cat/a.png")
    source = open_folder(root)
    size = (root / "cat/a.png").stat().st_size
    (root / "cat/a.png").write_bytes(change)
    assert f"changed since it was listed: it had {size} bytes, {now}" in unreadable(source)


def test_read__nothing_mounted_is_not_the_images_fault(make_folder: Maker):
    root = make_folder("cat/a.png", "cat/b.png")
    source = open_folder(root)
    root.rename(root.with_name("gone"))
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_read__file_that_may_not_be_read(make_folder: Maker, monkeypatch: pytest.MonkeyPatch):
    root = make_folder("cat/a.png")
    source = open_folder(root)

    def refuse(*_: object, **__: object) -> None:  # root may read all, so permissions alone would not show it
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert unreadable(source) == f"{root / 'cat/a.png'}: Permission denied"


def test_read__huge_file_is_not_loaded(make_folder: Maker):
    root = make_folder("cat/a.png")
    os.truncate(root / "cat/a.png", 10**12)  # sparse: takes no room
    assert "1,000,000,000,000 bytes; the limit is 536,870,912" in unreadable(open_folder(root))


def test_read__failing_storage_is_not_the_images_fault(make_folder: Maker, monkeypatch: pytest.MonkeyPatch):
    source = open_folder(make_folder("cat/a.png"))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source.read(0)
