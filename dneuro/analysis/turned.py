"""The same activations as neurons × images: what is said of rows then holds for columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Labels, View
from dneuro.engine.executors import Executor
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
    """Return a view of neurons × images; its rows are the neurons, its features the images that take part."""
    x = seen.xs[0]
    if seen.rows is not None:
        x = x.isel(image=np.flatnonzero(seen.rows))
    data = x.data if dask.is_dask_collection(x.data) else np.asarray(x.data)
    flat = data.reshape(len(x), math.prod(x.shape[1:])).T
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
