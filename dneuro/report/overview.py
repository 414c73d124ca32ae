"""What the first page says: the study in numbers, its layers, and where everything comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dneuro.report.blocks import Fact, Studio, Tile
from dneuro.report.contents import Contents, Images, Layer
from dneuro.report.words import NOTHING, counted, cut, listed, number, percent, setting, settings, short

_MOST_EXAMPLES = 12
_MOST_MASKED = 1000
_MOST_LETTERS = 300

_TERMS = {
    "job": "Job", "name": "Job", "network": "Network", "weights": "Weights", "weights_sha256": "Weights SHA-256",
    "preprocessing": "Preprocessing", "images": "Images", "store": "Store", "created": "Date", "date": "Date",
    "versions": "Versions", "fingerprint": "Fingerprint",
}  # fmt: skip
_REPEATED = {"identity"}
"""What a store says for itself, and has said before under other names."""


@dataclass(frozen=True)
class LayerLine:
    """A layer's line in the table of layers."""

    name: str
    file: str
    kind: str
    shape: str
    kept: str
    neurons: str
    field: str
    mean: str
    active: str
    dead: str
    results: str


@dataclass(frozen=True)
class MaskedLine:
    """An image's line in the table of those that were left out."""

    image: int
    file: str
    cause: str


def provenance(contents: Contents, job: Mapping[str, Any] | None) -> list[Fact]:
    """Return where the store comes from: what is known first, then whatever else the store says of itself."""
    attrs = {"job": job["name"], **contents.attrs} if job and "name" in job else dict(contents.attrs)
    attrs = {key: value for key, value in attrs.items() if key not in _REPEATED and value not in (None, [], {})}
    facts = []
    for key in [*(key for key in _TERMS if key in attrs), *(key for key in attrs if key not in _TERMS)]:
        facts += [_provenance_fact(key, attrs[key])]
        if key == "images":
            facts += _image_facts(contents)
    if "images" not in attrs:
        facts += _image_facts(contents)
    return facts


def _provenance_fact(key: str, value: Any) -> Fact:
    term = _TERMS.get(key, key.replace("_", " ").capitalize())
    if value is not None and (key.endswith("sha256") or key == "fingerprint"):
        return Fact(term, short(str(value)), str(value))
    if isinstance(value, Mapping):
        said = {name: short(v) if "fingerprint" in name else v for name, v in value.items() if v is not None}
        return Fact(term, settings(said) or NOTHING)
    text = setting(value)
    return Fact(term, text or NOTHING)


def _image_facts(contents: Contents) -> list[Fact]:
    images = contents.images
    facts = [Fact("Number of images", f"{images.count:,}")]
    if images.classes:
        facts.append(Fact("Classes", f"{len(images.classes):,}: {listed(images.classes)}"))
    facts.append(Fact("Masked images", f"{len(images.masked):,}" if images.masked else "none"))
    if images.not_extracted:
        facts.append(Fact("Images not extracted yet", f"{images.not_extracted:,}"))
    return facts


def headline(contents: Contents) -> list[Fact]:
    """Return the study in a few numbers."""
    images = contents.images
    facts = [Fact("images", f"{images.count:,}")]
    if images.classes:
        facts.append(Fact("classes", f"{len(images.classes):,}"))
    facts.append(Fact("layers", f"{len(contents.layers):,}"))
    if images.correct is not None:
        right, counts = images.correct
        share = percent(right / counts) if counts else NOTHING
        facts.append(Fact("accuracy", share, f"{right:,} of {counted(counts, 'image')} classified correctly"))
    if images.masked:
        facts.append(Fact("masked", f"{len(images.masked):,}", "images that could not be used and were left out"))
    if images.not_extracted:
        said = "images that the job has not come to, or whose units failed; they are in no number and no figure"
        facts.append(Fact("not extracted yet", f"{images.not_extracted:,}", said))
    return facts


def layer_line(layer: Layer) -> LayerLine:
    """Return a layer's line; a dash stands for what the store does not know."""
    mean, active = layer.statistic("mean"), layer.statistic("fraction_active")
    steps = list(dict.fromkeys(result.step for result in layer.results if not result.recorded))
    return LayerLine(
        layer.name, layer.file, layer.kind or NOTHING, shape_words(layer), layer.keep or NOTHING,
        NOTHING if layer.shape is None else f"{int(np.prod(layer.shape)):,}", field_words(layer),
        number(_mean(mean)), percent(_mean(active)), dead_words(layer), ", ".join(steps) or NOTHING,
    )  # fmt: skip


def shape_words(layer: Layer) -> str:
    """Return ``256 × 6 × 6``."""
    return NOTHING if layer.shape is None else " × ".join(f"{length:,}" for length in layer.shape)


def field_words(layer: Layer) -> str:
    """Return how many pixels of the input a position sees."""
    if layer.field is None:
        return "whole input" if layer.knows_field else NOTHING
    return f"{layer.field.size[0]} × {layer.field.size[1]}"


def dead_words(layer: Layer) -> str:
    """Return how many channels are never above zero."""
    active = layer.statistic("fraction_active")
    return NOTHING if active is None else f"{int((active == 0).sum()):,}"


def summary(layer: Layer, contents: Contents) -> list[Fact]:
    """Return what a layer's page says first."""
    line = layer_line(layer)
    channels = layer.shape[0] if layer.shape else None
    facts = [
        Fact("Kind", line.kind), Fact("Shape per image", line.shape),
        Fact("Neurons", line.neurons), Fact("Channels", NOTHING if channels is None else f"{channels:,}"),
        Fact("Receptive field", line.field + (" pixels" if layer.field is not None else "")),
        Fact("Kept", line.kept), Fact("Mean activation", line.mean), Fact("Active", line.active),
        Fact("Dead channels", line.dead), Fact("Images", f"{int(contents.images.usable.sum()):,}"),
    ]  # fmt: skip
    return [fact for fact in facts if fact.value != NOTHING]


def examples(studio: Studio) -> list[Tile]:
    """Return images spread evenly over the store, with what the network took them for."""
    images = studio.images
    usable = np.flatnonzero(images.usable)
    tiles = []
    for place in np.unique(np.linspace(0, len(usable) - 1, min(_MOST_EXAMPLES, len(usable))).astype(int)):
        image = int(usable[place])
        tile = studio.tile(image, None)
        if images.predictions is not None:
            predicted, known = int(images.predictions[image]), images.label(image)
            words = images.predicted_name(predicted)
            tile = Tile(
                f"{tile.alt}, predicted {words}", tile.label, f"→ {words}", tile.picture,
                wrong=images.correct is not None and known >= 0 and predicted != known,
            )  # fmt: skip
        tiles.append(tile)
    return tiles


def masked(contents: Contents) -> list[MaskedLine]:
    """Return the images that were left out, of very many the first."""
    images = contents.images
    return [
        MaskedLine(image, images.filename(image) or "no name", _cause(images, image))
        for image in images.masked[:_MOST_MASKED]
    ]


def _cause(images: Images, image: int) -> str:
    """Return why an image was left out, without its name and path before it."""
    said, name = images.causes.get(image, ""), images.filename(image)
    cause = said.partition(f"{name}: ")[2] if name else ""
    return cut(cause or said, _MOST_LETTERS) or NOTHING


def job_text(job: Mapping[str, Any] | None) -> str | None:
    """Return the job as JSON, which every YAML reader reads."""
    return None if job is None else json.dumps(job, indent=2, ensure_ascii=False, default=str)


def _mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None) -> float | None:
    if values is None:
        return None
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
