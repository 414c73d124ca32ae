"""The images that excite the neurons of largest variance most and least, with the winning patch framed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dneuro.report import framing
from dneuro.report.blocks import Block, Row, Studio, Tile, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.grids import SMALL, TILE
from dneuro.report.sections.picking import Feature, feature_dims, most_varied
from dneuro.report.words import counted, number, percent, quoted


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``top_images`` result."""
    images = result.data["top_image"]
    dims = feature_dims(images, "rank")
    chosen, variance = most_varied(layer, images, dims, studio.neurons)
    rows = [_row(feature, dims, result, layer, studio) for feature in chosen]
    total = int(np.prod([images.sizes[dim] for dim in dims]))
    what = "channel" if dims == ("channel",) else "neuron"
    placed = "top_y" in result.data or len(dims) == 3
    order = "of largest variance, largest first" if variance is not None else "with the lowest numbers"
    caption = (
        f"{counted(len(chosen), what).capitalize()} of {total:,} {order}. Left: the images that excite "
        f"{'it' if len(chosen) == 1 else 'each'} most, with class and activation; right, smaller: those that excite "
        f"it least. n = {counted(studio.taking_part(result), 'image')}. "
        f"{framing.words(layer, placed=placed)}{_ties(chosen, dims, result, studio)}{quoted(result.parameters)}"
    )
    return Block(heading(result), rows=rows, caption=caption, facts=facts(result))


def _row(feature: Feature, dims: tuple[str, ...], result: Result, layer: Layer, studio: Studio) -> Row:
    notes = []
    for name, words in (("variance", "variance {}"), ("mean", "mean {}"), ("fraction_active", "active on {}")):
        values = layer.statistic(name, dims)
        if values is not None:
            value = float(values[feature.index])
            notes.append(words.format(percent(value) if name == "fraction_active" else number(value)))
    ends = {
        end: tiles(end, size, feature, dims, result, layer, studio)
        for end, size in (("top", TILE), ("bottom", SMALL))
    }
    href = studio.neuron_link(layer, feature.numbers[0]) if len(feature.numbers) == 1 else None
    return Row(feature.name.capitalize(), ", ".join(notes), ends["top"], ends["bottom"], href)


def tiles(
    end: str, longest: int, feature: Feature, dims: tuple[str, ...], result: Result, layer: Layer,
    studio: Studio,
) -> list[Tile]:  # fmt: skip
    """Return the images at the ``top`` or the ``bottom`` of a feature, the winning patch of each framed."""
    if f"{end}_image" not in result.data:
        return []
    shown = result.data.isel(rank=slice(studio.shown))

    def read(part: str) -> list[float] | None:
        name = f"{end}_{part}"
        return None if name not in shown else feature.select(shown[name], dims).values.tolist()

    images, values, ys, xs = (read(part) for part in ("image", "value", "y", "x"))
    found = []
    for rank, image in enumerate(images or []):
        if image >= 0:
            place = feature.position if ys is None or xs is None else (int(ys[rank]), int(xs[rank]))
            value = None if values is None else values[rank]
            found.append(studio.tile(int(image), value, layer=layer, box=framing.box(layer, place), longest=longest))
    return found


def _ties(chosen: list[Feature], dims: tuple[str, ...], result: Result, studio: Studio) -> str:
    """Say where the lowest images are arbitrary: all of them tie (the zeros of a ReLU)."""
    if "bottom_value" not in result.data or not chosen:
        return ""
    lowest: xr.DataArray = result.data["bottom_value"].isel(rank=slice(studio.shown))
    if lowest.sizes["rank"] < 2:
        return ""
    tied = sum(int(np.ptp(feature.select(lowest, dims).values) == 0) for feature in chosen)
    if not tied:
        return ""
    return (
        f" The lowest values of {tied} of {counted(len(chosen), 'row')} all tie: which images stand there "
        "says nothing."
    )
