from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro import events
from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images import local
from dneuro.images.imagenet import imagenet_classes
from dneuro.images.labels import own_classes
from dneuro.images.manifest import Manifest
from dneuro.images.sources import ImageSource, open_source
from dneuro.images.table import read_table
from dneuro.spec.images import FilesImages

Maker = Callable[..., Path]


def open_files(root: Path, **options: object) -> ImageSource:
    return open_source(FilesImages(source="files", root=str(root), **options))


def labelled(make_folder: Maker, text: str, names: str = "a.png b.png c.png", **options: object) -> Manifest:
    """Return the manifest of a few images with a table of labels."""
    root = make_folder(*names.split(" "))
    (root / "labels.csv").write_bytes(text.encode())
    return open_files(root, labels=str(root / "labels.csv"), **options).manifest


def refusal(make_folder: Maker, text: str, **options: object) -> ImageSourceError:
    with pytest.raises(ImageSourceError) as error:
        labelled(make_folder, text, **options)
    return error.value


def test_files__of_all_folders_in_sorted_order(make_folder: Maker):
    root = make_folder("z.png", "a/2.png", "a b/1.png", "a/deep/er/3.png", "B.JPG", ".hidden/x.png", "a/._2.png")
    (root / "notes.txt").write_text("no image")
    source = open_files(root)
    assert source.manifest.names.tolist() == ["B.JPG", "a/2.png", "a/deep/er/3.png", "a b/1.png", "z.png"]
    assert source.manifest.labels.tolist() == [-1] * 5
    assert source.manifest.class_names == source.manifest.wnids == ()
    assert source.manifest.offsets.size == 0
    for index, name in enumerate(source.manifest.names):
        assert source.read(index)[1] == zlib.crc32((root / name).read_bytes())


def test_files__are_fetched_as_far_as_they_can_be(make_folder: Maker, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(local, "will_need", lambda file, _, size: asked.append((os.fstat(file).st_ino, size)))
    root = make_folder("a.png", "b.png")
    source = open_files(root)
    (root / "b.png").unlink()
    source.fetch(0)
    source.fetch(1)  # who reads it says so
    found = (root / "a.png").stat()
    assert asked == [(found.st_ino, found.st_size)]
    assert source.is_near


def test_files__sample(make_folder: Maker):
    root = make_folder(*(f"{i:02d}.png" for i in range(20)))
    (root / "labels.csv").write_text("".join(f"{i:02d}.png,{i % 3}\n" for i in range(20)))
    whole = open_files(root, labels=str(root / "labels.csv")).manifest
    part = open_files(root, labels=str(root / "labels.csv"), sample=6, seed=2).manifest
    assert len(part) == 6
    assert part.labels.tolist() == whole.labels[part.indices].tolist() == [i % 3 for i in part.indices]
    assert part.names.tolist() == whole.names[part.indices].tolist()


def test_files__links_are_followed_but_not_in_circles(make_folder: Maker):
    root = make_folder("a/1.png")
    outside = make_folder("b/2.png", root="outside")
    (root / "other").symlink_to(outside, target_is_directory=True)
    (root / "a/up").symlink_to(root, target_is_directory=True)
    (outside / "back").symlink_to(root, target_is_directory=True)
    (root / "a/3.png").symlink_to(outside / "b/2.png")
    assert open_files(root).manifest.names.tolist() == ["a/1.png", "a/3.png", "other/b/2.png"]


def test_files__that_are_none_are_listed_and_say_why_when_they_are_read(make_folder: Maker):
    root = make_folder("a.png", "z.png")
    (root / "gone.png").symlink_to(root / "nothing")
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "s.png"))
    source = open_files(root)
    assert source.manifest.names.tolist() == ["a.png", "gone.png", "loop.png", "pipe.png", "s.png", "z.png"]
    assert source.manifest.identity.tolist()[1:5] == ["0"] * 4
    said = ["", "No such file", "Too many levels", "is neither a file nor a folder", "No such device", ""]
    for index, why in enumerate(said):
        if not why:
            assert source.read(index)[0].shape == (4, 5)
            continue
        with pytest.raises(UnreadableImageError, match=why) as error:
            source.read(index)
        assert str(root / source.manifest.names[index]) in error.value.message


