"""Which part of its top images does a channel answer to? The patches, cut when they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.engine import stopping
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.errors import ArrayError
from dneuro.extract.views import Views, views_of
from dneuro.images.cutting import Box, cut, padding_color
from dneuro.nets.receptive import ReceptiveField
from dneuro.store.files import Location
from dneuro.store.opening import Store, open_store

DIMS = ("channel", "sample", "row", "column", "color")

TASKS = 16
"""Blocks that a layer is cut into at least, where it has so many channels: workers want work."""

NONE = -1
"""Number that stands for no image."""


def top_patches(
    store: Store | str | Location,
    layer: str,
    *,
    k: int = 100,
    top: xr.Dataset | None = None,
    images: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """The parts of its top images that each channel of a layer answers to, cut when they are computed.

    Parameters
    ----------
    store : Store or path
        What `extract` made; its images are read again.
    layer : str
        The layer. Of one without positions, or whose positions see everything, a patch is the whole view.
    k : int
        Patches per channel, at most: those of its `k` highest images.
    top : Dataset, optional
        ``top_image``, ``top_value``, ``top_y`` and ``top_x`` (channel, rank) as `top_images` gives them; the default is
        what the extraction recorded.
    images : str, path or mapping, optional
        Where the images lie now, if they have moved: a new root, or all that the ``images:`` part of a job says.

    Returns
    -------
    DataArray, dims (channel C, sample min(k, images), row, column, color)
        uint8, backed by dask, best first. Row and column count the pixels of the layer's receptive field, color the 3
        or 1 colours of the input. Coordinates: count (channel): samples that there are; those beyond it are 0, and
        there are none. top_image, top_value, top_y, top_x (channel, sample): image, activation and winning position;
        beyond the count the image is −1 and the activation NaN.

    Raises
    ------
    ArrayError
        If the lists are not of channels, or hold no positions; if fewer than `k` of more images were recorded.
    StoreError
        If there is no such store or layer.
    ImageSourceError
        When computed: if an image cannot be read again. Names it, its place and the way out.
    FingerprintError
        When computed: if an image is another one than when the store was made.

    Notes
    -----
    **Cost**: none until it is computed; the lists are in memory. A chunk is some channels of about 32 MiB, at least 16
    chunks if there are so many channels; whoever computes it reads each of its images once, in its store's order, and
    holds the chunk, one view, and the picture that is decoded. An image in the top lists of several chunks is read for
    each. Views are not kept in the store for that: 150 kB each at 224 × 224, 7.5 GB for 50,000, of which a layer of 512
    channels takes as good as all in as many reads.

    Only activations above 0 count: otherwise a channel that is silent on most images collects ties. The box of a
    winning position is the true receptive field (the support of the gradient), always of its full size. What of it lies
    outside of the input has the colour that the network's own padding with zeros stands for, its mean.

    References
    ----------
    Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks", top patches. That only activations above 0
    count, that an image gives one patch (its maximum over positions) and the colour beyond the borders are dneuro's.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    recorded = opened.statistics(layer)
    lists = _lists(opened, layer, recorded, top, k)
    return patches_of(layer, recorded.attrs, lists, views_of(opened, images), checksums_of(opened), k)


def patches_of(
    layer: str, about: Mapping[str, Any], top: xr.Dataset, views: Views, checksums: NDArray[Any] | None, k: int
) -> xr.DataArray:
    """Return the patches of checked lists; see `top_patches`.

    Parameters
    ----------
    layer : str
        Name of the layer.
    about : mapping
        What the store says of it: ``receptive_field``, ``input_size``.
    top : Dataset
        Lists (channel, rank).
    views : Views
        The images.
    checksums : array (images,), or None
        What their contents had.
    k : int
        Patches per channel.
    """
    field = field_of(about)
    found = {name.removeprefix("top_"): top[name].transpose("channel", "rank").values[:, :k] for name in _names(top)}
    if field is not None and not {"y", "x"} <= set(found):
        raise ArrayError(
            f"the top images of {layer} come without the positions that won: they are of means over positions",
            hint=f"top=dn.top_images(store[{layer!r}]) of a layer with keep: full or max",
        )
    numbers = np.where(found["value"] > 0, found["image"], NONE).astype(np.int64)
    lists = np.zeros((*numbers.shape, 4), np.int64)
    lists[..., 0] = numbers
    lists[..., 1] = NONE if checksums is None else checksums[numbers]
    if field is not None:
        lists[..., 2], lists[..., 3] = found["y"], found["x"]
    size = tuple(about["input_size"]) if field is None else field.size
    shape = (*size, views.preprocessing.channels)
    lazy = da.from_array(lists, chunks=(channels_per_chunk(len(numbers), numbers.shape[1], shape), -1, -1), name=False)
    data = da.map_blocks(
        _Cut(views, field, shape), lazy, drop_axis=2, new_axis=(2, 3, 4), dtype=np.uint8,
        chunks=(*lazy.chunks[:2], *((length,) for length in shape)), meta=np.empty((0,) * 5, np.uint8),
    )  # fmt: skip
    pair = ("channel", "sample")
    coords: dict[str, Any] = {"count": ("channel", (numbers >= 0).sum(axis=1))}
    coords |= {"top_image": (pair, numbers), "top_value": (pair, np.where(numbers >= 0, found["value"], np.nan))}
    coords |= {f"top_{name}": (pair, found[name]) for name in ("y", "x") if name in found}
    if "channel" in top.coords:
        coords["channel"] = top.coords["channel"].values
    attrs = {"layer": layer, "receptive_field": about.get("receptive_field"), "input_size": about.get("input_size")}
    attrs |= {"selection": top.attrs["selection"]} if "selection" in top.attrs else {}
    return xr.DataArray(data, dims=DIMS, coords=coords, attrs=attrs, name="patch")


