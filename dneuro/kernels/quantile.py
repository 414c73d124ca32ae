"""The value of a given rank of every feature, digit by digit, and the images beyond it, counted per class.

The bits of a floating-point number, taken as a whole number, sort as the number does. So the value of rank r is found
from the top: a pass counts how often each value of the next eight bits occurs among the values that share the bits
found so far. The memory does not depend on the number of images, and the result is a value that occurs, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Origin, State, Sums, flat, placed, spans, to_numpy

DIGIT = 8
"""Bits that one pass finds."""
VALUES = 1 << DIGIT


def bits_of(values: Array) -> int:
    """Return how many bits the order of such values has: 16 for half precision, else 32."""
    return 16 if values.dtype.itemsize == 2 else 32


def _ordered(values: Array) -> Array:
    """Return int64 numbers, not negative, that sort as `values` (float16 or float32) do."""
    xp = array_api_compat.array_namespace(values)
    bits = bits_of(values)
    whole = xp.int16 if bits == 16 else xp.int32
    values = values + 0.0  # -0.0 becomes 0.0: equal values must be one
    torch = array_api_compat.is_torch_array(values)
    key: Array = values.view(whole) if torch else np.ascontiguousarray(values).view(whole)
    key = xp.astype(key, xp.int64)
    return xp.where(key >= 0, key, key ^ ((1 << bits - 1) - 1)) + (1 << bits - 1)


def values_of(keys: NDArray[np.int64], bits: int) -> NDArray[np.float32]:
    """Return the values that were ordered as `keys`."""
    signed = keys - (1 << bits - 1)
    signed = np.where(signed >= 0, signed, signed ^ ((1 << bits - 1) - 1))
    packed = signed.astype(np.int16).view(np.float16) if bits == 16 else signed.astype(np.int32).view(np.float32)
    return packed.astype(np.float32)


def _count(numbers: Array, length: int) -> Array:
    """Return how often each of 0 … length − 1 occurs; the array standard has no such verb."""
    if array_api_compat.is_torch_array(numbers):
        return numbers.bincount(minlength=length)
    return np.bincount(numbers, minlength=length)


def _columns(origin: Origin) -> NDArray[np.int64]:
    """Return the number of each column of the second dim."""
    return next(numbers for name, numbers in origin.items() if name != "image")


@dataclass(frozen=True)
class Digits(Sums):
    """How often each value of a digit occurs among the values that begin as wanted.

    Parameters
    ----------
    found : array (features…) of int64
        The digits above this one, as one number.
    below : int
        Bits below this digit.
    """

    found: NDArray[np.int64]
    below: int
    whole_rows: ClassVar[bool] = False

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        block = blocks[0]
        table = flat(block)
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        rows, features = table.shape
        found = placed(np.reshape(self.found[_columns(origin)], -1), xp, where)
        if not state:
            state = {"count": xp.zeros((*block.shape[1:], VALUES), dtype=xp.int32, device=where)}
        counts = xp.reshape(state["count"], (features, VALUES))
        for columns in spans(features, min(SLICE_ITEMS // rows, SLICE_ITEMS // VALUES)):
            keys = _ordered(table[:, columns]) >> self.below
            wanted = (keys >> DIGIT) == found[None, columns]
            width = columns.stop - columns.start
            keys &= VALUES - 1
            keys += VALUES * xp.arange(width, dtype=xp.int64, device=where)[None, :]
            occurring = _count(keys[wanted], VALUES * width)
            counts[columns, :] += xp.astype(xp.reshape(occurring, (width, VALUES)), xp.int32)
        return state

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return count (values of the digit, *features) of int32."""
        return {"count": np.moveaxis(to_numpy(state["count"]), -1, 0)}

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        # A slice as it is ordered; counts of a slice; numbers of the columns; in a merge the new state.
        state = 4 * VALUES * features
        return state, 44 * max(SLICE_ITEMS, rows) + 24 * features + state


@dataclass(frozen=True)
class CountAbove(Sums):
    """count (class, *features): how many images of each class lie above a threshold.

    Parameters
    ----------
    thresholds : array (features…) of float32
        One for each feature; equal is not above.
    labels : array (images,) of int64
        Class of every image, by the number that ``origin["image"]`` gives it; −1 takes part in no class.
    classes : int
        Number of classes.
    """

    thresholds: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    whole_rows: ClassVar[bool] = False

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        block = blocks[0]
        table = flat(block)
        xp = array_api_compat.array_namespace(table)
        where = array_api_compat.device(table)
        rows, features = table.shape
        thresholds = placed(np.reshape(self.thresholds[_columns(origin)], -1), xp, where)
        labels = placed(np.asarray(self.labels)[origin["image"]], xp, where)
        if not state:
            state = {"count": xp.zeros((self.classes, *block.shape[1:]), dtype=xp.int64, device=where)}
        counts = xp.reshape(state["count"], (self.classes, features))
        for columns in spans(features, min(SLICE_ITEMS // rows, SLICE_ITEMS // self.classes)):
            width = columns.stop - columns.start
            above = (table[:, columns] > thresholds[None, columns]) & (labels >= 0)[:, None]
            image, column = xp.nonzero(above)
            occurring = _count(labels[image] * width + column, self.classes * width)
            counts[:, columns] += xp.reshape(occurring, (self.classes, width))
        return state

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        state = 8 * self.classes * features
        # Of a slice what is above, and its places; thresholds and labels; in a merge the new state.
        return state, 48 * max(SLICE_ITEMS, rows, self.classes) + 16 * features + 16 * rows + state
