"""What the axes of a tensor mean, and what becomes of them when it is cut, joined and turned.

A tensor's axes are named after what they run along: ``batch``, ``channel``, ``y``, ``x``, or ``token`` where positions
lie in one row. A view may cut an axis into pieces or put several behind each other; an axis is therefore a run of
*pieces*, outermost first, and pieces that meet again in their old order are one again. So the windows of an
attention that are put together to an image give back its ``y`` and ``x``, and a shuffled image does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KINDS = (("channel",), ("channel", "y", "x"), ("y", "x", "channel"), ("token", "channel"))
"""What the axes of a layer's output can be, per image."""

UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the places of an axis: `size` of them, each `stride` places after the last.

    Parameters
    ----------
    name : str
        What the axis runs along.
    whole : int
        Length of the axis that this is a piece of.
    stride, size : int
        1 and `whole` where nothing was cut.
    """

    name: str
    whole: int
    stride: int
    size: int

    @property
    def is_whole(self) -> bool:
        """True where nothing was cut off."""
        return self.stride == 1 and self.size == self.whole


Axis = tuple[Piece, ...]
"""Pieces behind each other, outermost first; an axis of length 1 has none."""
Axes = tuple[Axis, ...]


def named(name: str, size: int) -> Axis:
    """Return a whole axis."""
    return () if size == 1 else (Piece(name, size, 1, size),)


def grid(batch: int, channels: int, height: int, width: int) -> Axes:
    """Return the axes of images, or of what a two-dimensional convolution yields."""
    return named("batch", batch), named("channel", channels), named("y", height), named("x", width)


def name_of(axis: Axis) -> str:
    """Return what an axis runs along; empty for one of length 1, ``?`` if it cannot be said in a word."""
    names = [piece.name for piece in axis]
    if not names:
        return ""
    if "channel" in names and {"channel", UNKNOWN}.issuperset(names):  # shuffled or stacked, they are features
        return "channel"
    if all(piece.is_whole for piece in axis):
        if len(names) == 1:
            return names[0]
        if names == ["y", "x"]:
            return "token"
    return UNKNOWN


def dims(axes: Axes) -> tuple[str, ...] | None:
    """Return the names of axes as one of `KINDS`; None if they are something else, or not known.

    Parameters
    ----------
    axes : Axes
        Those of one image's output, without the batch.
    """
    found = [name_of(axis) for axis in axes]
    for kind in KINDS:
        if len(kind) == len(found) and all(name in ("", wanted) for name, wanted in zip(found, kind, strict=True)):
            return kind
    return None


def fits(axes: Axes, shape: Sequence[int]) -> bool:
    """Tell whether axes have the lengths of a tensor's shape."""
    return [math.prod(piece.size for piece in axis) for axis in axes] == list(shape)


def resized(axis: Axis, size: int) -> Axis:
    """Return an axis of which some places were left out, added or interpolated; it keeps its name."""
    if math.prod(piece.size for piece in axis) == size:
        return axis
    return named(name_of(axis) or UNKNOWN, size)


def unified(choices: Iterable[Axis]) -> Axis:
    """Return the axis that all of these are, where some may be of length 1 and stretched."""
    known = list(dict.fromkeys(axis for axis in choices if axis))
    if len(known) < 2:
        return known[0] if known else ()
    size = math.prod(piece.size for piece in known[0])
    names = {name_of(axis) for axis in known}
    return named(names.pop() if len(names) == 1 else UNKNOWN, size)


def view(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Return the axes of the same numbers in another shape; None where they cannot be followed."""
    pieces = [piece for axis in axes for piece in axis][::-1]
    found = []
    for size in shape:
        taken: list[Piece] = []
        while size > 1:
            if not pieces:
                return None
            piece = pieces.pop()
            if size % piece.size == 0:
                taken.append(piece)
                size //= piece.size
            elif piece.size % size == 0:
                rest = piece.size // size
                taken.append(Piece(piece.name, piece.whole, piece.stride * rest, size))
                pieces.append(Piece(piece.name, piece.whole, piece.stride, rest))
                size = 1
            else:
                return None
        found.append(_joined(taken))
    return None if pieces else tuple(found)


def _joined(pieces: list[Piece]) -> Axis:
    """Put pieces that continue each other together."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last and (last.name, last.whole, last.stride) == (piece.name, piece.whole, piece.stride * piece.size):
            found[-1] = Piece(piece.name, piece.whole, piece.stride, last.size * piece.size)
        else:
            found.append(piece)
    return tuple(found)