def test_files__links_without_an_images_name_that_lead_nowhere_are_noted(make_folder: Maker):
    root = make_folder("a.png")
    (root / "gone").symlink_to(root / "nothing")
    (root / "loop").symlink_to(root / "loop")
    seen: list[events.Event] = []
    with events.listening(seen.append):
        assert open_files(root).manifest.names.tolist() == ["a.png"]
    assert sorted(event.message for event in seen) == [
        f"{root / 'gone'} is left out: No such file or directory",
        f"{root / 'loop'} is left out: Too many levels of symbolic links",
    ]


def test_files__names_that_are_not_utf8_are_escaped_and_read(make_folder: Maker):
    root = make_folder("a.png", "caf\\xe9.png", "z.png")
    try:
        (root / os.fsdecode(b"caf\xe9.png")).write_bytes((root / "a.png").read_bytes())
        (root / os.fsdecode(b"d\xff")).mkdir()
        (root / os.fsdecode(b"d\xff/\xc3\xa9\xfe.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such names")
    names = ["a.png", r"caf\xe9.png", r"caf\xe9.png'", r"d\xff/é\xfe.png", "z.png"]
    listed = open_files(root).manifest
    assert listed.names.tolist() == names
    again = Manifest.from_bytes(listed.to_bytes(), "x")
    assert again.paths.tolist() == listed.paths.tolist()
    source = open_source(FilesImages(source="files", root=str(root)), again)
    assert source.read(2)[1] == source.read(0)[1] != source.read(1)[1]
    with pytest.raises(UnreadableImageError, match="not a picture in a format known here") as error:
        source.read(3)
    assert error.value.message.encode()
    (root / "labels.csv").write_text("".join(f"{name},{number}\n" for number, name in enumerate(names)))
    assert open_files(root, labels=str(root / "labels.csv")).manifest.labels.tolist() == [0, 1, 2, 3, 4]


def test_files__none(tmp_path: Path):
    with pytest.raises(ImageSourceError, match="holds no image files"):
        open_files(tmp_path)
    with pytest.raises(ImageSourceError, match="does not exist"):
        open_files(tmp_path / "gone")


@pytest.mark.parametrize(
    "text",
    [
        "filename,class_index,class_name\na.png,2,cat\nb.png,0,dog\nc.png,2,cat\n",
        "\ufeffclass_name;Filename;class_index\r\ncat;a.png;2\r\n\r\ndog;b.png;0\r\ncat;./c.png;2\r\n",
        "path\tlabel\tclass_name\tnote\nc\t2\tcat\t\nb\t0\tdog\tx\na\t2\tcat\t",
        "note,file,class,label,class_name\n,a.png,2,x,cat\n,b.png,0,x,dog\n,c.png,2,x,cat\n",
    ],
)
def test_labels__by_index(make_folder: Maker, text: str):
    manifest = labelled(make_folder, text)
    assert manifest.labels.tolist() == [2, 0, 2]
    assert manifest.class_names == ("dog", "1", "cat")
    assert manifest.wnids == ()


@pytest.mark.parametrize("text", ["a.png,cat\nb.png,a dog\nc.png,cat", 'image,label\nb,"a dog"\na,cat\nc,cat\n'])
def test_labels__by_name_are_numbered_in_sorted_order(make_folder: Maker, text: str):
    manifest = labelled(make_folder, text)
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.class_names == ("a dog", "cat")


def test_labels__by_wnid(make_folder: Maker):
    manifest = labelled(make_folder, "a.png,n03888257\nb.png,n01440764\nc.png,n03888257\n")
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.class_names == manifest.wnids == ("n01440764", "n03888257")
    text = "filename,wnid,class_name\na.png,n03888257,parachute\nb.png,n01440764,tench\nc.png,n03888257,parachute\n"
    manifest = labelled(make_folder, text)
    assert manifest.class_names == ("tench", "parachute")
    assert manifest.wnids == ("n01440764", "n03888257")


def test_labels__of_files_that_are_not_there_are_noted(make_folder: Maker):
    seen: list[events.Event] = []
    with events.listening(seen.append):
        manifest = labelled(make_folder, "a.png,2\nd.png,1\nb.png,0\nc.png,2\ne.png,7\n")
    assert manifest.names.tolist() == ["a.png", "b.png", "c.png"]
    assert manifest.labels.tolist() == [2, 0, 2]
    (note,) = [event.message for event in seen if event.kind == "note"]
    assert "labels.csv: 2 of the 5 files that it names are not in " in note
    assert note.endswith(": d.png, e.png")


@pytest.mark.parametrize(
    "text",
    [
        "filename,wnid\na.png,n03888257\nb.png,n01440764\nc.png,n03126707\n",
        "a.png,701\nb.png,0\nc.png,517\n",
        "filename,class_name\na.png,parachute\nb.png,tench\nc.png,great_white_shark\n",
        "filename,class_name\na.png,parachute\nb.png,tench\nc.png,great white shark\n",
        "ImageId,PredictionString\na,n03888257 1 2 3 4 n03888257 5 6 7 8\nb,n01440764 1 2 3 4\nc,n03126707 9 9 9 9\n",
        "filename,wnid,class_index,class_name\na.png,n03888257,701,x\nb.png,n01440764,0,y\nc.png,n03126707,517,z\n",
    ],
)
def test_labels__among_imagenets(make_folder: Maker, text: str):
    manifest = labelled(make_folder, text, classes="imagenet")
    assert manifest.labels.tolist() == [701, 0, 2 if "white" in text else 517]
    assert manifest.class_names == imagenet_classes().names
    assert manifest.wnids == imagenet_classes().wnids


def test_labels__files_named_by_path_or_by_what_is_unique(make_folder: Maker):
    names = "cat/1.png cat/2.png dog/1.png"
    assert labelled(make_folder, "cat/1.png,0\n2,1\ndog/1,2\n", names).labels.tolist() == [0, 1, 2]
    error = refusal(make_folder, "1.png,0\n2.png,1\ndog/1.png,2\n", names=names)
    assert "labels.csv:1: '1.png' may be cat/1.png, dog/1.png" in error.message
    assert "path below the root" in str(error.hint)


def test_labels__a_line_without_a_class_says_that_it_is_not_known(make_folder: Maker):
    assert labelled(make_folder, "a.png,1\nb.png,\nc.png,0\n").labels.tolist() == [1, -1, 0]
    assert labelled(make_folder, "a.png,\nb.png,\nc.png,\n").labels.tolist() == [-1, -1, -1]
    text = "a.png,n01440764\nb.png,\nc.png,n15075141\n"
    assert labelled(make_folder, text, classes="imagenet").labels.tolist() == [0, -1, 999]


def test_labels__imagenets_classes_without_a_table(make_folder: Maker):
    manifest = open_files(make_folder("a.png"), classes="imagenet").manifest
    assert manifest.labels.tolist() == [-1]
    assert len(manifest.class_names) == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.csv is empty"),
        ("\n \n", "labels.csv is empty"),
        ("a.png,0\nd.png,1\nb.png,0\n", "labels.csv:2: 'd.png' is not among the 3 images of "),
        ("a.png,0\nd.png,1\nb.png,0\ne.png,1\nf.png,1\n", "'d.png' is not among the 3 images"),
        ("a.png,0\n\nb.png,0\na.png,1\nc.png,0", "labels.csv:4: a.png is given twice, first in line 1"),
        ("a.png,0\nc.png,0\n", "labels.csv has no line for 1 of the 3 images of "),
        ("filename,sha\na.png,0\n", "labels.csv:1: no column of classes among filename, sha"),
        ("a.png,0,cat\nb.png,1,dog\n", "labels.csv:1: 3 columns without names (a.png, 0, cat)"),
        ("a.png,0\nb.png,maillot, tank suit\nc.png,0\n", "labels.csv:2: 3 columns; the first line has 2"),
        ("a.png,0\nb.png,cat\nc.png,0\n", "labels.csv:2: 'cat' is no class index; there are 0…999,999"),
        ("a.png,0\nb.png,-1\nc.png,0\n", "labels.csv:2: '-1' is no class index"),
        ("a.png,0\nb.png,1000000\nc.png,0\n", "labels.csv:2: '1000000' is no class index"),
        ("a.png,0\nb.png,7.0\nc.png,0\n", "labels.csv:2: '7.0' is no class index"),
        ('a.png,0\nb.png,"0\nc.png,0\n', "unexpected end of data"),
        (
            "filename,class_index,class_name\na.png,0,cat\nb.png,0,dog\nc.png,0,cat\n",
            "labels.csv:3: class 0 is 'dog' here and 'cat' in line 2",
        ),
    ],
)
def test_labels__refused_with_the_line(make_folder: Maker, text: str, message: str):
    error = refusal(make_folder, text)
    assert message in error.message
    assert error.hint or "unexpected" in message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "a.png,n01440764\nb.png,n01440765\nc.png,n01440764\n",
            "labels.csv:2: 'n01440765' is not the wnid of one of the 1,000 classes",
            "did you mean 'n01440764'",
        ),
        ("a.png,0\nb.png,1000\nc.png,1\n", "labels.csv:2: '1000' is no class index; there are 0…999", "filename,wnid"),
        ("a.png,tench\nb.png,tensch\nc.png,tench\n", "labels.csv:2: 'tensch' is not the name", "did you mean 'tench'"),
        ("a.png,tench\nb.png,crane\nc.png,tench\n", "2 classes are called 'crane'", "n02012849 or n03126707"),
        (
            "filename,wnid,class_index\na.png,n01440764,0\nb.png,n01443537,449\nc.png,n01440764,0\n",
            "labels.csv:3: n01443537 is class 1, the line says 449",
            "not as in ImageNet's devkit",
        ),
    ],
)
def test_labels__that_are_none_of_imagenets(make_folder: Maker, text: str, message: str, hint: str):
    error = refusal(make_folder, text, classes="imagenet")
    assert message in error.message
    assert hint in str(error.hint)


