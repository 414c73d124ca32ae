"""Top patches of neurons beside the independent components that they are made of, in each rendering."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report.blocks import Block, Row, Studio, facts, heading
from dneuro.report.contents import Layer, Result, file_names
from dneuro.report.sections.picking import Feature, most_varied
from dneuro.report.sprites import Sheet, as_bytes, sheet
from dneuro.report.words import counted, listed, number, percent, quoted

DIMS = ("channel",)
RENDERINGS = {"grey": "grey", "rgb": "R, G, B", "rgb8": "8 bit"}
"""Names of the rows of a sheet of components."""

_WHAT = {
    "grey": "of the patches in grey",
    "rgb": "of red, green and blue each alone, then combined, each colour over its own range",
    "rgb8": "the same in 8 bit, the three colours over one range, so that hues count",
}


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``patch_components`` result."""
    count = result.data["count"]
    chosen, variance = most_varied(layer, count, DIMS, studio.neurons)
    chosen = [feature for feature in chosen if int(feature.select(count, DIMS)) > 0]
    rows = [] if studio.vector else [_row(feature, result, layer, studio) for feature in chosen]
    order = "of largest variance, largest first" if variance is not None else "with the lowest numbers"
    renderings = " ".join(f"Row “{RENDERINGS[name]}”: {_WHAT[name]}." for name in _renderings(result))
    caption = (
        f"{counted(len(chosen), 'channel').capitalize()} of {count.size:,} {order}.{_patches(result, layer)} Right: "
        "the independent components that these are made of (FastICA, patches as samples), as what each adds to a "
        "patch; mid-grey adds nothing; those that make up most of the variance come first. "
        f"{renderings}{_matched(result)}{_lacking(result)} n = {counted(studio.taking_part(result), 'image')}."
    )
    return Block(heading(result), rows=rows, caption=caption + quoted(result.parameters), facts=facts(result))


def _renderings(result: Result) -> list[str]:
    return [name for name in RENDERINGS if name in result.data]


def _row(feature: Feature, result: Result, layer: Layer, studio: Studio) -> Row:
    data = result.data
    here = data.isel(channel=feature.index[0])
    notes = [counted(int(here["count"]), "patch", "patches")]
    if "top_value" in here:
        values = here["top_value"].values
        values = values[np.isfinite(values)]
        notes.append(f"those shown with activations of {number(float(values[0]))} to {number(float(values[-1]))}")
    shares = []
    for plane, name in (("grey", "grey components"), ("rgb", "of R, G, B")):
        if f"{plane}_share" in here:
            share = here[f"{plane}_share"].values
            shares.append(f"{percent(float(np.nansum(share)))} in {int(np.isfinite(share).sum())} {name}")
    stem = "/".join(["sheets", *file_names([f"{result.layer}-{result.step}"]), str(feature.numbers[0])])
    sheets = [_shown(here["patch"].values, int(here["count"]), feature, studio, stem)] if "patch" in here else []
    sheets += _components(here, feature, result, studio, stem)
    href = studio.neuron_link(layer, feature.numbers[0])
    note = "; of their variance ".join([", ".join(notes), *([", ".join(shares)] if shares else [])])
    return Row(feature.name.capitalize(), note, [], [], href, sheets=sheets)


def _shown(patches: NDArray[np.uint8], count: int, feature: Feature, studio: Studio, stem: str) -> Sheet:
    """Return the sheet of patches, as square as their number allows."""
    kept = [patch if place < count else None for place, patch in enumerate(_bytes(patches))]
    across = math.ceil(math.sqrt(len(kept)))
    rows = [kept[start : start + across] for start in range(0, len(kept), across)]
    alt = f"The {counted(min(count, len(kept)), 'patch', 'patches')} that excite {feature.name} most, best first"
    return sheet(studio.folder, f"{stem}-patches", rows, title="Top patches", alt=alt)


def _bytes(patches: NDArray[Any]) -> NDArray[np.uint8]:
    """Return patches as they can be shown; those that are no bytes over the range of all of them."""
    if patches.dtype == np.uint8:
        return patches
    values = patches.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values - low) / ((high - low) or 1.0)).astype(np.uint8)


def _components(here: xr.Dataset, feature: Feature, result: Result, studio: Studio, stem: str) -> list[Sheet]:
    rows, names = [], []
    for name in _renderings(result):
        values = here[name].values
        if name == "rgb8":
            there = np.isfinite(here["rgb_share"].values)
            rows.append([picture if known else None for picture, known in zip(values, there, strict=True)])
        else:
            pictures = values if values.ndim == 4 else values[..., None]
            rows.append([as_bytes(picture) for picture in pictures])
        names.append(RENDERINGS[name])
    if not any(picture is not None for row in rows for picture in row):
        return []
    alt = f"Components of {feature.name}, largest first: {listed(names)}"
    title = f"{counted(max(map(len, rows)), 'independent component')}, largest first"
    return [sheet(studio.folder, f"{stem}-components", rows, title=title, alt=alt, names=names)]


def _patches(result: Result, layer: Layer) -> str:
    """Say what is shown on the left."""
    shown = result.data.sizes.get("sample", 0) if "patch" in result.data else 0
    if not shown:
        return ""
    most = int(result.data["count"].max())
    rows, columns = (result.data["patch"].sizes[dim] for dim in ("row", "column"))
    sees = "the whole input" if layer.field is None else "what the winning position sees"
    beyond = "" if layer.field is None else ", the input's mean colour beyond its borders"
    return (
        f" Left: the {counted(shown, 'patch', 'patches')} with the highest activation, one per image, of up to "
        f"{most:,}: {sees} ({rows} × {columns} pixels{beyond})."
    )


def _matched(result: Result) -> str:
    if "rgb_correlation" not in result.data:
        return ""
    r = np.abs(np.delete(result.data["rgb_correlation"].values, 1, axis=-1))
    middle = number(float(np.nanmedian(r))) if np.isfinite(r).any() else "NaN"
    how = "brought into the order and sign of the green ones" if result.parameters.get("match", True) else "not matched"
    return f" Components of red and blue are {how}: median |r| with green {middle}."


def _lacking(result: Result) -> str:
    """Say of how many channels something is missing."""
    data, found = result.data, []
    dead = int((data["count"].values == 0).sum())
    if dead:
        found.append(f" Without any activation above 0, and so without patches: {counted(dead, 'channel')}.")
    for plane, name in (("grey", "grey"), ("rgb", "R, G, B")):
        if f"{plane}_converged" in data:
            converged, rank = data[f"{plane}_converged"].values, data[f"{plane}_rank"].values
            open_ = int((~converged.astype(bool) & (rank > 0)).sum())
            if open_:
                found.append(f" Not converged ({name}): {open_:,} of {rank.size:,}.")
    return "".join(found)
