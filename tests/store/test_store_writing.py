from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dneuro.errors import StoreError
from dneuro.store.creating import create, root_coords
from dneuro.store.layout import LayerPlan
from dneuro.store.writing import RowWriter

IMAGES, UNIT = 20, 8


def make_store(path: Path, dtype: str = "float32", keep: str = "full") -> list[RowWriter]:
    """A store of 20 images with units of 8, and writers of its second unit."""
    plans = LayerPlan("conv", keep, (3, 2, 2), dtype).arrays(IMAGES, UNIT)
    coords = root_coords(np.array([f"{i}.png" for i in range(IMAGES)]), np.zeros(IMAGES, np.int64), ["a"])
    create(path, coords, plans, {"job": "test"})
    return [RowWriter(path, plan, 8, 16) for plan in plans]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writing") / "acts.zarr"
    make_store(path)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_row_writer__takes_rows_in_any_portions(scratch: Path, portions: list[int], chunk: int) -> None:
    (plan,) = LayerPlan("conv", "full", (3, 2, 2), "float32").arrays(IMAGES, UNIT)
    rows = np.random.default_rng(chunk).standard_normal((8, 3, 2, 2), dtype=np.float32)
    rows[3, 1] = np.nan
    writer = RowWriter(scratch, replace(plan, chunks=(chunk, 3, 2, 2)), 8, 16)
    place = 0
    for portion in [*portions, 8]:
        writer.add(rows[place : place + portion])
        place += len(rows[place : place + portion])
    assert writer.finish() == zlib.crc32(rows.tobytes())
    np.testing.assert_array_equal(zarr.open_array(scratch, path=plan.path)[8:16], rows)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("keep", ["full", "max", "mean"])
def test_row_writer__touches_no_chunk_of_another_unit(tmp_path: Path, dtype: str, keep: str) -> None:
    writers = make_store(tmp_path / "acts.zarr", dtype, keep)
    for writer in writers:
        shape = writer._plan.shape[1:]
        writer.add(np.ones((8, *shape), writer._plan.dtype))
        writer.finish()
        array = zarr.open_array(tmp_path / "acts.zarr", path=writer._plan.path)
        np.testing.assert_array_equal(array[8:16], np.ones((8, *shape)))
        for others in (array[:8], array[16:]):
            np.testing.assert_array_equal(others, np.full_like(others, writer._plan.blank))
        chunks = sorted((tmp_path / "acts.zarr" / writer._plan.path / "c").iterdir())
        assert [path.name for path in chunks] == ["1"]


def test_row_writer__refuses_to_finish_before_all_rows_came(tmp_path: Path) -> None:
    (writer,) = make_store(tmp_path / "acts.zarr")
    writer.add(np.ones((7, 3, 2, 2), np.float32))
    with pytest.raises(StoreError, match="8 rows of the unit are missing"):
        writer.finish()


@pytest.mark.parametrize("loses", [slice(None), slice(0, 1)])
def test_row_writer__notices_what_did_not_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loses: slice
) -> None:
    (writer,) = make_store(tmp_path / "acts.zarr")
    honest = zarr.Array.__setitem__

    def lose(array: zarr.Array, region: slice, values: np.ndarray) -> None:
        values = values.copy()
        values[loses] = 0
        honest(array, region, values)

    monkeypatch.setattr(zarr.Array, "__setitem__", lose)
    with pytest.raises(StoreError, match="images 8 to 15: what was read back is not what was written"):
        writer.add(np.ones((8, 3, 2, 2), np.float32))


def test_row_writer__writes_a_chunk_of_zeros_like_any_other(tmp_path: Path) -> None:
    """One that is lost is missing then, and not taken for zeros that were left out."""
    (writer,) = make_store(tmp_path / "acts.zarr")
    writer.add(np.zeros((8, 3, 2, 2), np.float32))
    assert writer.finish() == zlib.crc32(bytes(8 * 3 * 2 * 2 * 4))
    assert (tmp_path / "acts.zarr/layers/conv/activation/c").is_dir()
    opened = xr.open_zarr(tmp_path / "acts.zarr", group="layers/conv", consolidated=False)
    assert not opened["activation"].values[8:16].any()
