"""Non-negative components: the images that have most of each, the channels it is made of, how the loss fell."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report import figures, heatmaps, latent
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.words import counted, listed, number, percent, quoted

_MOST_CLASSES = 3  # named beside a component
_COLOURS = ("color", "colour")


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``nmf`` result, or of what a ``coupled_nmf`` says of one layer."""
    plates = []
    weights = result.data.get("neuron_weight")
    if weights is not None and _is_picture(weights):
        plates.append(_latent(weights, result, studio))
    elif weights is not None:
        plates.append(_channels(weights, result, layer, studio))
    plates.append(_loss(result, layer, studio))
    rows: list[Row] = []
    caption = None
    if "image_weight" in result.data:
        loads = np.asarray(result.data["image_weight"].transpose("image", "component").values, dtype=np.float64)
        shown = min(studio.neurons, loads.shape[1])
        rows = [_row(k, loads[:, k], result, studio) for k in range(shown)]
        usable = int(np.isfinite(loads).any(axis=1).sum())
        caption = (
            f"The images with the largest weight on the first {len(rows)} of "
            f"{counted(loads.shape[1], 'component')}, n = {counted(usable, 'image')}. The weights of a component are "
            "never negative and have length 1 together; components come by what they add to the activations."
            f"{_with_whom(result)}{quoted(result.parameters)}"
        )
    return Block(heading(result), plates=plates, rows=rows, caption=caption, facts=facts(result))


def _with_whom(result: Result) -> str:
    others = [str(name) for name in result.data.attrs.get("layers", []) if name != result.layer]
    return f" The same images and weights belong to {listed(others)}." if others else ""


def _is_picture(weights: xr.DataArray) -> bool:
    return any(dim in weights.dims for dim in _COLOURS) and {"row", "column"} <= set(weights.dims)


def _latent(weights: xr.DataArray, result: Result, studio: Studio) -> Plate:
    colour = next(dim for dim in _COLOURS if dim in weights.dims)
    pictures = np.asarray(weights.transpose("component", "row", "column", colour).values, dtype=np.float64)
    shown = pictures[: latent.MOST]
    caption = (
        f"Latent images: the pictures' part of the first {len(shown)} of {counted(len(pictures), 'component')}, each "
        "from 0 (black) to its own maximum."
    )
    return studio.plate(latent.pictures(shown), result, "latent", f"{len(shown)} latent images", caption)


def _channels(weights: xr.DataArray, result: Result, layer: Layer, studio: Studio) -> Plate:
    table = np.asarray(weights.transpose("component", ...).values, dtype=np.float64)
    pooled = table.reshape(*table.shape[:2], -1).sum(axis=2)
    share = pooled / np.maximum(pooled.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    what = str(weights.transpose("component", ...).dims[1])
    summed = ", summed over its positions" if table.ndim > 2 else ""
    caption = (
        f"What {counted(len(share), 'component')} of {layer.name} are made of: the share of each of "
        f"{counted(share.shape[1], what)}{summed}. "
    )
    half = [int(np.searchsorted(np.cumsum(np.sort(row)[::-1]), 0.5 * row.sum()) + 1) for row in share if row.any()]
    if half:
        caption += f"Half of a component lies in {_span(half)} of them. "
    dead = int((pooled.sum(axis=0) == 0).sum())
    if dead:
        caption += f"{counted(dead, what)} without weight in any."
    figure = heatmaps.shares(share.astype(np.float32), what)
    alt = f"Heat map, {counted(len(share), 'component')} by {counted(share.shape[1], what)}"
    return studio.plate(figure, result, "channels", alt, caption.strip())


def _span(counts: list[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _loss(result: Result, layer: Layer, studio: Studio) -> Plate:
    attrs = result.data.attrs
    losses = np.asarray(result.data["layer_loss" if "layer_loss" in result.data else "loss"].values, dtype=np.float64)
    total = float(attrs.get("total_squares", 0.0)) or 1.0
    errors = np.sqrt(losses / total)
    reached = f" to {percent(float(errors[-1]))} of ‖X‖" if errors.size else ""
    caption = f"Error ‖X − FOᵀ‖ of {layer.name} after each of {counted(errors.size, 'iteration')}, down{reached}"
    caption += f" ({number(float(attrs['rmse']))} per entry)." if "rmse" in attrs else "."
    if "converged" in attrs:
        caption += " The tolerance was reached." if attrs["converged"] else " The tolerance was not reached."
    if "passes" in attrs:
        caption += f" {counted(int(attrs['passes']), 'pass', 'passes')} over the activations."
    alt = f"Error by iteration, down{reached}"
    return studio.plate(figures.convergence(errors), result, "loss", alt, caption)


def _row(component: int, loads: NDArray[np.float64], result: Result, studio: Studio) -> Row:
    finite = np.flatnonzero(np.isfinite(loads))
    order = finite[np.argsort(-loads[finite], kind="stable")]
    order = order[loads[order] > 0]
    numbers = result.data["image"].values if "image" in result.data.coords else np.arange(loads.size)
    note = []
    if "size" in result.data:
        note.append(f"size {number(float(result.data['size'].values[component]))}")
    note.append(f"in {percent(len(order) / max(1, len(finite)))} of the images")
    if named := _classes(loads, numbers, studio):
        note.append(f"most in {named}")
    tiles = [studio.tile(int(numbers[place]), float(loads[place])) for place in order[: studio.shown]]
    return Row(f"Component {component + 1}", ", ".join(note), tiles, [])


def _classes(loads: NDArray[np.float64], numbers: NDArray[np.int64], studio: Studio) -> str:
    """Return the classes whose images have most of a component, with their share of it."""
    if studio.images.labels is None:
        return ""
    labels = np.array([studio.images.label(int(image)) for image in numbers])
    known = (labels >= 0) & np.isfinite(loads)
    total = float(loads[known].sum())
    if not total:
        return ""
    shares = np.bincount(labels[known], weights=loads[known]) / total
    order = np.argsort(-shares, kind="stable")[:_MOST_CLASSES]
    names = [(studio.images.class_name(int(c)), percent(float(shares[c]))) for c in order if shares[c] > 0]
    return ", ".join(f"{name} ({share})" for name, share in names)
