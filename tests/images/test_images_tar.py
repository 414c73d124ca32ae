from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import random
import tarfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.manifest import Manifest
from dneuro.images.sources import ImageSource, open_source
from dneuro.images.tar import TarArchive, check_tar
from dneuro.spec.images import FilesImages, FolderImages

Maker = Callable[..., Path]
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def open_files(root: Path, manifest: Manifest | None = None) -> ImageSource:
    return open_source(FilesImages(source="files", root=str(root)), manifest)


def refusal(root: Path) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_files(root)
    return error.value


def member(name: str, size: int = 0, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in values.items():
        setattr(info, key, value)
    return info


def pack(path: Path, *members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_tar__reads_what_the_folder_reads(make_folder: Maker, make_tar: Maker, kind: str):
    long = "/".join(["a long name of a folder"] * 4) + "/" + "x" * 60 + ".png"
    names = ["b.png", "a.PNG", "é.png", "deep/er/c.png", long] if kind != "ustar" else ["b.png", "deep/a.PNG"]
    root = make_folder(*names)
    folder, tar = open_files(root), open_files(make_tar(root, kind=FORMATS[kind]))
    assert tar.manifest.names.tolist() == folder.manifest.names.tolist() == sorted(names)
    assert tar.manifest.fingerprint() == folder.manifest.fingerprint()
    for index, name in enumerate(tar.manifest.names):
        picture, crc = tar.read(index)
        np.testing.assert_array_equal(picture, folder.read(index)[0])
        assert crc == folder.read(index)[1] == zlib.crc32((root / name).read_bytes())


def test_tar__offsets_are_where_the_content_is(make_folder: Maker, make_tar: Maker):
    root = make_folder("a.png", "x" * 150 + ".png")
    path = make_tar(root)
    manifest = open_files(path).manifest
    content = path.read_bytes()
    for name, offset, size in zip(manifest.names, manifest.offsets, manifest.identity, strict=True):
        assert content[offset : offset + int(size)] == (root / name).read_bytes()


def test_tar__of_class_folders(make_folder: Maker, make_tar: Maker):
    root = make_folder("a b/1.png", "a/2.png", "a/more/3.png", "B/4.png")
    folder, tar, below = (
        open_source(FolderImages(source="folder", root=str(path))).manifest
        for path in (root, make_tar(root), make_tar(root, "below.tar", below="photos/"))
    )
    assert folder.names.tolist() == ["B/4.png", "a/2.png", "a b/1.png"]
    assert tar.fingerprint() == folder.fingerprint()
    assert below.names.tolist() == [f"photos/{name}" for name in folder.names]
    assert (below.labels.tolist(), below.class_names) == (folder.labels.tolist(), folder.class_names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "cat/b.png"], "itself holds image files (a.png; 1 in all), but no folder per class"),
        (["train/cat/a.png", "val/cat/b.png"], "holds several folders with class folders in them: train, val"),
    ],
)
def test_tar__without_class_folders(make_folder: Maker, make_tar: Maker, names: list[str], message: str):
    with pytest.raises(ImageSourceError) as error:
        open_source(FolderImages(source="folder", root=str(make_tar(make_folder(*names)))))
    assert message in error.value.message
    assert error.value.hint


def test_tar__leading_dots_folders_and_hidden_files(make_folder: Maker, make_tar: Maker):
    root = make_folder("a.png", "._a.png", ".cache/b.png", "strange.jpg/c.png")
    manifest = open_files(make_tar(root, below="./")).manifest
    assert manifest.names.tolist() == ["a.png", "strange.jpg/c.png"]


def test_tar__the_last_of_two_files_of_one_name_counts(tmp_path: Path):
    path = pack(tmp_path / "a.tar", (member("a.png", 3), b"old"), (member("./a.png", 5), b"newer"))
    assert open_files(path).manifest.identity.tolist() == ["5"]