def test_labels__many_unknown_files_are_counted(make_folder: Maker):
    error = refusal(make_folder, "d.png,0\n" + "".join(f"{i}.png,0\n" for i in range(1200)))
    assert "labels.csv:1: 'd.png' is not among the 3 images" in error.message
    assert error.message.endswith("nor are 1,200 others")
    assert "such as a.png" in str(error.hint)


def test_labels__not_utf8_and_not_there(make_folder: Maker, tmp_path: Path):
    root = make_folder("a.png")
    (root / "labels.csv").write_bytes("a.png,0\ncaf\u00e9.png,0\n".encode("latin1"))
    with pytest.raises(ImageSourceError, match=r"labels\.csv:2: not UTF-8 text") as error:
        open_files(root, labels=str(root / "labels.csv"))
    assert "iconv" in str(error.value.hint)
    with pytest.raises(ImageSourceError, match=r"label\.csv does not exist") as error:
        open_files(root, labels=str(root / "label.csv"))
    assert "labels.csv" in str(error.value.hint)


cells = st.sampled_from(
    ["a.jpg", "c", "b/d.png", "filename", "wnid", "label", "class_index", "n01440764", "tench", "1", "crane", "", '"']
)
tables = st.lists(st.lists(cells | st.text(max_size=4), min_size=1, max_size=3).map(",".join), max_size=5)


