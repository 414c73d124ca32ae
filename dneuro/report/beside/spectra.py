"""The spectra of several layers over each other, and a line of numbers for each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dneuro.report import figures
from dneuro.report.beside import tops
from dneuro.report.beside.table import Line, Table
from dneuro.report.blocks import Plate, Studio
from dneuro.report.contents import Contents, Layer, Result
from dneuro.report.words import NOTHING, counted, listed, number, percent, quoted

PAPER_SIGMA, PAPER_IMAGES = 200.0, 6000
"""From which singular value on Zhang calls it large, and of how many images."""
_RANK = 8


def tables(studio: Studio) -> list[Table]:
    """Return what is to be said of every svd step that was asked of more than one layer."""
    steps: dict[str, list[tuple[Layer, Result]]] = {}
    for layer in studio.contents.layers:
        for result in layer.results:
            if result.analysis == "svd" and "singular_value" in result.data:
                steps.setdefault(result.step, []).append((layer, result))
    made = []
    for step, found in steps.items():
        if len(found) > 1:
            made += [_table(step, found, studio), tops.table(step, found, studio)]
    return [table for table in made if table is not None]


def there(contents: Contents) -> bool:
    """Return whether some svd step was asked of several layers."""
    steps = [r.step for layer in contents.layers for r in layer.results if r.analysis == "svd"]
    return any(steps.count(step) > 1 for step in steps)


def _table(step: str, found: list[tuple[Layer, Result]], studio: Studio) -> Table:
    images = max(studio.taking_part(result) for _, result in found)
    large = PAPER_SIGMA * float(np.sqrt(images / PAPER_IMAGES))
    share = _share_of_all(found)
    heads = (
        "Neurons", "‖Z‖", "Largest σ", f"σ ≥ {PAPER_SIGMA:.0f}", f"σ ≥ {large:.3g}", "σ ≥ 10 % of the largest",
        f"Explained by the first {_RANK}", "Explained by all computed", f"Components for {percent(share)}",
    )  # fmt: skip
    lines = [Line(layer.name, layer.file, tuple(_cells(layer, result, large, share))) for layer, result in found]
    caption = (
        "Per layer: neurons, the norm of the standardised activations ‖Z‖ = √(Σσ²), and how many singular values are "
        f"large: at least {PAPER_SIGMA:.0f}, the paper's limit for {PAPER_IMAGES:,} images; {large:.3g}, the same for "
        f"n = {images:,}, as σ grows with √n; and a tenth of the layer's largest, which does not depend on its width "
        "(‖Z‖² is images × neurons). “≥” stands before a count where all that were computed pass. How much the "
        f"first {_RANK} components explain, and all that were computed (how many); and how many explain "
        f"{percent(share)} of ‖Z‖² together.{quoted(found[0][1].parameters)}"
    )
    plates = [_spectra(found, studio, large, absolute=True), _spectra(found, studio, large, absolute=False)]
    return Table(f"Step {step}", plates, heads, lines, caption)


def _explained(result: Result) -> NDArray[np.float64]:
    """Return the share of ‖Z‖² that so many components explain together."""
    return np.cumsum(np.asarray(result.data["explained_variance_ratio"].values, dtype=np.float64))


def _share_of_all(found: list[tuple[Layer, Result]]) -> float:
    """Return the largest twentieth that the components of every layer explain together, at least the first."""
    least = min((float(_explained(result)[-1:].sum()) for _, result in found), default=0.0)
    return max(1, int(20 * least)) / 20


def _cells(layer: Layer, result: Result, large: float, share: float) -> Iterator[str]:
    data = result.data
    singular = np.asarray(data["singular_value"].values, dtype=np.float64)
    yield NOTHING if layer.shape is None else f"{int(np.prod(layer.shape)):,}"
    total = data.attrs.get("total_variance")
    yield NOTHING if total is None else number(float(np.sqrt(total)))
    yield number(float(singular[0])) if singular.size else NOTHING
    for limit in (PAPER_SIGMA, large, 0.1 * float(singular[0])):
        count = int((singular >= limit).sum())
        yield f"≥ {count:,}" if count == singular.size else f"{count:,}"
    shares = _explained(result)
    yield percent(float(shares[min(_RANK, shares.size) - 1]))
    yield f"{percent(float(shares[-1]))} ({shares.size:,})"
    enough = int(np.searchsorted(shares, share)) + 1
    yield f"{enough:,}" if enough <= shares.size else f"> {shares.size:,}"


def _spectra(found: list[tuple[Layer, Result]], studio: Studio, large: float, *, absolute: bool) -> Plate:
    curves: dict[str, NDArray[np.float64]] = {}
    for layer, result in found:
        singular = np.asarray(result.data["singular_value"].values, dtype=np.float64)
        curves[layer.name] = singular if absolute else singular / singular[:1]
    names = listed(list(curves))
    images = counted(max(studio.taking_part(result) for _, result in found), "image")
    first = found[0][1]
    if absolute:
        figure = figures.spectra(curves, "singular value σ", large, f"{PAPER_SIGMA:.0f}, scaled to n")
        caption = (
            f"Singular values of {names}, n = {images}; dashed: the paper's limit of {PAPER_SIGMA:.0f}, scaled by "
            f"√(n / {PAPER_IMAGES:,}). ‖Z‖, and with it every σ, grows with the square root of a layer's neurons."
        )
    else:
        figure = figures.spectra(curves, "σ ÷ largest σ", 0.1, "a tenth")
        caption = f"The same, each as a share of the layer's largest: how fast the spectrum falls. n = {images}."
    kind = "spectra" if absolute else "spectra-relative"
    return studio.plate(figure, first, kind, f"Singular values of {names}", caption + quoted(first.parameters))