@pytest.mark.parametrize(
    ("info", "what"),
    [
        (member("b.png", type=tarfile.LNKTYPE, linkname="a.png"), "a link to a.png"),
        (member("b.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link to /etc/passwd"),
        (member("b.png", type=tarfile.FIFOTYPE), "neither a file nor a folder"),
    ],
)
def test_tar__images_that_are_no_files_are_listed_and_say_so(tmp_path: Path, info: tarfile.TarInfo, what: str):
    source = open_files(pack(tmp_path / "a.tar", (member("a.png", 1), b"x"), (info, b"")))
    assert source.manifest.names.tolist() == ["a.png", "b.png"]
    with pytest.raises(UnreadableImageError) as error:
        source.read(1)
    assert error.value.message == (
        f"{tmp_path / 'a.tar'}: b.png: is {what}, which cannot be read in place; "
        f"unpack it: tar -xf {tmp_path / 'a.tar'}"
    )


def test_tar__sparse_images_are_listed_and_say_so(tmp_path: Path):
    pax = {"GNU.sparse.map": "0,1,512,1", "GNU.sparse.size": "513", "GNU.sparse.name": "b.png"}
    source = open_files(pack(tmp_path / "a.tar", (member("b.png", 2, pax_headers=pax), b"xy")))
    with pytest.raises(UnreadableImageError, match=r"b\.png: is stored with holes \(sparse\)"):
        source.read(0)


def test_tar__other_members_do_not_matter(tmp_path: Path):
    path = pack(
        tmp_path / "a.tar",
        (member("link", type=tarfile.SYMTYPE, linkname="a.png"), b""),
        (member("a.png", 1), b"x"),
        (member("README", 4), b"read"),
        (member("folder.png", type=tarfile.DIRTYPE), b""),
    )
    assert open_files(path).manifest.names.tolist() == ["a.png"]


@pytest.mark.parametrize(
    ("begin", "kind", "hint"),
    [
        (b"\x1f\x8b\x08", "gzip", "gunzip --keep"),
        (b"BZh9", "bzip2", "bunzip2 --keep"),
        (b"\xfd7zXZ\0", "xz", "unxz --keep"),
        (b"\x28\xb5\x2f\xfd", "zstd", "unzstd --keep"),
        (b"PK\x03\x04", "zip", "set root: zip::"),
    ],
)
def test_tar__compressed_ones_are_refused(tmp_path: Path, begin: bytes, kind: str, hint: str):
    path = tmp_path / "my photos.tar.gz"
    path.write_bytes(begin + bytes(600))
    error = refusal(path)
    assert error.message == f"{path} is compressed ({kind}); only a plain tar can be read in place"
    assert hint in str(error.hint)
    assert f"'{path}'" in str(error.hint)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(10240), b"x" * 2000])
def test_tar__what_is_none_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.tar").write_bytes(content)
    assert "a.tar is a file, and no tar, or an empty one" in refusal(tmp_path / "a.tar").message


def test_tar__a_pipe_is_refused_and_never_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.tar")
    assert "neither a file nor a folder" in refusal(tmp_path / "a.tar").message


def test_tar__without_images(tmp_path: Path):
    error = refusal(pack(tmp_path / "a.tar", (member("a.txt", 1), b"x")))
    assert "holds no image files: nothing in it ends in .bmp .gif" in error.message


