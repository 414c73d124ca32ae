"""Which features a section shows, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report.contents import Layer

_MOST_VALUES = 20_000_000  # of one array held in memory for a figure; 4,096 neurons still have all their pairs


@dataclass(frozen=True)
class Feature:
    """A channel, or a neuron by its place (channel, y, x)."""

    index: tuple[int, ...]
    numbers: tuple[int, ...]
    what: str

    @property
    def name(self) -> str:
        """``channel 17`` or ``neuron (17, 3, 4)``."""
        inside = ", ".join(str(number) for number in self.numbers)
        return f"{self.what} {inside}" if len(self.numbers) == 1 else f"{self.what} ({inside})"

    @property
    def position(self) -> tuple[int, int] | None:
        """Its own position (y, x), where it has one."""
        return (self.numbers[1], self.numbers[2]) if len(self.numbers) == 3 else None

    def select(self, array: xr.DataArray, dims: tuple[str, ...]) -> xr.DataArray:
        """Return the array at this feature."""
        return array.isel(dict(zip(dims, self.index, strict=True)))


def feature_dims(array: xr.DataArray, *others: str) -> tuple[str, ...]:
    """Return the dims of an array that count features: all but these others."""
    return tuple(str(dim) for dim in array.dims if dim not in others)


def most_varied(
    layer: Layer, array: xr.DataArray, dims: tuple[str, ...], count: int
) -> tuple[list[Feature], NDArray[np.float64] | None]:
    """Return the `count` features of largest variance, largest first, and the variance of all of them.

    Where no step took the variance over these dims, the first features are returned, with None.
    """
    shape = tuple(array.sizes[dim] for dim in dims)
    total = int(np.prod(shape))
    variance = layer.statistic("variance", dims)
    if variance is None or variance.shape != shape:
        order, variance = np.arange(min(count, total)), None
    else:
        order = np.argsort(-np.nan_to_num(variance.ravel(), nan=-np.inf), kind="stable")[:count]
    return features_at(array, dims, order), variance


def features_at(array: xr.DataArray, dims: tuple[str, ...], order: NDArray[np.int64]) -> list[Feature]:
    """Return the features with these numbers along the flattened dims."""
    shape = tuple(array.sizes[dim] for dim in dims)
    what = "channel" if dims == ("channel",) else "neuron"
    places = [tuple(int(i) for i in np.unravel_index(flat, shape)) for flat in order]
    return [Feature(place, _numbers(array, dims, place), what) for place in places]


def names(array: xr.DataArray, dims: tuple[str, ...], step: int = 1) -> list[str]:
    """Return the name of every feature of an array thinned by `step`, in the order of the flattened dims."""
    shape = tuple(array.sizes[dim] for dim in dims)
    unnamed = dims[0] not in array.coords
    found = []
    for place in np.ndindex(*shape):
        first, *rest = _numbers(array, dims, place)
        found.append(",".join(str(n) for n in (first * step if unnamed else first, *rest)))
    return found


def thin(array: xr.DataArray, dims: tuple[str, ...]) -> tuple[xr.DataArray, int]:
    """Return every m-th entry along the first of `dims` (and along its twin, if square) and m.

    m is the smallest that leaves no more values than a figure is worth reading from the store.
    """
    step = 1
    thinned = array
    while thinned.size > _MOST_VALUES and thinned.sizes[dims[0]] > 1:
        step += 1
        thinned = array.isel({dim: slice(None, None, step) for dim in dims})
    return thinned, step


def _numbers(array: xr.DataArray, dims: tuple[str, ...], place: tuple[int, ...]) -> tuple[int, ...]:
    """Return what the coordinates call a place; a thinned or selected array keeps its numbers."""
    numbers = []
    for dim, index in zip(dims, place, strict=True):
        called = array[dim].values[index] if dim in array.coords else index
        numbers.append(int(called) if isinstance(called, int | np.integer) else index)
    return tuple(numbers)
