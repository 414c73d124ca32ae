from __future__ import annotations

import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.imagenet import imagenet_classes
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import FilesImages, FolderImages, ImagenetValImages

Maker = Callable[..., Path]
MODELS = {"folder": FolderImages, "files": FilesImages, "imagenet-val": ImagenetValImages}


def open_images(root: str | Path, source: str = "folder", **options: Any) -> ImageSource:
    return open_source(MODELS[source](source=source, root=str(root), **options))


def refusal(root: str | Path) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        open_images(root, "files")
    return error.value


@pytest.fixture
def bucket() -> Iterator[Callable[[Path], str]]:
    """Return a function that copies a folder into fsspec's memory, and gives its URL."""
    system = fsspec.filesystem("memory")

    def fill(root: Path) -> str:
        for path in root.rglob("*"):
            if path.is_file():
                system.pipe_file(f"/bucket/photos/{path.relative_to(root)}", path.read_bytes())
        return "memory://bucket/photos"

    yield fill
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def zip_of(root: Path, below: str = "", kind: int = zipfile.ZIP_DEFLATED) -> Path:
    path = root.parent / "photos.zip"
    with zipfile.ZipFile(path, "w", kind) as file:
        for image in root.rglob("*"):
            file.write(image, f"{below}{image.relative_to(root)}")
    return path


def roots(root: Path, bucket: Callable[[Path], str]) -> list[str]:
    zipped = zip_of(root, "val/")
    return [bucket(root), bucket(root) + "/", f"file://{root}", f"zip://val::{zipped}"]


def test_remote__reads_what_the_folder_reads(make_folder: Maker, bucket: Callable[[Path], str]):
    root = make_folder("dog/2.png", "dog/é 1.png", "a b/1.JPG", "a/1.png", "a/.hidden.png", "a/notes.txt")
    expected = open_images(root)
    for url in roots(root, bucket):
        source = open_images(url)
        assert source.manifest.names.tolist() == expected.manifest.names.tolist()
        assert source.manifest.fingerprint() == expected.manifest.fingerprint()
        for index in range(len(expected.manifest)):
            picture, crc = source.read(index)
            np.testing.assert_array_equal(picture, expected.read(index)[0])
            assert crc == expected.read(index)[1]


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Return a function that serves a folder over HTTP on this machine, and gives its URL."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    def start(root: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_web_server__names_are_those_of_the_files(make_folder: Maker, serve: Callable[[Path], str]):
    pytest.importorskip("aiohttp")
    root = make_folder("cat & dog/b é.jpg", "cat & dog/1%20#?.png", "a+b/1.png", "a+b/.hidden.png")
    expected = open_images(root).manifest
    source = open_images(serve(root))
    assert source.manifest.class_names == expected.class_names == ("a+b", "cat & dog")
    assert source.manifest.names.tolist() == expected.names.tolist()
    again = open_source(FolderImages(source="folder", root=source.manifest.source["root"]), source.manifest)
    for index in range(len(expected)):
        assert again.read(index)[1] == open_images(root).read(index)[1]
    table = root.parent / "labels.csv"
    table.write_text('filename,label\n"cat & dog/b é.jpg",x\n"cat & dog/1%20#?.png",y\na+b/1.png,y\n')
    found = open_images(source.manifest.source["root"], "files", labels=str(table)).manifest
    assert found.labels.tolist() == open_images(root, "files", labels=str(table)).manifest.labels.tolist() == [1, 1, 0]


def test_web_server__an_archive_on_it_is_no_folder(make_folder: Maker, serve: Callable[[Path], str]):
    pytest.importorskip("aiohttp")
    root = make_folder("a/1.png")
    with tarfile.open(root / "val.tar", "w") as tar:
        tar.add(root / "a/1.png", "1.png")
    error = refusal(f"{serve(root)}/val.tar")
    assert "only a tar on a local disk is read in place" in error.message
    assert str(error.hint).endswith(f"root: tar::{error.message.split()[0]}")
    assert open_images(str(error.hint).split()[-1], "files").manifest.names.tolist() == ["1.png"]


def test_tar__below_a_url_with_names_that_begin_with_a_dot(make_folder: Maker):
    root = make_folder("x.png", "d/y.png", ".hidden/z.png")
    with tarfile.open(root.parent / "photos.tar", "w") as tar:
        tar.add(root, ".")
    source = open_images(f"tar::{root.parent / 'photos.tar'}", "files")
    assert source.manifest.names.tolist() == open_images(root.parent / "photos.tar", "files").manifest.names.tolist()
    assert source.manifest.names.tolist() == ["d/y.png", "x.png"]
    assert [source.read(i)[1] for i in (0, 1)] == [open_images(root, "files").read(i)[1] for i in (0, 1)]


def test_remote__of_each_kind_of_source(make_folder: Maker, bucket: Callable[[Path], str]):
    root = make_folder("n03888257/a.png", "n01440764/b.png")
    table = "filename,wnid\nn03888257/a.png,n03888257\nn01440764/b.png,n01440764\n"
    url = bucket(root)
    fsspec.filesystem("memory").pipe_file("/bucket/labels.csv", table.encode())
    found = [
        open_images(url, "folder", classes="imagenet").manifest,
        open_images(url, "imagenet-val").manifest,
        open_images(url, "files", labels="memory://bucket/labels.csv", classes="imagenet").manifest,
    ]
    for manifest in found:
        assert manifest.labels.tolist() == [0, 701]
        assert manifest.wnids == imagenet_classes().wnids
    assert len({manifest.fingerprint() for manifest in found}) == 1