def test_tar__a_name_that_is_not_utf8_is_escaped(tmp_path: Path, make_folder: Maker):
    content = (make_folder("a.png") / "a.png").read_bytes()
    info = member(os.fsdecode(b"caf\xe9.png"), len(content))
    path = tmp_path / "a.tar"
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    path.write_bytes(header + content.ljust(-(-len(content) // 512) * 512, b"\0") + bytes(1024))
    source = open_files(path)
    assert source.manifest.names.tolist() == [r"caf\xe9.png"]
    assert source.read(0)[1] == zlib.crc32(content)


def test_tar__cut_short_is_refused_wherever_it_is_cut(make_folder: Maker, make_tar: Maker):
    whole = make_tar(make_folder("a.png", "b.png"))
    content = whole.read_bytes()
    end = int(open_files(whole).manifest.offsets.max()) + 512  # both files are shorter than a block
    for length in range(512, end + 1, 100):
        whole.write_bytes(content[:length])
        assert refusal(whole).hint == "copy or fetch it again, and compare its size"
    whole.write_bytes(content[: end + 512])
    assert len(open_files(whole).manifest) == 2


def test_tar__a_damaged_header_does_not_end_the_list_silently(make_folder: Maker, make_tar: Maker):
    path = make_tar(make_folder("a.png", "b.png", "c.png"), kind=tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[1024] ^= 1  # in the name that the second header holds
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 1  # which is why the end is looked at
    assert refusal(path).message == f"{path} is damaged: no header at byte 1,024"


def test_tar__any_damage_gives_images_or_the_one_error(make_folder: Maker, make_tar: Maker, tmp_path: Path):
    rng = random.Random(0)
    root = make_folder("a.png", "é.png", "x" * 120 + ".png")
    seeds = [make_tar(root, f"{kind}.tar", FORMATS[kind]).read_bytes()[:8192] for kind in ("pax", "gnu")]
    outcomes = set()
    for _ in range(400):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.choice([0, 0x20, 0x30, 0x37, 0x80, 0xFF])
        for start in range(0, len(content), 512):
            block = content[start : start + 512]
            if block[257:262] == b"ustar":  # with a checksum that fits, the damage is believed
                block[148:156] = b" " * 8
                content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        (tmp_path / "damaged.tar").write_bytes(content)
        try:
            check_tar(tmp_path / "damaged.tar")
            TarArchive(tmp_path / "damaged.tar").images()
        except ImageSourceError:
            outcomes.add("refused")
        else:
            outcomes.add("listed")
    assert outcomes == {"refused", "listed"}


def test_read__a_tar_that_changed_since_it_was_listed(make_folder: Maker, make_tar: Maker):
    root = make_folder("a.png", "b.png")
    source = open_files(make_tar(root))
    (root / "c.jpg").write_bytes(bytes(700))
    make_tar(root)  # in its place, with other offsets
    with pytest.raises(UnreadableImageError, match=r"photos\.tar: a\.png: the tar changed since it was listed"):
        source.read(0)
    with (root.parent / "photos.tar").open("r+b") as file:
        file.truncate(int(source.manifest.offsets[1]) + 10)
    again = open_files(root.parent / "photos.tar", source.manifest)
    with pytest.raises(UnreadableImageError, match=r"b\.png"):
        again.read(1)


def test_read__a_tar_that_is_gone_is_not_the_images_fault(make_folder: Maker, make_tar: Maker):
    path = make_tar(make_folder("a.png"))
    source = open_files(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_read__failing_storage_is_not_the_images_fault(
    make_folder: Maker, make_tar: Maker, monkeypatch: pytest.MonkeyPatch
):
    source = open_files(make_tar(make_folder("a.png")))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source.read(0)


def test_read__the_system_may_give_less_than_asked_for(
    make_folder: Maker, make_tar: Maker, monkeypatch: pytest.MonkeyPatch
):
    source = open_files(make_tar(make_folder("a.png")))
    picture, crc = source.read(0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, start: pread(descriptor, min(count, 7), start))
    np.testing.assert_array_equal(source.read(0)[0], picture)
    assert source.read(0)[1] == crc


def numbered(path: Path, count: int) -> Path:
    """Write a tar of files named as ImageNet's validation set, in reverse order; each holds its place in the tar."""
    with path.open("wb") as file:
        for place in range(count):
            content = b"%d" % place
            header = member(f"ILSVRC2012_val_{count - place:08d}.JPEG", len(content)).tobuf(tarfile.USTAR_FORMAT)
            file.write(header + content.ljust(512, b"\0"))
        file.write(bytes(10_240))
    return path


def test_tar__of_fifty_thousand_is_listed_from_its_headers(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    path = numbered(tmp_path / "val.tar", 50_000)
    began = time.perf_counter()
    manifest = open_files(path).manifest
    record_property("seconds to list 50,000", time.perf_counter() - began)
    assert len(manifest) == 50_000
    assert manifest.names[[0, -1]].tolist() == ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00050000.JPEG"]
    assert manifest.offsets[[0, -1]].tolist() == [49_999 * 1024 + 512, 512]
    manifest.save(tmp_path / "manifest.npz")
    assert Manifest.load(tmp_path / "manifest.npz").offsets.tolist() == manifest.offsets.tolist()


def test_tar__processes_and_threads_share_it(tmp_path: Path):
    archive = TarArchive(numbered(tmp_path / "val.tar", 3000))
    entries = archive.images()
    random.Random(0).shuffle(entries)
    expected = [b"%d" % (3000 - int(entry.name[15:23])) for entry in entries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(archive.read, entries)) == expected
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as processes:
        assert list(processes.map(archive.read, entries, chunksize=500)) == expected


def test_tar__a_forked_process_opens_its_own_descriptor(make_folder: Maker, make_tar: Maker):
    archive = TarArchive(make_tar(make_folder("a.png")))
    entry = archive.images()[0]
    content = archive.read(entry)
    descriptor = archive._descriptor()
    again = pickle.loads(pickle.dumps(archive))
    assert again.read(entry) == content
    assert again._descriptor() != descriptor
    archive._opened = (os.getpid() + 1, descriptor)  # as a child that was forked finds it
    assert archive.read(entry) == content
    assert archive._descriptor() != descriptor


def test_tar__a_worker_reads_by_the_manifest_alone(
    make_folder: Maker, make_tar: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = make_tar(make_folder("cat/a.png", "dog/b.png"))
    spec = FolderImages(source="folder", root=str(path))
    source = open_source(spec)
    expected = [source.read(index)[1] for index in range(2)]
    source.manifest.save(tmp_path / "manifest.npz")
    manifest = Manifest.load(tmp_path / "manifest.npz")
    monkeypatch.setattr(tarfile.TarFile, "next", None)
    monkeypatch.setattr(Path, "stat", None)
    monkeypatch.setattr(Path, "open", None)
    worker = open_source(spec, manifest)
    assert [worker.read(index)[1] for index in range(2)] == expected


def test_tar__descriptor_is_closed_with_the_source(make_folder: Maker, make_tar: Maker):
    source = open_files(make_tar(make_folder("a.png")))
    source.read(0)
    descriptor = source._storage._descriptor()  # type: ignore[attr-defined]
    del source
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_tar__real_jpegs_decode(tmp_path: Path, picture: np.ndarray):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    path = pack(tmp_path / "a.tar", (member("a.JPEG", len(file.getvalue())), file.getvalue()))
    np.testing.assert_array_equal(open_files(path).read(0)[0], np.asarray(Image.open(file)))
