"""A new group is there as a whole or not at all; whoever cannot write it is told why, and nobody's work is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from dneuro.errors import ArrayError, StoreError, UsageError
from dneuro.store.blocks import BlockArray, create_blocks, finish_blocks, open_blocks, write_block
from dneuro.store.groups import making, place_of, refuse_existing, writing_to
from dneuro.store.states import place_of_state, read_state, write_state

ARRAY = BlockArray("picture", ("channel", "pixel"), (2, 3), "float32", "some numbers")


def make(out: Path, value: float, kept: Path | None = None, meanwhile: Any = None) -> None:
    import numpy as np

    with making(out, kept) as made:
        create_blocks(made.group, [ARRAY], 1)
        made.ready()
        for start in (0, 1):
            write_block(made.place, "picture", start, np.full((1, 3), value, "f4"))
        finish_blocks(made.group, xr.Dataset(attrs={"value": value}))
        if meanwhile is not None:
            meanwhile()


def test_making__of_two_calls_at_once_neither_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    with pytest.raises(UsageError, match=r"m\.zarr was made by another call meanwhile, and is left as it is") as caught:
        make(out, 2.0, meanwhile=lambda: make(out, 1.0))
    assert open_blocks(out)["picture"].values.tolist() == [[1.0] * 3] * 2
    (other,) = [path for path in tmp_path.iterdir() if path != out]
    assert str(other) in str(caught.value)
    assert open_blocks(other).attrs == {"value": 2.0}


def test_making__what_a_checkpoint_belongs_to_stays_where_it_is(tmp_path: Path) -> None:
    out, kept = tmp_path / "m.zarr", tmp_path / "state.zarr"
    with pytest.raises(UsageError, match=r"this one has made is .*state\.zarr"):
        make(out, 2.0, kept, lambda: make(out, 1.0))
    assert open_blocks(kept).attrs == {"value": 2.0}
    with making(tmp_path / "other.zarr", kept):
        pass  # nothing is left to do
    assert open_blocks(tmp_path / "other.zarr").attrs == {"value": 2.0}
    assert not kept.exists()


def test_making__copies_what_was_made_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, kept, rename = tmp_path / "m.zarr", tmp_path / "state.zarr", Path.rename

    def across(path: Path, target: Any) -> Any:
        if path == kept:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", across)
    make(out, 3.0, kept)
    assert open_blocks(out).attrs == {"value": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_making__says_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    import zarr

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), "some/.m.zarr.0.partial/picture/c/0/0")

    out = tmp_path / "m.zarr"
    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(StoreError) as caught:
        make(out, 1.0)
    assert caught.value.message.startswith(f"{out} cannot be written: ")
    assert ("full" in caught.value.message) == (code in (errno.ENOSPC, errno.EDQUOT))
    assert "out=" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="nobody may write below /sys/kernel, where there is one")
def test_making__where_nobody_may_write(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"/sys/kernel/m\.zarr cannot be written: ") as caught:
        make(place_of("/sys/kernel/m.zarr"), 1.0)  # type: ignore[arg-type]
    assert "may write to" in str(caught.value.hint)


def test_making__leaves_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the input"), making(tmp_path / "m.zarr"):
        raise OSError(errno.EIO, "of the input")
    with pytest.raises(ZeroDivisionError), writing_to(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_place_of__is_whole_and_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_of("m.zarr") == place_of("~/m.zarr") == tmp_path / "m.zarr"
    assert str(place_of("s3://bucket/m.zarr")) == "s3://bucket/m.zarr"
    assert place_of((tmp_path / "a b.zarr").as_uri()) == tmp_path / "a b.zarr"
    for wrong in (5, "", True, None, b"m", "\0m", "\ud800m"):
        with pytest.raises(ArrayError, match="is no path"):
            place_of(wrong)
    with pytest.raises(ArrayError, match="out='~nobody-is-called-so/m'"):
        place_of("~nobody-is-called-so/m")
    with pytest.raises(UsageError, match=r"names the machine 'm\.zarr'"):
        place_of("file://m.zarr")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArrayError, match="is no folder"):
        place_of("file/below/m.zarr")
    with pytest.raises(UsageError, match="exists; it is left as it is"):
        refuse_existing(place_of("file"))


def test_state__is_whole_and_its_own(tmp_path: Path) -> None:
    place = place_of_state(tmp_path / "state.npz")
    assert read_state(place, "a") is None
    write_state(place, "a", {"numbers": [1.0, 2.0]})
    found = read_state(place, "a")
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {"numbers": [1.0, 2.0]}
    assert read_state(place, "b") == {}
    (tmp_path / "state.npz").write_bytes((tmp_path / "state.npz").read_bytes()[:50])
    assert read_state(place, "a") == {}
    for use in (lambda: read_state(tmp_path, "a"), lambda: write_state(tmp_path, "a", {})):
        with pytest.raises(StoreError, match="checkpoint="):
            use()