def test_zip__with_folders_above_the_classes(make_folder: Maker):
    path = zip_of(make_folder("dog/2.png", "cat/1.png"), "photos/")
    manifest = open_images(f"zip::{path}").manifest
    assert manifest.names.tolist() == ["photos/cat/1.png", "photos/dog/2.png"]
    assert manifest.class_names == ("cat", "dog")


def test_zip__threads_may_share_it(make_folder: Maker):
    root = make_folder(*(f"{i:02d}.png" for i in range(40)))
    expected = [open_images(root, "files").read(index)[1] for index in range(40)]
    source = open_images(f"zip::{zip_of(root)}", "files")
    again = open_source(FilesImages(source="files", root=f"zip::{zip_of(root)}"), source.manifest)
    with ThreadPoolExecutor(8) as pool:  # none has opened the file before
        assert [crc for _, crc in pool.map(again.read, list(range(40)) * 5)] == expected * 5


def test_remote__a_worker_lists_nothing(
    make_folder: Maker, bucket: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
):
    url = bucket(make_folder("cat/1.png", "dog/2.png"))
    source = open_images(url)
    monkeypatch.setattr(MemoryFileSystem, "find", None)
    worker = open_source(FolderImages(source="folder", root=url), source.manifest)
    assert worker.read(1)[1] == source.read(1)[1]


def test_remote__travels_by_pickle_without_its_connection(make_folder: Maker):
    storage = open_images(f"zip::{zip_of(make_folder('a.png'))}", "files")._storage  # type: ignore[attr-defined]
    entry = storage.images()[0]
    again = pickle.loads(pickle.dumps(storage))
    assert again._opened is None
    assert again.read(entry) == storage.read(entry)


def test_remote__what_cannot_be_opened():
    error = refusal("nosuch://bucket/photos")
    assert "nosuch://bucket/photos cannot be opened: Protocol not known" in error.message
    assert "s3://" in str(error.hint)
    assert "memory://nowhere does not exist, or cannot be reached" in refusal("memory://nowhere").message


def test_remote__a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", refuse)
    error = refusal("s3://bucket/photos")
    assert error.message == (
        "s3://bucket/photos needs a library that is not installed: Install s3fs to access S3"
    )
    assert str(error.hint).startswith("pip install s3fs")


def test_remote__passwords_in_urls_are_refused_and_not_repeated():
    error = refusal("https://me:secret@server/photos")
    assert "password" in error.message
    assert "secret" not in str(error)


def test_zip__missing_or_damaged(make_folder: Maker, tmp_path: Path):
    assert "does not exist" in refusal(f"zip::{tmp_path / 'gone.zip'}").message
    (tmp_path / "no.zip").write_bytes(b"no zip file")
    assert "is no zip file, or a damaged one" in refusal(f"zip::{tmp_path / 'no.zip'}").message
    empty = zip_of(make_folder("a/1.txt"))
    assert "holds no image files" in refusal(f"zip::{empty}").message


def test_zip__one_damaged_image(make_folder: Maker):
    root = make_folder("a.png", "b.png")
    path = zip_of(root, kind=zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"IHDR") + 8] ^= 1
    path.write_bytes(content)
    source = open_images(f"zip::{path}", "files")
    outcomes = []
    for index in range(2):
        try:
            outcomes.append(source.read(index)[0].shape)
        except UnreadableImageError as error:
            assert f"zip::{path}: " in error.message
            outcomes.append("cannot be unpacked" in error.message)
    assert sorted(map(str, outcomes)) == ["(4, 5)", "True"]


def test_read__one_file_that_is_gone_or_has_changed(make_folder: Maker, bucket: Callable[[Path], str]):
    source = open_images(bucket(make_folder("cat/1.png", "cat/2.png")))
    system = fsspec.filesystem("memory")
    system.rm("/bucket/photos/cat/1.png")
    with pytest.raises(UnreadableImageError, match=r"memory://bucket/photos/cat/1\.png: is no longer there"):
        source.read(0)
    system.pipe_file("/bucket/photos/cat/2.png", b"new")
    with pytest.raises(UnreadableImageError, match=r"changed since it was listed: it had \d+ bytes, now 3"):
        source.read(1)


def test_read__a_bucket_that_is_gone_is_not_the_images_fault(make_folder: Maker, bucket: Callable[[Path], str]):
    source = open_images(bucket(make_folder("cat/1.png")))
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    with pytest.raises(FileNotFoundError):
        source.read(0)


@pytest.mark.parametrize("failure", [TimeoutError("slow"), PermissionError("expired"), RuntimeError("of a library")])
def test_read__failing_transport_can_be_tried_again(
    make_folder: Maker, bucket: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, failure: Exception
):
    source = open_images(bucket(make_folder("cat/1.png")))
    expected = source.read(0)[1]

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patched, pytest.raises(OSError, match=str(failure)):
        patched.setattr(MemoryFileSystem, "cat_file", fail)
        source.read(0)
    assert source.read(0)[1] == expected


def test_remote__sizes_that_the_list_does_not_give(
    make_folder: Maker, bucket: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
):
    root = make_folder("cat/1.png", "cat/2.png")
    url, find = bucket(root), MemoryFileSystem.find

    def without_sizes(self: MemoryFileSystem, *args: Any, **options: Any) -> Any:
        return {path: info | {"size": None} for path, info in find(self, *args, **options).items()}

    monkeypatch.setattr(MemoryFileSystem, "find", without_sizes)
    assert open_images(url).manifest.fingerprint() == open_images(root).manifest.fingerprint()
    monkeypatch.setattr(MemoryFileSystem, "sizes", lambda self, paths: [None] * len(paths))
    with pytest.raises(ImageSourceError, match=r"does not say how large cat/1\.png is"):
        open_images(url)
