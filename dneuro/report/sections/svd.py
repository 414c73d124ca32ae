"""Singular values, what they explain, and the images at either end of each component."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.report import figures
from dneuro.report.blocks import Block, Plate, Row, Studio, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.words import counted, number, percent, quoted

_MOST_TOP = 100  # images whose classes are counted, as in the paper (Zhang)


def build(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``svd`` result."""
    plates = [_spectrum(result, layer, studio)]
    rows: list[Row] = []
    caption = None
    if "score" in result.data:
        scores = _scores(result, studio)
        span = _span(scores, result, layer, studio)
        plates += [span] if span is not None else []
        rows = [_row(component, scores[:, component], result, studio) for component in range(_shown(result, studio))]
        caption = (
            f"The images with the highest and with the lowest score on the first {len(rows)} of "
            f"{counted(result.data.sizes['component'], 'component')}, n = {counted(_usable(scores), 'image')}. "
            "The score is the image's entry of the left singular vector; a component's sign is arbitrary."
            f"{quoted(result.parameters)}"
        )
    return Block(heading(result), plates=plates, rows=rows, paired=True, caption=caption, facts=facts(result))


def _spectrum(result: Result, layer: Layer, studio: Studio) -> Plate:
    data = result.data
    singular = np.asarray(data["singular_value"].values, dtype=np.float64)
    explained = None
    caption = f"The first {counted(singular.size, 'singular value')} of {layer.name}"
    if "image" in data.sizes:
        caption += f", n = {counted(studio.taking_part(result), 'image')}"
    if "explained_variance_ratio" in data:
        explained = np.asarray(data["explained_variance_ratio"].values, dtype=np.float64)
        together = percent(float(np.nansum(explained)))
        caption += f" (solid), and the variance that they explain together (dashed): {together}"
    caption += "."
    caption += standardised(data.attrs.get("standardize", result.parameters.get("standardize", "")))
    if "residual" in data and singular.size:
        worst = float(np.max(np.asarray(data["residual"].values, dtype=np.float64)))
        caption += f" Certificate: the residual of every component is at most {number(worst)}."
    if "reconstruction_error" in data.attrs:
        total = data.attrs.get("total_variance")
        whole = f" of ‖Z‖ = {number(float(np.sqrt(total)))}" if total is not None else ""
        error = float(data.attrs["reconstruction_error"])
        caption += f" Reconstruction error ‖Z − USVᵀ‖ = {number(error)}{whole}"
        entries = data.attrs.get("entries")
        each = f", {number(error / float(np.sqrt(entries)))} per entry (root mean square)" if entries else ""
        caption += f"{each}."
    if "threshold" in data.attrs:
        caption += f" These are all σ of at least {number(float(data.attrs['threshold']))}."
    if "method" in data.attrs:
        passes = data.attrs.get("passes")
        reads = f", {counted(int(passes), 'pass', 'passes')}" if passes else ""
        caption += f" Method {data.attrs['method']}{reads}."
    caption += quoted(result.parameters)
    alt = f"Singular values by component, from {_ends(singular)}"
    return studio.plate(figures.spectrum(singular, explained), result, "spectrum", alt, caption)


def standardised(how: object) -> str:
    """Return the sentence that says how Z was made."""
    sentences = {
        "image": " Each image was brought to mean 0 and variance 1 over its neurons.",
        "neuron": " Each neuron was brought to mean 0 and variance 1 over the images.",
        "center": " Each neuron was brought to mean 0 over the images.",
        None: " Activations were taken as they are.",
        "none": " Activations were taken as they are.",
    }
    return sentences.get(how if how is None else str(how), "")


def _ends(singular: NDArray[np.float64]) -> str:
    return f"{number(float(singular[0]))} down to {number(float(singular[-1]))}" if singular.size else "none"


def _shown(result: Result, studio: Studio) -> int:
    return min(studio.neurons, result.data.sizes["component"])


def _scores(result: Result, studio: Studio) -> NDArray[np.float64]:
    """Return the scores (image, component), NaN for images that were left out."""
    score = result.data["score"].transpose("image", "component")
    scores = np.array(score.values, dtype=np.float64)
    if scores.shape[0] == studio.images.count:
        scores[~studio.images.usable] = np.nan
    return scores


def _usable(scores: NDArray[np.float64]) -> int:
    return int(np.isfinite(scores).any(axis=1).sum())


