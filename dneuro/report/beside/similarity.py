"""How similar two neurons of a layer are on average, over depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.report import depths
from dneuro.report.beside.table import Line, Table, goes
from dneuro.report.blocks import Plate, Studio
from dneuro.report.contents import Result
from dneuro.report.depths import Curve
from dneuro.report.sections.similarity import METRICS, TITLES
from dneuro.report.words import number, quoted


def build(result: Result, studio: Studio) -> Table:
    """Return the table of one ``mean_similarity`` result."""
    data = result.data
    metrics = [metric for metric in METRICS if metric in data]
    plates = [_plate(metric, result, studio) for metric in metrics]
    heads = ("Compared", *(head for metric in metrics for head in (f"{TITLES[metric]}, mean ± σ", "Pairs")))
    files = {layer.name: layer.file for layer in studio.contents.layers}
    lines = []
    for name in map(str, data["layer"].values):
        row = data.sel(layer=name)
        cells = [f"{int(row['features']):,}"]
        for metric in metrics:
            mean, spread, pairs = (row[key] for key in (metric, f"{metric}_std", f"{metric}_pairs"))
            cells += [f"{number(float(mean))} ± {number(float(spread))}", f"{int(pairs):,}"]
        lines.append(Line(name, files.get(name), tuple(cells)))
    caption = (
        "Per layer: what is compared, every two of them; mean ± standard deviation over the pairs that have a value, "
        f"each counted once, and the number of these. {_compared(result, studio)} {studio.basis(result)}."
        f"{quoted(result.parameters)}"
    )
    return Table(f"Step {result.step}", plates, heads, lines, caption)


def _compared(result: Result, studio: Studio) -> str:
    """Return what the matrices were made of."""
    of = result.parameters.get("of")
    found = (other for layer in studio.contents.layers for other in layer.results if other.step == of)
    rows = next((str(other.parameters.get("of", "activation")) for other in found), "activation")
    if rows == "activation":
        return "Compared: activations over the images; distances also tell how strongly a layer is active."
    return f"Compared: rows of step {rows}."


def _plate(metric: str, result: Result, studio: Studio) -> Plate:
    mean, spread = _values(result, metric), _values(result, f"{metric}_std")
    layers = [str(name) for name in result.data["layer"].values]
    title = TITLES[metric]
    figure = depths.curves(layers, {"mean of all pairs, ± 1 σ": Curve(mean, spread)}, title,
                           from_zero=metric == "euclidean")  # fmt: skip
    caption = f"{title} of two neurons of a layer over depth: the mean over all pairs, shaded ± 1 standard deviation."
    caption += f" It {goes(mean, layers)}. {_compared(result, studio)}"
    return studio.plate(figure, result, metric, f"Mean {title} over depth", caption + quoted(result.parameters))


def _values(result: Result, name: str) -> NDArray[np.float64]:
    return np.asarray(result.data[name].values, dtype=np.float64)
