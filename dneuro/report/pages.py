"""The first page, and one per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dneuro.report import beside, overview, sections
from dneuro.report.blocks import Studio
from dneuro.report.contents import Layer
from dneuro.report.rendering import GENERATOR, render
from dneuro.report.sections import other


def shared(studio: Studio, job: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what every page says."""
    attrs = studio.contents.attrs
    title = str((job or {}).get("name") or attrs.get("name") or attrs.get("job") or "Activations")
    return {
        "title": title, "generator": GENERATOR, "pictureless": studio.gallery.empty,
        "searchable": bool(studio.paging), "sided": beside.there(studio.contents), "called": _called(job),
    }  # fmt: skip


def _called(job: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what a job calls layers, by their names."""
    for step in (job or {}).get("steps") or []:
        extract = step.get("extract") if isinstance(step, Mapping) else None
        layers = extract.get("layers") if isinstance(extract, Mapping) else None
        if isinstance(layers, Mapping):  # a list of names calls none of them otherwise
            return {name: str(spec["called"]) for name, spec in layers.items() if spec and spec.get("called")}
    return {}


def write(studio: Studio, job: Mapping[str, Any] | None) -> None:
    """Write the first page and those of the layers into the studio's folder."""
    common = shared(studio, job)
    for place, layer in enumerate(studio.contents.layers):
        render(studio.folder, layer.file, "layer.html.j2", **common, **_layer(place, layer, studio))
    if common["sided"]:
        render(studio.folder, "layers.html", "layers.html.j2", **common, tables=beside.tables(studio))
    render(studio.folder, "index.html", "index.html.j2", **common, **_index(studio, job))


def _index(studio: Studio, job: Mapping[str, Any] | None) -> dict[str, Any]:
    found = studio.contents
    return {
        "layers": [overview.layer_line(layer) for layer in found.layers],
        "network": found.attrs.get("network"),
        "headline": overview.headline(found),
        "examples": overview.examples(studio),
        "provenance": overview.provenance(found, job),
        "masked": overview.masked(found),
        "masked_count": len(found.images.masked),
        "loose": [other.build(result) for result in found.loose if not beside.shows(result)],
        "job": overview.job_text(job),
    }


def _layer(place: int, layer: Layer, studio: Studio) -> dict[str, Any]:
    layers = studio.contents.layers
    return {
        "layer": layer,
        "summary": overview.summary(layer, studio.contents),
        "paging": studio.paging.get(layer.name),
        "sections": list(sections.build(layer, studio)),
        "before": layers[place - 1] if place else None,
        "after": layers[place + 1] if place + 1 < len(layers) else None,
    }
