"""Square matrices of features × features that are written tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from dneuro.store.codecs import CODECS
from dneuro.store.creating import write_dataset
from dneuro.store.files import Location, opened_by_zarr
from dneuro.store.groups import writing_to


def create(
    path: Path,
    names: Mapping[str, str],
    *,
    dims: tuple[str, str],
    count: int,
    tile: int,
    dtypes: Mapping[str, str],
    coords: Mapping[str, Any],
) -> None:
    """Create a group of empty symmetric matrices, one chunk per tile.

    Parameters
    ----------
    path : Path
        Where; must not exist.
    names : mapping of str to str
        Names of the matrices, and what they are.
    dims : tuple of str
        Names of the two dims.
    count, tile : int
        Lengths of the matrices and of their tiles.
    dtypes : mapping of str to str
        Of their numbers.
    coords : mapping
        Coordinates along the dims.
    """
    with writing_to(path):
        write_dataset(path, "", xr.Dataset(coords=dict(coords)))
        group = zarr.open_group(path, mode="r+")
        for name, text in names.items():
            group.create_array(
                name, shape=(count, count), chunks=(min(tile, count),) * 2, dtype=dtypes[name], dimension_names=dims,
                compressors=CODECS["zstd-shuffle"], fill_value=np.nan,
                attributes={"long_name": text, "symmetric": True},
            )  # fmt: skip


def write_tile(place: Location, name: str, rows: slice, columns: slice, values: NDArray[Any]) -> None:
    """Write a tile, and its mirror image on the other side of the diagonal; both are whole chunks."""
    with writing_to(place):
        array = zarr.open_array(opened_by_zarr(place), path=name, mode="r+")
        array[rows, columns] = values
        if rows != columns:
            array[columns, rows] = values.T


def finish(path: Path, attrs: Mapping[str, Any]) -> None:
    """Give the group its attributes, once everything is there."""
    with writing_to(path):
        zarr.open_group(path, mode="r+").attrs.update(dict(attrs))

