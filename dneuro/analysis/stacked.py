"""The same activations with all neurons along one dim: what is cut by features may then be cut within a channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dask
import numpy as np
import xarray as xr

from dneuro.analysis.arrays import Prepare, View
from dneuro.kernels.base import Array, Origin, check_finite, check_range


@dataclass(frozen=True)
class PrepareStacked(Prepare):
    """Blocks (images, neurons), checked; an error names the neuron by its place in the layer.

    Parameters
    ----------
    sizes : tuple of int
        Lengths of the dims that were stacked.
    """

    sizes: tuple[int, ...]

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        """Return the blocks."""
        neuron = np.stack(np.unravel_index(origin["neuron"], self.sizes), axis=1)
        place = {"image": self.images[origin["image"]], "neuron": neuron}
        check_finite(blocks[0], place, self.layer, by_place=self.by_place)
        check_range(blocks[0], place, self.layer)
        return blocks


def stacked(seen: View) -> View:
    """Return a view of images × neurons, whose labels still have a dim for each of the layer's.

    Chunks hold all positions of their channels then. An array in memory that would have to be copied for it stays as
    it is.
    """
    x = seen.xs[0]
    data, count = x.data, math.prod(x.shape[1:])
    if dask.is_dask_collection(data):
        # Else `reshape` would do it, and cut the chunks of channels to pieces; by tasks, for parts of it run alone.
        data = data.rechunk(dict.fromkeys(range(2, x.ndim), -1), method="tasks")
    elif not data[0].flags.c_contiguous:
        return seen
    return replace(
        seen,
        xs=(xr.DataArray(data.reshape(len(x), count), dims=("image", "neuron")),),
        prepare=PrepareStacked(seen.layer, None, seen.images, x.shape[1:], by_place=seen.prepare.by_place),
        taken=None,
    )