@given(st.lists(cells, min_size=3, max_size=3), tables, st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=150, deadline=None)
def test_table__any_text_is_read_or_refused(classes: list[str], lines: list[str], end: str):
    names = ["a.jpg", "b/c.jpg", "b/d.png"]
    good = [f"{name},{label}" for name, label in zip(names, classes, strict=True)]
    for text in (end.join(lines), end.join([*good, *lines[:1]])):
        try:
            table = read_table("t.csv", names, "/r", text.encode("utf-8", "surrogatepass"))
            found = own_classes(table)
            assert len(found.labels) == 3
            assert found.labels.max(initial=-1) < len(found.class_names)
            imagenet_classes().of_table(table)
        except ImageSourceError as error:
            assert error.message.startswith("t.csv")


def test_files__of_the_real_photographs():
    data = os.environ.get("DNEURO_TEST_DATA")
    if not data:
        pytest.skip("DNEURO_TEST_DATA does not name the folder of real data")
    root = Path(data) / "photos/imagenet-1-per-class"
    for classes in (None, "imagenet"):
        source = open_files(root, labels=str(root / "labels.csv"), classes=classes)
        assert source.manifest.labels.tolist() == list(range(1000))
        assert source.manifest.wnids == imagenet_classes().wnids
        assert source.manifest.names.tolist() == [f"{wnid}.JPEG" for wnid in source.manifest.wnids]
        assert source.read(999)[0].ndim == 3
