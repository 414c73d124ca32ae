"""What the page of layers side by side is made of: figures over a table with a line for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dneuro.report.blocks import Plate
from dneuro.report.figures import Numbers
from dneuro.report.words import number

_TURN = 0.2
"""An extreme in between is told if it lies beyond both ends by this share of the way between them."""


@dataclass(frozen=True)
class Line:
    """A layer's line in the table of one step; `file` is its page, if it has one."""

    name: str
    file: str | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The layers that one step is about, side by side."""

    title: str
    plates: list[Plate]
    heads: tuple[str, ...]
    lines: list[Line]
    caption: str


def goes(mean: Numbers, layers: Sequence[str]) -> str:
    """Return, in words, how an average goes from the first layer that has one to the last, and its turn if it has one.

    Parameters
    ----------
    mean : ndarray (layers,)
        NaN where a layer has none.
    layers : sequence of str
        Their names.
    """
    known = np.flatnonzero(np.isfinite(mean))
    if len(known) < 2:
        return "is known of fewer than two layers"
    first, last = (float(mean[known[place]]) for place in (0, -1))
    verb = "falls" if last < first else "rises"
    said = f"{verb} from {number(first)} in the first layer to {number(last)} in the last"
    if last == first:
        said = f"is {number(first)} in the first layer and in the last"
    low, high = (known[int(order)] for order in (mean[known].argmin(), mean[known].argmax()))
    span = abs(last - first)
    for place, word, beyond in ((high, "largest", mean[high] - max(first, last)),
                                (low, "smallest", min(first, last) - mean[low])):  # fmt: skip
        if beyond > _TURN * span:
            said += f"; {word} in {layers[place]}, {number(float(mean[place]))}"
    return said
