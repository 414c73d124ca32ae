"""What the store knows of every neuron of a layer: numbers in columns, top and bottom images in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report.contents import Images, Layer, Result
from dneuro.report.neurons.composition import Composition, compose

BLOCK = 1000
"""Neurons that are read at a time, and in one file of the index; whole pages of any size."""

_DIMS = ("channel",)
_MOMENTS = {
    "variance": "variance", "mean": "mean", "max": "maximum", "min": "minimum", "fraction_active": "active",
}  # fmt: skip
_MOST_COLUMNS = 16
_ENDS = ("top", "bottom")
_NEAREST = 5


@dataclass(frozen=True, eq=False)
class Column:
    """One number per neuron; `share`: whether it is one of 1, written in per cent."""

    key: str
    title: str
    values: NDArray[np.float64]
    share: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """The lists of some neighbouring neurons: arrays (neurons, ranks) by name, such as ``top_image``."""

    first: int
    count: int
    lists: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    composition: Composition | None = None
    near: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None
    """The most correlated others of each neuron and the correlations, both (neurons, others), best first."""


@dataclass(frozen=True, eq=False)
class Roster:
    """The neurons of a layer: channels, or the outputs of a layer without positions.

    Parameters
    ----------
    count : int
        Neurons.
    columns : list of Column
        What is known of each.
    tops : Result, optional
        The top images (channel, rank).
    alike : Result, optional
        Correlations (channel, other_channel).
    """

    layer: Layer
    images: Images
    count: int
    columns: list[Column]
    tops: Result | None
    alike: Result | None

    def blocks(self, shown: int) -> Iterator[Block]:
        """Yield the neurons block by block, with `shown` images at either end; classes are those of all ranks.

        Notes
        -----
        **Cost**: one read of the lists of top images; one block of them in memory.
        """
        for first in range(0, self.count, BLOCK):
            here = slice(first, min(first + BLOCK, self.count))
            lists, composition = self._lists(here, shown)
            yield Block(first, here.stop - first, lists, composition, self._near(here))

    def _lists(self, here: slice, shown: int) -> tuple[dict[str, NDArray[np.float64]], Composition | None]:
        if self.tops is None:
            return {}, None
        found = {}
        composition = None
        for name in (f"{end}_{part}" for end in _ENDS for part in ("image", "value", "y", "x")):
            if name in self.tops.data:
                array = self.tops.data[name].transpose("channel", "rank").isel(channel=here)
                if name == "top_image" and self.images.labels is not None:
                    everyone = np.asarray(array.values, dtype=np.int64)
                    values = self.tops.data.get("top_value")
                    if values is not None:
                        chosen = values.transpose("channel", "rank").isel(channel=here).values
                        everyone = np.where(_tied_at_the_end(chosen), -1, everyone)
                    composition = compose(everyone, self.images.labels)
                found[name] = np.asarray(array.isel(rank=slice(shown)).values, dtype=np.float64)
        return found, composition

    def _near(self, here: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        if self.alike is None or self.count < 2:
            return None
        rows = np.array(self.alike.data["pearson"].isel(channel=here).values, dtype=np.float64)
        rows[np.arange(len(rows)), np.arange(here.start, here.stop)] = np.nan
        rows[np.isnan(rows)] = -np.inf
        most = min(_NEAREST, self.count - 1)
        best = np.argpartition(-rows, most - 1, axis=1)[:, :most]
        values = np.take_along_axis(rows, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        return np.take_along_axis(best, order, axis=1), np.take_along_axis(values, order, axis=1)

    def images_shown(self, shown: int) -> NDArray[np.bool_]:
        """Return which images the pages show (image,)."""
        wanted = np.zeros(self.images.count, dtype=bool)
        for end in _ENDS:
            if self.tops is not None and f"{end}_image" in self.tops.data:
                array = self.tops.data[f"{end}_image"].isel(rank=slice(shown))
                for first in range(0, self.count, BLOCK):
                    images = np.asarray(array.isel(channel=slice(first, first + BLOCK)).values, dtype=np.int64)
                    wanted[images[(images >= 0) & (images < wanted.size)]] = True
        return wanted


def _tied_at_the_end(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where the top values (neurons, ranks) equal the last one, if more than one does.

    Which images stand there is a matter of their order alone: many more may have the same value, as all have 0 of a
    channel that never fires.
    """
    same: NDArray[np.bool_] = np.equal(values, values[:, -1:])
    several: NDArray[np.bool_] = same.sum(axis=1, keepdims=True) > 1
    return np.logical_and(same, several)


def roster(layer: Layer, images: Images) -> Roster | None:
    """Return what the store knows of each neuron of a layer; none where it knows nothing of single ones."""
    tops = [r for r in layer.results if r.analysis == "top_images" and r.data.get("top_image", _NONE).dims in _LISTS]
    count = _count(layer, tops)
    if not count:
        return None
    columns = _columns(layer, count)
    tops = [result for result in tops if _fits(result.data["top_image"], count)]
    alike = [
        r for r in layer.results
        if r.analysis == "similarity" and r.parameters.get("of", "activation") == "activation"
        and "pearson" in r.data and r.data["pearson"].dims == ("channel", "other_channel")
        and _fits(r.data["pearson"], count)
    ]  # fmt: skip
    if not columns and not tops:
        return None
    return Roster(layer, images, count, columns, next(iter(tops), None), next(iter(alike), None))


_NONE = xr.DataArray(0)
_LISTS = (("channel", "rank"), ("rank", "channel"))


def _count(layer: Layer, tops: list[Result]) -> int:
    """Return how many neurons the layer has: as its shape says, or else as its results do."""
    if layer.shape:
        return layer.shape[0]
    known = [int(result.data.sizes["channel"]) for result in tops]
    moments = [r.data for r in layer.results if r.analysis == "moments"]
    known += [int(data.sizes["channel"]) for data in moments if "channel" in data.sizes]
    return max(known, default=0)


def _fits(array: xr.DataArray, count: int) -> bool:
    """Whether an array is of all neurons in their order, not of some that a step selected."""
    if array.sizes["channel"] != count:
        return False
    return "channel" not in array.coords or bool((array["channel"].values == np.arange(count)).all())


def _columns(layer: Layer, count: int) -> list[Column]:
    found: dict[str, Column] = {}
    for result in layer.results:
        for name, array in result.data.data_vars.items():
            if array.dims != _DIMS or array.dtype.kind not in "biuf" or not _fits(array, count):
                continue
            if result.analysis == "moments":
                if name in _MOMENTS and _MOMENTS[str(name)] not in found:
                    key = _MOMENTS[str(name)]
                    found[key] = Column(key, key, _values(array), share=key == "active")
            elif result.analysis != "top_images":
                key = f"{result.step}.{name}"
                found.setdefault(key, Column(key, f"{result.step}: {str(name).replace('_', ' ')}", _values(array)))
    order = list(_MOMENTS.values())
    columns = sorted(found.values(), key=lambda c: order.index(c.key) if c.key in order else len(order))
    return [column for column in columns if np.isfinite(column.values).any()][:_MOST_COLUMNS]


def _values(array: xr.DataArray) -> NDArray[np.float64]:
    return np.asarray(array.values, dtype=np.float64)
