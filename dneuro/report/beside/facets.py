"""How facets, sparsity and flatness go with depth, beside chance: a line for each layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report import depths, ridges
from dneuro.report.beside.table import Line, Table, goes
from dneuro.report.blocks import Plate, Studio
from dneuro.report.contents import Result
from dneuro.report.depths import Curve
from dneuro.report.ridges import Fit
from dneuro.report.sections.facets import threshold_words
from dneuro.report.words import NOTHING, number, percent, quoted

_MATTERS = 1e-3
"""From here on a least flatness is drawn."""
_INDICES = {"mf": "multi-facetedness MF ÷ largest", "gini": "sparsity (Gini index)", "flatness": "flatness"}


def build(result: Result, studio: Studio) -> Table:
    """Return the table of one ``facets`` result over all layers."""
    data = result.data
    plates = [
        _facets(result, studio),
        _shape(result, studio),
        _fractions(result, studio),
        *(_ridges(name, result, studio) for name in _INDICES),
    ]
    cutoff = number(float(result.parameters["cutoff"]))
    per_layer = bool(result.parameters.get("per_layer"))
    heads = (
        "Neurons (without MF)", "MF ÷ largest", "From, to", "By chance", "Gini index", "Flatness",
        *(("Threshold",) if per_layer else ()), f"Single-faceted (p < {cutoff})", f"Multi-faceted (p < {cutoff})",
    )  # fmt: skip
    files = {layer.name: layer.file for layer in studio.contents.layers}
    lines = [
        Line(name, files.get(name), _cells(data.isel(layer=place), per_layer=per_layer))
        for place, name in enumerate(_layers(result))
    ]
    caption = (
        "Per layer: neurons (and those without MF: no image counts, or there is one class); mean ± standard deviation, "
        f"smallest and largest MF, divided by {number(float(data.attrs['largest']))}, the largest of all layers; what "
        "labels by chance give; mean ± standard deviation of the Gini index and the flatness; the share of neurons "
        f"below and above the threshold, {threshold_words(per_layer)}"
        f"{'' if per_layer else ' (' + number(float(data['threshold'].values[0])) + ')'}, and how many of these are "
        f"significant, one-sided under a normal fitted to the layer's others. {studio.basis(result)}."
        f"{quoted(result.parameters)}"
    )
    return Table(f"Step {result.step}", plates, heads, lines, caption)


def _layers(result: Result) -> list[str]:
    return [str(name) for name in result.data["layer"].values]


def _values(result: Result, name: str) -> NDArray[np.float64]:
    return np.asarray(result.data[name].values, dtype=np.float64)


def _curve(result: Result, name: str) -> Curve:
    return Curve(_values(result, f"{name}_mean"), _values(result, f"{name}_std"))


def _chance(result: Result) -> Curve | None:
    if "mf_chance" not in result.data or not np.isfinite(result.data["mf_chance"].values).any():
        return None
    return Curve(_values(result, "mf_chance"), _values(result, "mf_chance_std"))


def _facets(result: Result, studio: Studio) -> Plate:
    chance = _chance(result)
    curve = _curve(result, "mf")
    meant = threshold_words(result.parameters.get("per_layer"))
    figure = depths.curves(_layers(result), {"MF": curve}, "MF ÷ largest of all layers", chance=chance,
                           lines={meant: _values(result, "threshold")})  # fmt: skip
    caption = (
        "Multi-facetedness over depth: mean over the neurons of each layer, shaded ± 1 standard deviation. It "
        f"{goes(curve.mean, _layers(result))}. Dash-dotted: the threshold, {meant}."
    )
    if chance is not None:
        low, high = float(np.nanmin(chance.mean)), float(np.nanmax(chance.mean))
        much = number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"
        caption += f" Labels by chance give {much}"
        drawn = not depths.is_far(chance.mean, [curve.mean])
        caption += " (dashed): a layer there tells classes no better." if drawn else ", which is off the scale."
    caption += quoted(result.parameters)
    return studio.plate(figure, result, "mf", "Mean MF over depth", caption)


def _shape(result: Result, studio: Studio) -> Plate:
    sparse, flat = _curve(result, "gini"), _curve(result, "flatness")
    lines = {}
    caption = (
        "Sparsity (Gini index) and flatness over depth: means over the neurons of each layer, shaded ± 1 standard "
        f"deviation. Sparsity {goes(sparse.mean, _layers(result))}, flatness {goes(flat.mean, _layers(result))}."
    )
    least = _values(result, "flatness_least") if "flatness_least" in result.data else np.zeros(1)
    if np.nanmax(least) > _MATTERS:
        lines = {"least flatness possible": least}
        caption += (
            f" Dash-dotted: with so few images per class no flatness can lie below {number(float(np.nanmax(least)))}."
        )
    figure = depths.curves(_layers(result), {"sparsity": sparse, "flatness": flat}, "mean over the layer", lines=lines)
    caption += quoted(result.parameters)
    return studio.plate(figure, result, "shape", "Mean sparsity and flatness over depth", caption)


def _fractions(result: Result, studio: Studio) -> Plate:
    having = np.maximum(_values(result, "neurons") - _values(result, "without_mf"), 1)
    parts = [
        (f"{side}-faceted", _values(result, f"{side}_share"), _values(result, f"{side}_significant") / having)
        for side in ("multi", "single")
    ]
    cutoff = number(float(result.parameters["cutoff"]))
    figure = depths.fractions(_layers(result), parts, "share of the layer's neurons", f"p < {cutoff}")
    multi = 100 * _values(result, "multi_share")
    caption = (
        "Single- and multi-faceted neurons over depth: the share of each layer's neurons on either side of the "
        f"threshold, and, darker, those that lie there with p < {cutoff}. The multi-faceted share, in per cent, "
        f"{goes(multi, _layers(result))}."
    )
    caption += quoted(result.parameters)
    return studio.plate(figure, result, "fractions", "Shares of single- and multi-faceted neurons over depth", caption)


def _ridges(name: str, result: Result, studio: Studio) -> Plate:
    layers = _layers(result)
    found = {layer.name: layer for layer in studio.contents.layers}
    samples, fits = {}, {}
    for place, layer in enumerate(layers):
        step = result.step if name == "mf" else str(result.parameters.get("of"))
        own = next((r for r in found[layer].results if r.step == step), None) if layer in found else None
        values = np.empty(0) if own is None else np.asarray(own.data[name].values, dtype=np.float64).ravel()
        samples[layer] = values if name == "mf" else values[values >= 0]  # a row of zeros has a flatness of −1
        fits[layer] = Fit(*(float(result.data[f"{name}_{part}"].values[place]) for part in ("mean", "std")))
    chance, line = None, None
    caption = (
        f"Densities of the {_INDICES[name]}, layer by layer, by Gaussian kernels of Scott's width, each as high as the "
        "others, with the normal that has the layer's mean and standard deviation."
    )
    if name == "mf":
        if _chance(result) is not None:
            chance = Fit(*(float(np.nanmean(_values(result, part))) for part in ("mf_chance", "mf_chance_std")))
            if not depths.is_far(np.array([chance.mean]), list(samples.values())):
                caption += " Dashed: labels by chance."
        if not result.parameters.get("per_layer"):
            line = float(result.data["threshold"].values[0]), threshold_words(False)
            caption += f" Dash-dotted: the threshold, {line[1]}."
    most = np.inf if name == "mf" else 1.0
    figure = ridges.ridges(samples, fits, _INDICES[name], chance=chance, line=line, most=most)
    caption += quoted(result.parameters)
    return studio.plate(figure, result, f"{name}-densities", f"Densities of the {name} of each layer", caption)


def _cells(row: xr.Dataset, *, per_layer: bool) -> tuple[str, ...]:
    def said(name: str) -> str:
        return number(float(row[name])) if name in row else NOTHING

    def about(mean: str, spread: str) -> str:
        return f"{said(mean)} ± {said(spread)}" if mean in row else NOTHING

    sides = [
        f"{percent(float(row[f'{side}_share']))} ({int(row[f'{side}_significant']):,})" for side in ("single", "multi")
    ]
    return (
        f"{int(row['neurons']):,} ({int(row['without_mf']):,})", about("mf_mean", "mf_std"),
        f"{said('mf_min')}, {said('mf_max')}", about("mf_chance", "mf_chance_std"), about("gini_mean", "gini_std"),
        about("flatness_mean", "flatness_std"), *((said("threshold"),) if per_layer else ()), *sides,
    )  # fmt: skip
