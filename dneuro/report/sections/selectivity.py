"""How selective the neurons of a layer are for classes, beside chance, and how that goes with depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.report import comparisons, depths, figures
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, features, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.sections import gallery
from dneuro.report.sections.picking import Feature, feature_dims
from dneuro.report.words import counted, number, percent, quoted

SURE = 0.05
"""Cut-off of p-values, as in the paper (Sadeghi)."""
_MATTERS = 1e-3
"""From here on a least flatness is drawn."""
_CURVES = {"MF": "mf", "Gini index": "gini", "class selectivity": "class_selectivity"}


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``selectivity`` result; facets have a section of their own where a step is about them."""
    elsewhere = any(
        other.analysis == "facets" and other.parameters.get("of") == result.step for other in layer.results
    )
    drawn = [
        None if elsewhere else _facets(result, layer, studio),
        _spread("gini", result, layer, studio),
        _spread("flatness", result, layer, studio),
        _selectivities(result, layer, studio),
        None if elsewhere else _by_depth(result, studio),
    ]
    rows = [] if elsewhere else _extremes(result, layer, studio)
    caption = None
    if rows:
        caption = (
            "The neurons of smallest and of largest MF, with their preferred class. "
            f"{gallery.caption(result.data['mf'], layer, studio)}"
        )
    plates = [plate for plate in drawn if plate is not None]
    return Block(heading(result), plates=plates, rows=rows, caption=caption, facts=facts(result))


def _values(result: Result, name: str) -> NDArray[np.float64]:
    if name not in result.data:
        return np.empty(0)
    return np.asarray(result.data[name].values, dtype=np.float64).ravel()


def _of(result: Result) -> str:
    of = result.parameters.get("of", "activation")
    return "mean activations per class" if of == "activation" else f"the counts of step {of}"


def _facets(result: Result, layer: Layer, studio: Studio) -> Plate | None:
    values = _values(result, "mf")
    if not values.size:
        return None
    dims = feature_dims(result.data["mf"])
    what, many = features(dims, [result.data.sizes[dim] for dim in dims])
    finite = values[np.isfinite(values)]
    caption = f"MF (flatness ÷ Gini index) of {many} of {layer.name}, from {_of(result)}, with the normal fitted to it"
    if finite.size:
        low, middle, high = (number(float(value)) for value in (finite.min(), finite.mean(), finite.max()))
        caption += f": mean {middle}, {low} to {high}"
    caption += "."
    chance, spread = _values(result, "mf_chance"), _values(result, "mf_chance_std")
    by_chance = None
    if np.isfinite(chance).any():
        by_chance = float(np.nanmean(chance)), float(np.nanmean(spread))
        caption += f" Labels by chance give {number(by_chance[0])} ± {number(by_chance[1])}."
    for name, side in (("p_low", "single-faceted"), ("p_high", "multi-faceted")):
        p = _values(result, name)
        if np.isfinite(p).any():
            share = float((p[np.isfinite(p)] < SURE).mean())
            caption += f" {side.capitalize()} with p < {SURE} within the layer: {percent(share)}."
    together = _together(result, studio)
    if together is not None and finite.size:
        caption += (
            f" Below the mean of all layers ({number(together)}) lie {percent(float((finite < together).mean()))}."
        )
    gone = values.size - finite.size
    if gone:
        caption += f" Left out, for they have no finite MF: {counted(gone, what)}."
    alt = f"Density of the multi-facetedness of {many}"
    figure = comparisons.density(values, "multi-facetedness MF", f"{what}s", chance=by_chance)
    return studio.plate(figure, result, "facets", alt, caption + quoted(result.parameters))


_SPREAD = {
    "gini": ("Sparsity (Gini index)", "0: every class alike, 1 − 1/N: one of N classes alone"),
    "flatness": ("Flatness", "1: every class alike, 0: one class alone"),
}


