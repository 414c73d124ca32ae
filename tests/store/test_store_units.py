from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from dneuro.store.files import read_json, sweep, write_atomically, write_json
from dneuro.store.units import Unit, fingerprint, units_folder

STATES = {"moments": {"mean": np.arange(3.0)}, "top-5": {"key": np.arange(4), "position": np.zeros(4, np.int32)}}


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit(tmp_path / "acts.zarr.units" / "extract" / "fc", "00002")


def test_units_folder__lies_beside_the_store() -> None:
    assert units_folder("/data/acts.zarr/") == Path("/data/acts.zarr.units")


def test_marker__counts_with_its_own_fingerprint_only(unit: Unit) -> None:
    assert unit.marker("a") is None
    unit.publish({"fingerprint": "a", "images": 16})
    assert unit.marker("a") == {"fingerprint": "a", "images": 16}
    assert unit.marker("b") is None
    assert unit.read() == {"fingerprint": "a", "images": 16}


def test_marker__of_another_unit_does_not_count(unit: Unit) -> None:
    unit.publish({"fingerprint": "a", "unit": "00001"})
    assert unit.marker("a") is None
    unit.publish({"fingerprint": "a", "unit": "00002"})
    assert unit.marker("a") is not None


@pytest.mark.parametrize("content", [b"", b'{"fingerprint": "a', b'["a"]', b'"a"', b"null", b"\xff\xfe", b"{}"])
def test_marker__that_is_not_whole_does_not_count(unit: Unit, content: bytes) -> None:
    unit.publish({"fingerprint": "a"})
    (unit.folder / "00002.done").write_bytes(content)
    assert unit.marker("a") is None


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "folder"])
def test_marker__needs_partials_of_the_size_it_names(unit: Unit, damage: str) -> None:
    unit.publish({"fingerprint": "a", **unit.save_partials(STATES)})
    assert unit.marker("a") is not None
    path = unit.folder / "00002.npz"
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(data[:-1] if damage == "truncated" else data + b"x")
    assert unit.marker("a") is None


def test_partials__come_back_as_they_were_saved(unit: Unit) -> None:
    told = unit.save_partials({**STATES, "nothing": {}})
    assert told["kernels"] == ["moments", "nothing", "top-5"]
    found = unit.load_partials()
    assert found.keys() == STATES.keys()  # a state that knows nothing needs no array
    for kernel, state in STATES.items():
        for name, array in state.items():
            assert found[kernel][name].dtype == array.dtype
            np.testing.assert_array_equal(found[kernel][name], array)


def test_partials__of_no_state_at_all_can_be_read(unit: Unit) -> None:
    unit.save_partials({"moments": {}})
    assert unit.load_partials() == {}


def test_begin__withdraws_the_marker_and_counts_the_attempts_of_this_run(unit: Unit) -> None:
    unit.publish({"fingerprint": "a"})
    assert [unit.begin(7), unit.begin(7)] == [1, 2]
    assert unit.read() is None
    assert unit.begin(8) == 1, "another run begins its own count"
    assert unit.begin(7) == 3


def test_publish__ends_the_count(unit: Unit) -> None:
    unit.begin(1)
    unit.publish({"fingerprint": "a"})
    assert [path.name for path in unit.folder.iterdir()] == ["00002.done"]
    assert unit.begin(1) == 1


def test_fingerprint__depends_on_values_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2}) != fingerprint({"b": 2})
    assert len(fingerprint({})) == 64


def test_write_atomically__keeps_the_old_content_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file.json"
    write_json(path, {"a": 1})

    def fail(file: BinaryIO) -> None:
        file.write(b'{"a": ')
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_read_json__of_no_file_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None


@pytest.mark.parametrize("name", ["acts.zarr", "acts [1] *.zarr"])
def test_sweep__removes_what_is_half_written_and_nothing_else(tmp_path: Path, name: str) -> None:
    store, units = tmp_path / name, tmp_path / f"{name}.units"
    keep = [store / "zarr.json", store / "layers/fc/activation/c/0/0", units / "extract/fc/00001.done",
            tmp_path / ".other.zarr.12.partial", tmp_path / f"{name}.report/index.html"]  # fmt: skip
    stray = [store / "layers/fc/activation/c/0/0.3f.partial", units / "extract/fc/.00001.npz.ab.partial",
             tmp_path / f".{name}.ab.partial/zarr.json"]  # fmt: skip
    for path in keep + stray:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert sweep(store, units) == 3
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(keep)
    assert sweep(store, units) == 0
    assert sweep(tmp_path / "none.zarr", tmp_path / "none.zarr.units") == 0


def test_publish__makes_the_marker_of_the_file_that_counted_the_attempts(unit: Unit) -> None:
    assert unit.begin(1) == 1
    number = (unit.folder / "00002.attempts").stat().st_ino
    unit.publish({"fingerprint": "a"})
    assert unit.marker("a") is not None
    assert [path.name for path in unit.folder.iterdir()] == ["00002.done"]
    assert (unit.folder / "00002.done").stat().st_ino == number, "nothing was removed"
    assert unit.begin(1) == 1, "counted anew"


def test_publish__that_fails_leaves_nothing_half_written(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    unit.begin(1)

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        unit.publish({"fingerprint": "a"})
    assert list(unit.folder.iterdir()) == []
    assert unit.begin(1) == 1
