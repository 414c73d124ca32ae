"""Which part of an image a value comes from: the box that the winning position sees."""

from __future__ import annotations

from dneuro.report.contents import Layer
from dneuro.report.grids import Box


def box(layer: Layer, place: tuple[int, int] | None) -> Box | None:
    """Return what position (y, x) of a layer sees, in pixels of the input.

    None where that is the whole input, is not known, or where the value comes from no single position.
    """
    if layer.field is None or place is None or min(place) < 0:
        return None
    return layer.field.box(*place)


def words(layer: Layer, *, placed: bool) -> str:
    """Return what a caption says of the frames; `placed`: whether the values come from single positions."""
    if layer.field is None:
        return "No frame: every position sees the whole picture." if layer.knows_field else ""
    if not placed:
        return "No frame: the activation is not that of one position."
    pixels = "{} × {} pixels".format(*layer.field.size)
    return f"Framed: what the winning position sees ({pixels}), as far as it lies in the picture."
