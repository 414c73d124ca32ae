"""The single- and the multi-faceted neurons of a layer, with what they respond to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.report import comparisons
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, features, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.depths import is_far
from dneuro.report.sections import gallery
from dneuro.report.sections.picking import Feature, feature_dims
from dneuro.report.words import counted, cut, number, percent, quoted

_SIDES = (("lowest", 0, "Single-faceted"), ("highest", 1, "Multi-faceted"))
_CLASSES = 3
"""Named of each neuron."""
_MOST_LETTERS = 32


def build(result: Result, layer: Layer, studio: Studio) -> list[Block]:
    """Return the blocks of one ``facets`` result: the density, then a gallery of either side."""
    first = Block(heading(result), plates=[_density(result, layer, studio)], facts=facts(result))
    galleries = [_gallery(end, side, title, result, layer, studio) for end, side, title in _SIDES]
    return [first, *(block for block in galleries if block is not None)]


def _values(result: Result | None, name: str) -> NDArray[np.float64]:
    if result is None or name not in result.data:
        return np.empty(0)
    return np.asarray(result.data[name].values, dtype=np.float64).ravel()


def step_of(result: Result, layer: Layer) -> Result | None:
    """Return the result that another one is about, of the same layer."""
    return next((other for other in layer.results if other.step == result.parameters.get("of")), None)


def threshold_words(per_layer: object) -> str:
    """Return what the threshold is the mean of."""
    return "the layer's mean" if per_layer else "the mean of all layers"


def _density(result: Result, layer: Layer, studio: Studio) -> Plate:
    data, attrs = result.data, result.data.attrs
    values, facet = _values(result, "mf"), _values(result, "facet")
    finite = values[np.isfinite(values)]
    what, many = features(feature_dims(data["mf"]), [values.size])
    threshold, scale = float(attrs["threshold"]), float(attrs["largest"])
    meant = threshold_words(result.parameters.get("per_layer"))
    caption = (
        f"MF (flatness ÷ Gini index) of {many} of {layer.name}, divided by {number(scale)}, the largest of all layers"
        f"{_where(attrs.get('layer_of_largest'))}, with the normal fitted to it"
    )
    if finite.size:
        caption += f": mean {number(float(finite.mean()))}, σ {number(float(finite.std()))}"
    caption += f". The threshold, {number(threshold)}, is {meant}. {_parts(facet, _values(result, 'significant'))}"
    selectivity = step_of(result, layer)
    if gone := int(np.isnan(values).sum()):
        empty = (_values(selectivity, "flatness") == -1).sum() == gone  # rows of zeros; in one class none is flat
        caption += f" Without MF{', for nothing was counted' if empty else ''}: {counted(gone, what)}."
    if endless := int(np.isinf(values).sum()):
        caption += f" Not drawn, for all classes are alike to {'it' if endless == 1 else 'them'}: "
        caption += f"{counted(endless, what)}."
    chance, spread = _values(selectivity, "mf_chance"), _values(selectivity, "mf_chance_std")
    by_chance = None
    if np.isfinite(chance).any():
        by_chance = float(np.nanmean(chance)) / scale, float(np.nanmean(spread)) / scale
        caption += f" Labels by chance give {number(by_chance[0])} ± {number(by_chance[1])}"
        if far := is_far(np.array(by_chance[:1]), [values]):
            by_chance = None
        caption += ", which is off the scale." if far else "."
    figure = comparisons.density(
        values, "multi-facetedness MF ÷ largest", f"{what}s", chance=by_chance, line=(threshold, meant),
        sides=("single-faceted", "multi-faceted"),
    )  # fmt: skip
    alt = f"Density of the multi-facetedness of {many}, with the threshold at {number(threshold)}"
    return studio.plate(figure, result, "mf", alt, caption + quoted(result.parameters))


def _where(layer: object) -> str:
    return f" (in {layer})" if layer else ""


def _parts(facet: NDArray[np.float64], significant: NDArray[np.float64]) -> str:
    having = max(1, int((facet >= 0).sum()))
    said = []
    for _, side, title in _SIDES:
        mine = facet == side
        sure = int((mine & (significant > 0)).sum())
        said.append(f"{title}: {percent(float(mine.sum()) / having)}, {sure:,} of {int(mine.sum()):,} significantly.")
    return " ".join(said)


def _gallery(end: str, side: int, title: str, result: Result, layer: Layer, studio: Studio) -> Block | None:
    """Return the most extreme neurons of one side of the threshold."""
    facet, array = _values(result, "facet"), result.data["mf"]
    numbers = np.asarray(result.data[end].values, dtype=np.int64)
    numbers = numbers[numbers >= 0]
    chosen = numbers[facet[numbers] == side][: max(1, studio.neurons // 2)]
    rows = _rows(chosen, result, layer, studio)
    if not rows:
        return None
    what = rows[0].heading.split(" ")[0].lower()
    of = int((facet == side).sum())
    caption = (
        f"The {counted(len(rows), what)} of {'smallest' if side == 0 else 'largest'} MF among {of:,} "
        f"{title.lower()} ones, the most extreme first: MF ÷ largest; p, one-sided, under a normal fitted to the "
        f"layer's other {what}s; the classes that most of {'its' if len(rows) == 1 else 'their'} counted images belong "
        f"to. {gallery.caption(array, layer, studio)}"
    )
    return Block(f"{title} neurons", rows=rows, caption=caption)


def _rows(chosen: NDArray[np.int64], result: Result, layer: Layer, studio: Studio) -> list[Row]:
    selectivity = step_of(result, layer)
    counts = step_of(selectivity, layer) if selectivity is not None else None
    mf, p, significant = (_values(result, name) for name in ("mf", "p", "significant"))
    indices = {words: _values(selectivity, name) for name, words in (("gini", "Gini"), ("flatness", "flatness"))}

    def note(place: int, feature: Feature) -> str:
        sure = " (significant)" if significant[place] else ""
        said = [f"MF {number(float(mf[place]))}", f"p = {number(float(p[place]))}{sure}"]
        said += [f"{words} {number(float(values[place]))}" for words, values in indices.items() if values.size]
        return "; ".join(part for part in (", ".join(said), _classes(counts, feature, studio)) if part)

    return gallery.rows(result.data["mf"], chosen, note, layer, studio)


def _classes(counts: Result | None, feature: Feature, studio: Studio) -> str:
    """Return the classes that most counted images of a neuron belong to, with their numbers."""
    if counts is None or "count" not in counts.data:
        return ""
    array = counts.data["count"]
    dims = feature_dims(array, "class")
    if len(dims) != len(feature.index):
        return ""
    row = np.asarray(feature.select(array, dims).values)
    most = np.argsort(-row, kind="stable")[:_CLASSES]
    names = [f"{cut(studio.images.class_name(int(i)), _MOST_LETTERS)} {row[i]:,}" for i in most if row[i] > 0]
    return ", ".join(names)
