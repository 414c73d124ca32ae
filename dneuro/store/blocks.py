"""Arrays that are too large for memory, written block by block along their first dim, as a group of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.store.files import Location, opened_by_zarr
from dneuro.store.groups import writing_to


@dataclass(frozen=True)
class BlockArray:
    """One array of such a group.

    Parameters
    ----------
    name : str
        Its name.
    dims : tuple of str
        Its dims; blocks follow each other along the first.
    shape : tuple of int
        Their lengths.
    dtype : str
        Of the numbers.
    text : str
        What it is.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    text: str

    @property
    def step_bytes(self) -> int:
        """Bytes per step along the first dim."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize


def create_blocks(path: Path, arrays: Iterable[BlockArray], length: int) -> None:
    """Create a group of empty arrays, one chunk per block.

    Parameters
    ----------
    path : Path
        Where; must not exist.
    arrays : iterable of BlockArray
        The arrays.
    length : int
        Length of a block along the first dim.
    """
    import zarr  # not at the top: it is large, and few results go to a file

    from dneuro.store.codecs import CODECS
    from dneuro.store.creating import write_dataset

    with writing_to(path):
        write_dataset(path, "", xr.Dataset())
        group = zarr.open_group(path, mode="r+")
        for array in arrays:
            floating = np.dtype(array.dtype).kind == "f"
            group.create_array(
                array.name, shape=array.shape, chunks=(min(length, array.shape[0]), *array.shape[1:]),
                dtype=array.dtype, dimension_names=array.dims, fill_value=np.nan if floating else 0,
                compressors=CODECS["zstd-shuffle" if floating else "zstd-fast"], attributes={"long_name": array.text},
            )  # fmt: skip


def write_block(place: Location, name: str, start: int, values: NDArray[Any]) -> None:
    """Write a block, whole chunks, that begins at `start` along the first dim."""
    import zarr

    with writing_to(place):
        zarr.open_array(opened_by_zarr(place), path=name, mode="r+")[start : start + len(values)] = values


def finish_blocks(path: Path, rest: xr.Dataset) -> None:
    """Write what is small into the group, with its attributes, once every block is there."""
    from dneuro.store.creating import write_dataset

    with writing_to(path):
        write_dataset(path, "", rest)


def open_blocks(place: Location) -> xr.Dataset:
    """Return the group as a dask-backed dataset."""
    opened: xr.Dataset = xr.open_dataset(opened_by_zarr(place), engine="zarr", chunks={}, consolidated=False)
    return opened
