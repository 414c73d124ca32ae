"""The same activations as neurons × images: what is said of rows then holds for columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Labels, View
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.engine.executors import Executor
from dneuro.engine.regions import STRIP
from dneuro.engine.residence import of_parts
from dneuro.kernels import ImageMoments, Standardise
from dneuro.kernels.base import Array, Origin, check_finite, check_range
from dneuro.kernels.standardise import Mode


@dataclass(frozen=True)
class PrepareTurned:
    """Blocks (neurons, images), checked; an error names the image, and the neuron by its place in the layer."""

    layer: str
    images: NDArray[np.int64]
    sizes: tuple[int, ...]
    by_place: bool
    how: None = None

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        """Return the blocks."""
        neuron = np.stack(np.unravel_index(origin["image"], self.sizes), axis=1)
        place = {"image": self.images[origin["neuron"]], "neuron": neuron}
        check_finite(blocks[0].T, place, self.layer, by_place=self.by_place)
        check_range(blocks[0].T, place, self.layer)
        return blocks


def has_panels(seen: View) -> bool:
    """Return whether columns can be read without reading the rest, each with all its images."""
    chunks = seen.xs[0].chunks
    return chunks is not None and len(chunks[0]) == 1 and len(chunks[1]) > 1 and all(len(c) == 1 for c in chunks[2:])


def turned(seen: View) -> View:
    """Return a view of neurons × images; its rows are the neurons, its features the images that take part.

    An array in memory stays where it is: what would have to be copied for it is copied block by block, by the tasks.
    """
    x = seen.xs[0]
    data = x.data if dask.is_dask_collection(x.data) else np.asarray(x.data)
    if isinstance(data, np.ndarray) and (seen.rows is not None or not _is_flat(data)):
        flat = _copied_in_parts(data, np.arange(len(x)) if seen.rows is None else np.flatnonzero(seen.rows))
    else:
        data = data if seen.rows is None else data[np.flatnonzero(seen.rows)]
        flat = data.reshape(len(data), math.prod(x.shape[1:])).T
    count = len(seen.taking_part)
    prepare = PrepareTurned(seen.layer, seen.taking_part, x.shape[1:], seen.prepare.by_place)
    return replace(
        seen,
        xs=(xr.DataArray(flat, dims=("image", "neuron")),),  # rows are what the engine calls images
        labels=Labels(("neuron",), (count,)),
        rows=None,
        taken=None,
        prepare=prepare,  # type: ignore[arg-type]
    )


def _is_flat(values: NDArray[Any]) -> bool:
    """Return whether images × neurons are a view of an array (image, …)."""
    return values.ndim == 2 or values[0].flags.c_contiguous


@dataclass(frozen=True, eq=False)
class _Some:
    """Some images of an array in memory, some neurons of them, as neurons × images: copied where they are wanted."""

    values: NDArray[Any]
    images: NDArray[np.int64]
    neurons: slice

    def __call__(self) -> NDArray[Any]:
        """Return the copy."""
        values, sizes = self.values, self.values.shape[1:]
        if len(sizes) == 1:
            return np.asarray(values[self.images, self.neurons].T)
        places = np.unravel_index(np.arange(self.neurons.start, self.neurons.stop), sizes)
        return np.asarray(values[self.images[None, :], *(place[:, None] for place in places)])

    def __reduce__(self) -> tuple[Any, ...]:
        return _Made, (self(),)  # nothing else travels to a worker


@dataclass(frozen=True, eq=False)
class _Made:
    """Such a copy that came from elsewhere."""

    values: NDArray[Any]

    def __call__(self) -> NDArray[Any]:
        """Return it."""
        return self.values


def _copied_in_parts(values: NDArray[Any], images: NDArray[np.int64]) -> Any:
    """Return some images of an array (image, …) in memory as neurons × images, in chunks of dask made when asked for.

    A row of chunks is as large as a block, a column as wide as a strip of tiles.
    """
    count = math.prod(values.shape[1:])
    if _is_flat(values):
        values = values.reshape(len(values), count)
    step = max(1, BLOCK_BYTES // (values.dtype.itemsize * len(images)))

    def task(where: tuple[slice, ...]) -> tuple[_Some]:
        rows, columns = where
        return (_Some(values, images[columns], rows),)

    return of_parts((count, len(images)), (step, STRIP), values.dtype, task)


def standardisation_turned(seen: View, mode: Mode, executor: Executor) -> tuple[Standardise, int]:
    """Return how Zᵀ is made of neurons × images, and the number of passes that took."""
    if mode is None:
        return Standardise(None), 0
    if mode != "image":
        return Standardise("image" if mode == "neuron" else "level"), 0
    found = seen.reduce({"moments": ImageMoments()}, executor, "svd")["moments"]
    varies = found["max"] > found["min"]
    mean = np.where(varies, found["mean"], found["min"])
    return Standardise("neuron", mean=mean, std=np.where(varies, found["std"], 0.0)), 1