def stand_in_patches(
    layer: str, channels: int, samples: int, field: ReceptiveField | None, input_shape: tuple[int, int, int]
) -> xr.DataArray:
    """Return an array shaped and chunked as the patches of a layer, without pixels; `input_shape` is (colours, …)."""
    size = input_shape[1:] if field is None else field.size
    shape = (*size, input_shape[0])
    chunks = (channels_per_chunk(channels, samples, shape), samples, *shape)
    empty = da.zeros((channels, samples, *shape), chunks=chunks, dtype=np.uint8)
    return xr.DataArray(empty, dims=DIMS, attrs={"layer": layer}, name="patch")


def channels_per_chunk(channels: int, samples: int, shape: tuple[int, ...]) -> int:
    """Return how many channels a chunk has."""
    most = BLOCK_BYTES // (samples * math.prod(shape))
    return max(1, min(most, math.ceil(channels / TASKS)))


def field_of(about: Mapping[str, Any]) -> ReceptiveField | None:
    """Return the receptive field of a layer as the store describes it; None if positions see everything."""
    said = about.get("receptive_field")
    if said is None:
        return None
    size, stride, start = ((int(said[key][0]), int(said[key][1])) for key in ("size", "stride", "start"))
    return ReceptiveField(size, stride, start)


def checksums_of(store: Store) -> NDArray[Any] | None:
    """Return what the contents of the images (image,) had as CRC-32 when the store was made, if it says so."""
    return store.images["checksum"].values if "checksum" in store.images else None


@dataclass(frozen=True)
class _Cut:
    """Cuts the patches of some channels."""

    views: Views
    field: ReceptiveField | None
    shape: tuple[int, ...]

    def __call__(self, lists: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return patches (channels, samples, row, column, color) for lists of image, checksum, y and x."""
        patches = np.zeros((*lists.shape[:2], *self.shape), np.uint8)
        fill = padding_color(self.views.preprocessing)
        for number, places in _by_image(lists[..., 0]):
            stopping.check()
            checksum = int(lists[*places[0], 1])
            view = self.views.see(number, None if checksum == NONE else checksum)
            for channel, sample in places:
                _, _, y, x = lists[channel, sample].tolist()
                patches[channel, sample] = cut(view, self._box(y, x), fill)
        return patches

    def _box(self, y: int, x: int) -> Box:
        return (0, 0, *self.shape[:2]) if self.field is None else self.field.box(y, x)  # type: ignore[return-value]


def _by_image(numbers: NDArray[np.int64]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield each image, in order, with the places (channel, sample) it has in the lists."""
    flat = numbers.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[flat[order] >= 0]
    for run in np.split(order, np.flatnonzero(np.diff(flat[order])) + 1):
        if len(run):
            yield int(flat[run[0]]), [divmod(int(place), numbers.shape[1]) for place in run]


def _lists(store: Store, layer: str, recorded: xr.Dataset, top: Any, k: Any) -> xr.Dataset:
    """Return the lists of top images, if they are such, and of what was recorded long enough."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ArrayError(f"k={k!r} is not a whole number, at least 1", hint="k=100")
    found = recorded if top is None else top
    if not isinstance(found, xr.Dataset) or not {"top_image", "top_value"} <= set(found):
        what = f"no top images were recorded of layer {layer}"
        raise ArrayError(
            what if top is None else f"top is a {type(top).__name__} without top_image and top_value",
            hint=_found_by(layer, recorded.attrs, k),
        )
    dims = tuple(map(str, found["top_image"].dims))
    if set(dims) != {"channel", "rank"}:
        raise ArrayError(f"top images over {dims}: patches are of channels", hint="per='channel'")
    last, images = int(found["top_image"].max()), store.images.sizes["image"]
    if last >= images:
        raise ArrayError(
            f"image {last} is among the top images, and {store.path} has {images}", hint="the lists of this store"
        )
    known, readable = found.sizes["rank"], int((store.images["status"].values == 0).sum())
    if top is None and known < min(k, readable):
        raise ArrayError(
            f"k={k}, and of layer {layer} the {known} top images of each channel are recorded",
            hint=f"k={known}, or {_found_by(layer, recorded.attrs, k)}",
        )
    return found


def _found_by(layer: str, about: Mapping[str, Any], k: int | np.integer[Any]) -> str:
    """Return how to come by lists of top images with the positions that won."""
    if about.get("keep") == "stats" or (about.get("keep") == "mean" and len(about.get("shape", ())) > 1):
        return f"run the job again with extract: {{statistics: [top_images], top_k: {k}}}, which extracts {layer} again"
    return f"top=dn.top_images(store[{layer!r}], k={k})"


def _names(top: xr.Dataset) -> list[str]:
    return [name for name in ("top_image", "top_value", "top_y", "top_x") if name in top]