def _by_score(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the places of images with a score, highest first."""
    order = np.argsort(-scores, kind="stable")
    return order[np.isfinite(scores[order])].astype(np.int64)


def _numbers(result: Result, places: NDArray[np.int64]) -> list[int]:
    """Return the images' numbers; a result over some of the images names them in its coordinate."""
    if "image" in result.data.coords:
        return [int(image) for image in result.data["image"].values[places]]
    return [int(place) for place in places]


def _row(component: int, scores: NDArray[np.float64], result: Result, studio: Studio) -> Row:
    order = _by_score(scores)
    high, low = order[: studio.shown], order[::-1][: studio.shown]
    note = [f"σ {number(float(result.data['singular_value'].values[component]))}"]
    if "explained_variance_ratio" in result.data:
        ratio = float(result.data["explained_variance_ratio"].values[component])
        note.append(f"explains {percent(ratio)}")
    for end, places in (("highest", high), ("lowest", low)):
        spanned = _classes(_numbers(result, places), studio)
        if spanned is not None:
            note.append(f"{end} {len(places)} span {counted(spanned, 'class', 'classes')}")
    tiles = [
        [
            studio.tile(image, float(scores[place]))
            for image, place in zip(_numbers(result, places), places, strict=True)
        ]
        for places in (high, low)
    ]
    return Row(f"Component {component + 1}", ", ".join(note), tiles[0], tiles[1])


def _classes(images: list[int], studio: Studio) -> int | None:
    """Return how many classes the images belong to; none where no class is known."""
    known = {studio.images.label(image) for image in images if 0 <= image < studio.images.count} - {-1}
    return len(known) or None


def _span(scores: NDArray[np.float64], result: Result, layer: Layer, studio: Studio) -> Plate | None:
    """Compare how many classes the top images of components and of single neurons span (Zhang)."""
    labels = studio.images.labels
    if labels is None or not (labels >= 0).any():
        return None
    top = layer.first("top_images", "top_image")
    ranks = top.data.sizes["rank"] if top is not None else _MOST_TOP
    k = min(_MOST_TOP, ranks, _usable(scores))
    if k < 2:
        return None
    tops = _tops(scores, k, result, studio)
    ours = _spans(tops, studio)
    theirs = None
    if top is not None:
        theirs = neuron_spans(top, k, labels)
    classes = len(np.unique(labels[labels >= 0]))
    caption = (
        f"How many of {counted(classes, 'class', 'classes')} the k = {k} images with the highest score span, for "
        f"{counted(ours.size, 'component')} (mean {number(float(ours.mean()))})"
    )
    if theirs is not None and theirs.size:
        caption += (
            f"; shaded: the same for the top {k} images of {counted(theirs.size, 'single neuron')} of the layer "
            f"(mean {number(float(theirs.mean()))})"
        )
    if len(tops) > 1:
        caption += (
            f". Of these images two components have on average {percent(common(tops))} in common; two random sets "
            f"would have {percent(k / _usable(scores))}"
        )
    alt = f"Classes spanned by the top {k} images of each of {counted(ours.size, 'component')}"
    return studio.plate(figures.spans(ours, theirs, classes, k), result, "span", alt, caption + ".")


def _tops(scores: NDArray[np.float64], k: int, result: Result, studio: Studio) -> NDArray[np.int64]:
    """Return the `k` images with the highest score on each component (component, rank)."""
    return np.array([_numbers(result, _by_score(column)[:k]) for column in scores.T], dtype=np.int64)


def _spans(tops: NDArray[np.int64], studio: Studio) -> NDArray[np.float64]:
    return np.array([_classes(images.tolist(), studio) or 0 for images in tops], dtype=np.float64)


def common(tops: NDArray[np.int64]) -> float:
    """Return the share of images that two lists (rows) have in common, on average; NaN of fewer than two."""
    held = np.zeros((len(tops), int(tops.max(initial=0)) + 1))
    np.put_along_axis(held, tops, 1.0, axis=1)
    pairs = len(tops) * (len(tops) - 1)
    shared = float((held.sum(axis=0) ** 2).sum() - held.sum())
    return shared / (pairs * tops.shape[1]) if pairs else float("nan")


def component_overlap(result: Result, k: int, studio: Studio) -> float | None:
    """Return the share of the top `k` images that two components have in common, on average; None without scores."""
    return common(_tops(_scores(result, studio), k, result, studio)) if "score" in result.data else None


def component_spans(
    result: Result, k: int, studio: Studio, *, lowest: bool = False
) -> NDArray[np.float64] | None:
    """Return how many classes the top `k` images of each component span, or the lowest; None where none is known."""
    labels = studio.images.labels
    if labels is None or not (labels >= 0).any() or "score" not in result.data:
        return None
    scores = _scores(result, studio)
    return _spans(_tops(-scores if lowest else scores, k, result, studio), studio)


def neuron_spans(top: Result, k: int, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many classes the top `k` images of single neurons span."""
    images = top.data["top_image"].isel(rank=slice(k))
    if images.ndim > 2:  # per neuron there may be millions; one of each channel tells as much
        images = images.isel({dim: images.sizes[dim] // 2 for dim in images.dims if dim not in ("channel", "rank")})
    rows = np.asarray(images.transpose(..., "rank").values).reshape(-1, images.sizes["rank"])
    spans = [len(set(labels[row[(row >= 0) & (row < labels.size)]].tolist()) - {-1}) for row in rows]
    return np.array([span for span in spans if span], dtype=np.float64)