def _spread(name: str, result: Result, layer: Layer, studio: Studio) -> Plate | None:
    """Return how one index is spread, with the normal fitted to it."""
    values = _values(result, name)
    if name == "flatness":
        values = values[values >= 0]  # a row of zeros has −1
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    what, many = features(feature_dims(result.data[name]), [values.size])
    title, ends = _SPREAD[name]
    caption = (
        f"{title} of {many} of {layer.name}, from {_of(result)}, with the normal fitted to it: mean "
        f"{number(float(values.mean()))}, σ {number(float(values.std()))}; {ends}."
    )
    least = _values(result, "flatness_least").max(initial=0.0) if name == "flatness" else 0.0
    if least > _MATTERS:
        caption += f" With so few images per class none can lie below {number(float(least))}."
    line = (float(least), "least possible") if least > _MATTERS else None
    figure = comparisons.density(values, f"{title[0].lower()}{title[1:]}", f"{what}s", line=line, most=1.0)
    return studio.plate(figure, result, name, f"Density of the {name} of {many}", caption + quoted(result.parameters))


def _selectivities(result: Result, layer: Layer, studio: Studio) -> Plate | None:
    values = _values(result, "class_selectivity")
    finite = values[np.isfinite(values)]
    if not values.size:
        return None
    dims = feature_dims(result.data["class_selectivity"])
    what, many = features(dims, [result.data.sizes[dim] for dim in dims])
    caption = f"Class selectivity of {many} of {layer.name}, from {_of(result)}"
    if finite.size:
        caption += f": mean {number(float(finite.mean()))}, median {number(float(np.median(finite)))}"
    caption += "."
    if values.size > finite.size:
        caption += f" Without one (NaN): {counted(values.size - finite.size, what)}."
    alt = f"Histogram of the class selectivity of {many}"
    figure = figures.histogram(values, "class selectivity", f"{what}s")
    return studio.plate(figure, result, "selectivity", alt, caption + quoted(result.parameters))


def _siblings(result: Result, studio: Studio) -> list[tuple[str, Result]]:
    """Return the results of this step in all layers, in their order."""
    return [
        (layer.name, other)
        for layer in studio.contents.layers
        for other in layer.results
        if other.step == result.step and other.analysis == result.analysis
    ]


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _together(result: Result, studio: Studio) -> float | None:
    """Return the mean MF over all layers of the step, if there are several."""
    siblings = _siblings(result, studio)
    if len(siblings) < 2:
        return None
    return _mean(np.concatenate([_values(other, "mf") for _, other in siblings]))


def _by_depth(result: Result, studio: Studio) -> Plate | None:
    siblings = _siblings(result, studio)
    if len(siblings) < 2 or siblings[0][1] is not result:  # once, on the page of the first layer
        return None
    curves = {
        label: depths.Curve(np.array([_mean(_values(other, name)) for _, other in siblings]))
        for label, name in _CURVES.items()
    }
    caption = (
        f"Means over {counted(len(siblings), 'layer')}, from the first to the last, from {_of(result)}."
        f"{quoted(result.parameters)}"
    )
    alt = f"Mean selectivity indices of {counted(len(siblings), 'layer')}"
    figure = depths.curves([layer for layer, _ in siblings], curves, "mean over the layer")
    return studio.plate(figure, result, "depth", alt, caption)


def _extremes(result: Result, layer: Layer, studio: Studio) -> list[Row]:
    """Return the neurons at either end of MF, as far as their top images are known."""
    if "mf" not in result.data:
        return []
    values = _values(result, "mf")
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    half = max(1, studio.neurons // 4)
    chosen = np.concatenate([order[:half], order[max(half, len(order) - half) :]])

    def note(place: int, _: Feature) -> str:
        said = [f"MF {number(float(values[place]))}"]
        for name, words in (("gini", "Gini {}"), ("class_selectivity", "class selectivity {}")):
            if name in result.data:
                said.append(words.format(number(float(_values(result, name)[place]))))
        preferred = int(_values(result, "preferred_class")[place]) if "preferred_class" in result.data else -1
        return ", ".join([*said, *([f"prefers {studio.images.class_name(preferred)}"] if preferred >= 0 else [])])

    return gallery.rows(result.data["mf"], chosen, note, layer, studio)
