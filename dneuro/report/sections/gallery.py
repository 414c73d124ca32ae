"""Rows of chosen neurons with their top images, for sections about something else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report import framing
from dneuro.report.blocks import Row, Studio
from dneuro.report.contents import Layer, Result
from dneuro.report.grids import TILE
from dneuro.report.sections.picking import Feature, feature_dims, features_at
from dneuro.report.sections.top_images import tiles
from dneuro.report.words import counted

Note = Callable[[int, Feature], str]
"""What is said of a neuron, given its number along the flattened features."""


def rows(array: xr.DataArray, chosen: NDArray[np.int64], note: Note, layer: Layer, studio: Studio) -> list[Row]:
    """Return a row for each chosen neuron, as far as their top images are known.

    Parameters
    ----------
    array : DataArray (features…)
        Any number of every neuron: says what they are called.
    chosen : ndarray of int64
        Neurons, by their numbers along the flattened features.
    note : callable
        What is said of each.
    """
    top = top_images_of(array, layer)
    if top is None:
        return []
    dims = feature_dims(array)
    found = []
    for number, feature in zip(chosen.tolist(), features_at(array, dims, chosen), strict=True):
        pictures = tiles("top", TILE, feature, dims, top, layer, studio)
        href = studio.neuron_link(layer, number) if feature.what == "channel" else None
        found.append(Row(feature.name.capitalize(), note(number, feature), pictures, [], href, "Top images"))
    return found


def caption(array: xr.DataArray, layer: Layer, studio: Studio) -> str:
    """Return what a caption says of the images in the rows."""
    top = top_images_of(array, layer)
    if top is None:
        return ""
    placed = "top_y" in top.data or len(feature_dims(array)) == 3
    total = counted(studio.taking_part(top), "image")
    return f"Top images of n = {total}, with class and activation. {framing.words(layer, placed=placed)}"


def top_images_of(array: xr.DataArray, layer: Layer) -> Result | None:
    """Return the top images of the same features, if some step or the extraction took them of all images."""
    for result in layer.results:
        images = result.data.get("top_image") if result.analysis == "top_images" else None
        if images is not None and (images.dims[:-1], images.shape[:-1]) == (array.dims, array.shape):
            return result
    return None
