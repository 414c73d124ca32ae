"""Groups that are written block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from dneuro.store.blocks import BlockArray, create_blocks, finish_blocks, open_blocks, write_block


def test_blocks__are_chunks_of_their_own_in_any_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 3, 2)).astype("f2")
    path = tmp_path / "group.zarr"
    create_blocks(path, [BlockArray("grey", ("channel", "row", "column"), (5, 3, 2), "float16", "pictures"),
                         BlockArray("rgb8", ("channel", "row"), (5, 3), "uint8", "bytes")], 2)  # fmt: skip
    for start in (4, 0):
        write_block(path, "grey", start, values[start : start + 2])
    finish_blocks(path, xr.Dataset({"count": ("channel", np.arange(5))}, attrs={"analysis": "any"}))
    found = open_blocks(path)
    assert found.attrs == {"analysis": "any"}
    assert found["grey"].chunks == ((2, 2, 1), (3,), (2,))
    assert found["grey"].attrs["long_name"] == "pictures"
    np.testing.assert_array_equal(found["grey"][[0, 1, 4]], values[[0, 1, 4]])
    assert np.isnan(found["grey"][2:4]).all(), "what was never written is not there"
    assert (found["rgb8"] == 0).all()
    assert found["count"].values.tolist() == list(range(5))
    assert zarr.open_array(path, path="grey", mode="r").nchunks_initialized == 2
