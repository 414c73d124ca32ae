"""Results that go into an object store: as on a disk, whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.errors import BusyError, NonFiniteError, StoreError, UsageError
from dneuro.store import matrices
from dneuro.store.remote import RemotePath

EXECUTOR = ThreadExecutor(2)
URL = "s3://dneuro-test/some/matrix.zarr"


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything by tiles, of 8 neurons."""
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)


def layer(bad: bool = False) -> xr.DataArray:
    values = np.random.default_rng(0).random((40, 20), dtype="f4")
    values[33, 17] = np.nan if bad else 0
    names = [f"c{i}" for i in range(20)]
    return xr.DataArray(da.from_array(values, chunks=(10, 5)), dims=("image", "channel"), coords={"channel": names})


def test_similarity__into_a_bucket_is_as_on_a_disk(bucket: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"metric": ["pearson", "covariance"], "precision": "float32", "client": EXECUTOR}
    there = dn.similarity(layer(), out=URL, **asked)
    here = dn.similarity(layer(), out=tmp_path / "matrix.zarr", **asked)
    assert there["pearson"].chunks == here["pearson"].chunks
    xr.testing.assert_identical(there.load(), here.load())
    files = {str(path.relative_to(tmp_path / "matrix.zarr")) for path in tmp_path.rglob("*") if path.is_file()}
    assert set(RemotePath(URL).files()) == files
    assert not bucket.exists(f"{URL}.partial")
    again = xr.open_zarr(URL, consolidated=False)
    np.testing.assert_array_equal(again["pearson"].sel(channel="c3"), here["pearson"].sel(channel="c3"))
    with pytest.raises(UsageError, match=r"matrix\.zarr exists; it is left as it is"):
        dn.similarity(layer(), out=URL, **asked)


def test_similarity__that_fails_leaves_nothing_in_the_bucket(bucket: Any) -> None:
    with pytest.raises(NonFiniteError):
        dn.similarity(layer(bad=True), metric="pearson", out=URL, client=EXECUTOR)
    assert not bucket.find("dneuro-test")


def test_similarity__of_two_calls_at_once_one_is_refused_before_it_reads(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = matrices.write_tile, []

    def beside(*args: Any) -> None:
        if not refused:
            with pytest.raises(BusyError) as caught:
                dn.similarity(layer(bad=True), metric="pearson", out=URL, client=ThreadExecutor(1))
            refused.append(caught.value)
        write(*args)

    monkeypatch.setattr(matrices, "write_tile", beside)
    found = dn.similarity(layer(), metric="pearson", out=URL, client=ThreadExecutor(1))
    assert len(refused) == 1
    assert np.isfinite(found["pearson"]).all()
    monkeypatch.undo()


def test_making__of_a_call_that_was_killed_is_not_taken_for_a_result(bucket: Any) -> None:
    bucket.pipe_file(f"{URL}.partial", b"")
    with pytest.raises(BusyError, match="is being made by another call, or by one that was killed") as caught:
        dn.similarity(layer(), metric="pearson", out=URL, client=EXECUTOR)
    assert f"remove {URL}.partial" in str(caught.value.hint)
    assert bucket.exists(f"{URL}.partial")


def test_similarity__into_no_bucket_or_without_leave(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="there is no bucket 'other-bucket'"):
        dn.similarity(layer(), metric="pearson", out="s3://other-bucket/m.zarr", client=EXECUTOR)
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    with pytest.raises(StoreError, match="may not be used with the credentials at hand"):
        dn.similarity(layer(), metric="pearson", out=URL, client=EXECUTOR)


def test_patch_components__into_a_bucket_is_as_on_a_disk(bucket: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 30, 4, 4, 3), np.uint8)
    patches = xr.DataArray(da.from_array(values, chunks=(2, 30, 4, 4, 3)),
                           dims=("channel", "sample", "row", "column", "color"))  # fmt: skip
    asked: dict[str, Any] = {"k": 30, "rank": 3, "keep": 2, "client": EXECUTOR}
    there = dn.patch_components(patches, out="s3://dneuro-test/pictures.zarr", **asked)
    here = dn.patch_components(patches, out=tmp_path / "pictures.zarr", **asked)
    xr.testing.assert_identical(there.load(), here.load())
    kept = dn.patch_components(patches, out="s3://dneuro-test/kept.zarr", checkpoint=tmp_path / "s.npz", **asked)
    xr.testing.assert_identical(kept.load(), here)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures.zarr"]
