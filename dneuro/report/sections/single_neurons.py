"""Neurons of largest variance, a random choice beside them, their images, and what these have in common."""

from __future__ import annotations

import numpy as np

from dneuro.report import figures, heatmaps
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections.svd import standardised
from dneuro.report.words import counted, number, percent, quoted


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``single_neurons`` result."""
    data = result.data
    random = np.asarray(data["random"].values, dtype=bool)
    most = [int(i) for i in np.flatnonzero(~random)][: studio.neurons]
    drawn = [int(i) for i in np.flatnonzero(random)][: max(1, studio.neurons // 2)]
    rows = [_row(place, result, studio) for place in (*most, *drawn)]
    caption = (
        f"The images with the highest and with the lowest value of the {counted(len(most), 'neuron')} of largest "
        f"variance, largest first, then of {len(drawn)} drawn at random; n = "
        f"{counted(int(data.attrs['images']), 'image')}.{standardised(data.attrs.get('standardize', ''))} Where many "
        f"images tie for the lowest value, which of them stand there says nothing.{quoted(result.parameters)}"
    )
    plates = [_variances(result, layer, studio), _overlaps(result, layer, studio, random)]
    return Block(heading(result), plates=plates, rows=rows, paired=True, caption=caption, facts=facts(result))


def _variances(result: Result, layer: Layer, studio: Studio) -> Plate:
    variance = np.asarray(result.data["variance"].values, dtype=np.float64).ravel()
    silent = int((variance == 0).sum())
    caption = (
        f"Histogram of the variance of all {counted(variance.size, 'neuron')} of {layer.name} over n = "
        f"{counted(int(result.data.attrs['images']), 'image')}: largest {number(float(variance.max()))}, median "
        f"{number(float(np.median(variance)))}, mean {number(float(variance.mean()))}."
        f"{standardised(result.data.attrs.get('standardize', ''))}"
    )
    if silent:
        caption += f" Without any variance: {counted(silent, 'neuron')}."
    if figures.is_wide(variance):
        caption += " Logarithmic axis; zeros cannot be shown on it."
    figure = figures.histogram(variance, "variance over the images", "neurons")
    alt = f"Histogram of the variance of {counted(variance.size, 'neuron')}"
    return studio.plate(figure, result, "variances", alt, caption + quoted(result.parameters))


def _overlaps(result: Result, layer: Layer, studio: Studio, random: np.ndarray) -> Plate:
    data = result.data
    overlap = np.asarray(data["overlap"].values, dtype=np.float64)
    k = int(data.sizes["rank"])
    names = [name(result, place) for place in range(len(overlap))]
    shown = overlap.copy()
    np.fill_diagonal(shown, np.nan)
    figure = heatmaps.shared(shown.astype(np.float32), names, f"share of the top {k} images in common", "neuron")
    lowest = np.asarray(data["bottom_overlap"].values, dtype=np.float64)
    caption = (
        f"Share of the k = {k} top images that two neurons of {layer.name} have in common: "
        f"{int((~random).sum())} of largest variance (mean {number(_off(overlap, ~random))}), then {int(random.sum())} "
        f"drawn at random (mean {number(_off(overlap, random))}). Two random sets of images would share "
        f"{number(float(data.attrs['chance']))}. Of the {k} lowest images they share {number(_off(lowest, ~random))} "
        f"and {number(_off(lowest, random))}; at the lowest value of a neuron, before standardising, tie on average "
        f"{number(float(data['raw_ties'].values.mean()))} of {counted(int(data.attrs['images']), 'image')}. The "
        "diagonal is left out."
    )
    alt = f"Heat map of the top images that {counted(len(overlap), 'neuron')} have in common"
    return studio.plate(figure, result, "overlap", alt, caption + quoted(result.parameters))


def _off(values: np.ndarray, which: np.ndarray) -> float:
    """Return the mean of the pairs among some."""
    some = values[np.ix_(which, which)]
    pairs = some[~np.eye(len(some), dtype=bool)]
    return float(pairs.mean()) if pairs.size else float("nan")


def name(result: Result, place: int) -> str:
    """Return where a neuron lies: ``17,3,4``."""
    dims = [dim for dim in ("channel", "y", "x", "neuron") if f"{dim}_place" in result.data]
    return ",".join(str(int(result.data[f"{dim}_place"].values[place])) for dim in dims)


def _row(place: int, result: Result, studio: Studio) -> Row:
    data = result.data
    notes = [f"variance {number(float(data['chosen_variance'].values[place]))}"]
    ties = int(data["raw_ties"].values[place])
    if ties > 1:
        share = percent(ties / int(data.attrs["images"]))
        notes.append(f"{ties:,} images ({share}) tie at its lowest activation {number(float(data['raw_min'][place]))}")
    ends = []
    for end in ("top", "bottom"):
        images = data[f"{end}_image"].values[place]
        spanned = {studio.images.label(int(image)) for image in images} - {-1}
        if end == "top" and spanned:
            notes.append(f"its top {len(images)} span {counted(len(spanned), 'class', 'classes')}")
        values = data[f"{end}_value"].values[place]
        ends.append([
            studio.tile(int(image), float(value))
            for image, value in zip(images[: studio.shown], values[: studio.shown], strict=True)
        ])  # fmt: skip
    what = "Random neuron" if bool(data["random"].values[place]) else "Neuron"
    return Row(f"{what} ({name(result, place)})", ", ".join(notes), ends[0], ends[1])
