from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.errors import ImageSourceError, StoreError
from dneuro.images.manifest import Manifest


def small(**changes: object) -> Manifest:
    values = {
        "names": ["cat/a.png", "cat/ü.png", "dog/c.png"],
        "labels": [0, 0, 1],
        "class_names": ("cat", "dog"),
        "identity": ["10", "11", "12"],
        "indices": [0, 1, 2],
        "source": {"source": "folder", "root": "/photos"},
    }
    return Manifest(**(values | changes))


def assert_same(a: Manifest, b: Manifest) -> None:
    for name in ("names", "labels", "identity", "indices", "offsets"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.tolist() == right.tolist()
        assert left.dtype == right.dtype
    assert (a.class_names, a.source, a.wnids) == (b.class_names, b.source, b.wnids)


texts = st.text(st.characters(codec=None), max_size=12)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(texts, unique=True, max_size=8))
    class_names = draw(st.lists(texts, max_size=4))
    highest = len(class_names) - 1 if class_names else 10
    exactly = {"min_size": len(names), "max_size": len(names)}
    return Manifest(
        names=names,
        labels=draw(st.lists(st.integers(-1, highest), **exactly)),
        class_names=class_names,
        identity=draw(st.lists(texts, **exactly)),
        indices=draw(st.lists(st.integers(0, 2**40), **exactly)),
        source=draw(st.dictionaries(texts, st.none() | st.integers() | texts, max_size=3)),
        wnids=draw(st.just([]) | st.lists(texts, min_size=len(class_names), max_size=len(class_names))),
        offsets=draw(st.just([]) | st.lists(st.integers(0, 2**40), **exactly)),
    )


@given(manifests())
@settings(max_examples=60, deadline=None)
def test_manifest__save_and_load_give_the_same(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest):
    path = tmp_path_factory.mktemp("manifest") / "manifest.npz"
    manifest.save(path)
    loaded = Manifest.load(path)
    assert_same(loaded, manifest)
    assert loaded.fingerprint() == manifest.fingerprint()


def test_manifest__normalises_its_arrays_and_shields_them():
    labels = np.array([0, 0, 1], np.int32)
    manifest = small(labels=labels, class_names=["cat", "dog"])
    assert manifest.labels.dtype == manifest.indices.dtype == np.int64
    assert manifest.names.dtype == manifest.identity.dtype == object
    assert manifest.class_names == ("cat", "dog")
    assert len(manifest) == 3
    labels[0] = 1
    assert manifest.labels[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        manifest.labels[0] = 1


def test_manifest__travels_by_pickle():
    assert_same(pickle.loads(pickle.dumps(small())), small())


def test_fingerprint__is_the_same_in_every_version():
    # Stores keep it: a change here disowns every store that was ever written.
    assert small().fingerprint() == "537edf34940329cb62c17dd545eee540eef4d83347345b759ea722205a6ecb0f"


def test_fingerprint__with_wnids_is_the_same_in_every_version():
    found = small(wnids=("n02121620", "n02084071")).fingerprint()
    assert found == "cde52c17df8a2d0b4bfcd2de1f968767bfe7ef138472dabde634e412a30c9258"


def test_load__reads_what_was_written_before_there_were_wnids_and_offsets(tmp_path: Path):
    small().save(tmp_path / "manifest.npz")
    with np.load(tmp_path / "manifest.npz") as file:
        text = json.loads(file["text"].tobytes())
        del text["wnids"]
        older = {"labels": file["labels"], "indices": file["indices"]}
    np.savez(tmp_path / "older.npz", text=np.frombuffer(json.dumps(text).encode(), np.uint8), **older)
    assert_same(Manifest.load(tmp_path / "older.npz"), small())


def test_fingerprint__depends_on_content_not_on_place():
    same = small(source={"source": "folder", "root": "/elsewhere"}, indices=[5, 6, 9], offsets=[512, 2048, 4096])
    assert same.fingerprint() == small().fingerprint()
    others = [
        small(names=["cat/a.png", "cat/ü.png", "dog/d.png"]),
        small(names=["cat/ü.png", "cat/a.png", "dog/c.png"]),
        small(labels=[0, 1, 1]),
        small(class_names=("cat", "wolf")),
        small(identity=["10", "11", "13"]),
        small(wnids=("n02121620", "n02084071")),
        small(wnids=("n02084071", "n02121620")),
        small(names=["x", "y", "z"], identity=["", "1", "2"]),
        small(names=["x", "y", "z1"], identity=["", "", "2"]),
    ]
    assert len({m.fingerprint() for m in [small(), *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["a", "b", "a"]}, "same name 'a'"),
        ({"labels": [0, 1]}, r"3 names has labels of shape \(2,\)"),
        ({"identity": ["1"]}, "identity of shape"),
        ({"indices": [[0, 1, 2]]}, "indices of shape"),
        ({"offsets": [512]}, r"3 names has offsets of shape \(1,\)"),
        ({"wnids": ("n1",)}, "2 class names has 1 wnids"),
        ({"labels": [0, 1, 2]}, "label 2 of image 2 has no class name; there are 2"),
        ({"labels": [0, -2, 0]}, "label -2 of image 1"),
    ],
)
def test_manifest__refuses_what_does_not_fit(changes: dict[str, object], message: str):
    with pytest.raises(ImageSourceError, match=message):
        small(**changes)


def test_save__leaves_the_old_file_and_no_other_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "manifest.npz"
    small().save(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        small(labels=[1, 1, 1]).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.npz"]
    assert_same(Manifest.load(path), small())


def test_save__replaces_an_older_file(tmp_path: Path):
    path = tmp_path / "manifest.npz"
    small().save(path)
    small(labels=[1, 1, 1]).save(path)
    assert Manifest.load(path).labels.tolist() == [1, 1, 1]


def test_load__missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "manifest.npz")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_load__damaged_file_is_named(tmp_path: Path, keep: float):
    path = tmp_path / "manifest.npz"
    small().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(StoreError, match=r"manifest\.npz is damaged"):
        Manifest.load(path)


def test_load__foreign_and_pickled_files_are_refused(tmp_path: Path):
    path = tmp_path / "manifest.npz"
    np.savez(path, images=np.zeros(3))
    with pytest.raises(StoreError, match="not a manifest"):
        Manifest.load(path)
    np.savez(path, text=np.array([{"format": 1}], object), labels=np.zeros(1), indices=np.zeros(1))
    with pytest.raises(StoreError, match="allow_pickle"):
        Manifest.load(path)


def test_load__newer_format_is_refused_by_number(tmp_path: Path):
    path = tmp_path / "manifest.npz"
    text = np.frombuffer(json.dumps({"format": 2}).encode(), np.uint8)
    np.savez(path, text=text, labels=np.zeros(0), indices=np.zeros(0))
    with pytest.raises(StoreError, match="format 2; this version of dneuro reads format 1"):
        Manifest.load(path)


def test_manifest__fields_can_be_replaced():
    assert replace(small(), labels=[1, 1, 1]).labels.tolist() == [1, 1, 1]
