"""From blocks to HTML files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dneuro.report import overview, sections
from dneuro.report.blocks import Studio
from dneuro.report.contents import Layer
from dneuro.report.grids import TILE
from dneuro.report.sections import other

GENERATOR = '<meta name="generator" content="dneuro report">'
"""What marks a page as one of these; only a folder with it is ever replaced."""


def write(studio: Studio, job: Mapping[str, Any] | None) -> None:
    """Write all pages and the style sheet into the studio's folder."""
    style = files("dneuro.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    (studio.folder / "style.css").write_text(style, encoding="utf-8")
    title = str((job or {}).get("name") or studio.contents.attrs.get("name") or "Activations")
    shared = {
        "title": title, "generator": GENERATOR, "tile": TILE, "pictureless": studio.gallery.empty,
        "layers": [overview.layer_line(layer) for layer in studio.contents.layers],
    }  # fmt: skip
    for place, layer in enumerate(studio.contents.layers):
        _render(studio, layer.file, "layer.html.j2", **shared, **_layer(place, layer, studio))
    _render(studio, "index.html", "index.html.j2", **shared, **_index(studio, job))


def _index(studio: Studio, job: Mapping[str, Any] | None) -> dict[str, Any]:
    found = studio.contents
    return {
        "network": found.attrs.get("network"),
        "headline": overview.headline(found),
        "examples": overview.examples(studio),
        "provenance": overview.provenance(found, job),
        "masked": overview.masked(found),
        "loose": [other.build(result) for result in found.loose],
        "job": overview.job_text(job),
    }


def _layer(place: int, layer: Layer, studio: Studio) -> dict[str, Any]:
    layers = studio.contents.layers
    return {
        "layer": layer,
        "summary": overview.summary(layer, studio.contents),
        "sections": list(sections.build(layer, studio)),
        "before": layers[place - 1] if place else None,
        "after": layers[place + 1] if place + 1 < len(layers) else None,
    }


def _render(studio: Studio, file: str, template: str, **values: Any) -> None:
    text = _environment().get_template(template).render(**values)
    # A file name that is no Unicode cannot be written as such; the page shows a replacement sign.
    (studio.folder / file).write_text(text, encoding="utf-8", errors="replace")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("dneuro.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
