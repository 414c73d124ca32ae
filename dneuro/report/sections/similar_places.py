"""Where the neurons lie that are most similar: by offset in the layer, and by channel."""

from __future__ import annotations

import numpy as np

from dneuro.report import heatmaps
from dneuro.report.blocks import Block, Plate, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.words import counted, number, percent, quoted


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``similar_places`` result."""
    plates = [_offsets(result, layer, studio), _channels(result, layer, studio)]
    return Block(heading(result), plates=plates, facts=facts(result))


def _offsets(result: Result, layer: Layer, studio: Studio) -> Plate:
    data, attrs = result.data, result.data.attrs
    found = np.asarray((data["own"] + data["other"]).values, dtype=np.float64)
    chance = np.asarray((data["own_chance"] + data["other_chance"]).values, dtype=np.float64)
    ratio = np.divide(found, chance, out=np.full(found.shape, np.nan), where=chance > 0)
    figure = heatmaps.plane(
        ratio.astype(np.float32), data["dy"].values, data["dx"].values, "pairs ÷ pairs by chance", "offset along"
    )
    near = int(result.parameters.get("neighbours", data.sizes["neighbour"]))
    caption = (
        f"Where in {layer.name} the {near} neurons lie that are most similar to a neuron, by their offset (y, x) from "
        f"it, in any channel: how many times more pairs than by chance; {counted(int(attrs['pairs']), 'pair')}, n = "
        f"{counted(int(attrs['images']), 'image')}. At the same position lie {percent(attrs['same_place_share'])} (by "
        f"chance {percent(attrs['same_place_share_chance'])}), in the same channel {percent(attrs['own_share'])} (by "
        f"chance {percent(attrs['own_share_chance'])}); the mean distance is {number(attrs['mean_distance'])} "
        f"positions (by chance {number(attrs['mean_distance_chance'])}). Chance: neighbours drawn from all others."
    )
    alt = "Heat map of pairs of similar neurons by offset"
    return studio.plate(figure, result, "offsets", alt, caption + quoted(result.parameters))


def _channels(result: Result, layer: Layer, studio: Studio) -> Plate:
    pairs = np.asarray(result.data["channel_pairs"].values, dtype=np.float64)
    total = pairs.sum(axis=1, keepdims=True)
    share = np.divide(pairs, total, out=np.full(pairs.shape, np.nan), where=total > 0)
    names = [str(number) for number in range(len(pairs))]
    figure = heatmaps.shared(share.astype(np.float32), names, "share of a channel's pairs", "channel")
    off = share.copy()
    np.fill_diagonal(off, np.nan)
    closest = [divmod(int(i), len(off)) for i in np.argsort(-np.nan_to_num(off, nan=-1), axis=None)[:5]]
    said = ", ".join(f"{a} to {b} ({percent(float(off[a, b]))})" for a, b in closest if off[a, b] > 0)
    caption = (
        f"In which channel (column) of {layer.name} the neurons most similar to those of a channel (row) lie, as a "
        f"share of the row's pairs; on the diagonal its own."
    ) + (f" Most outside the own channel: {said}." if said else "")
    alt = f"Heat map of pairs of similar neurons between {counted(len(pairs), 'channel')}"
    return studio.plate(figure, result, "channels", alt, caption + quoted(result.parameters))
