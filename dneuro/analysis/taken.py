"""What an extraction has taken along of a layer, so that an analysis need not read the layer again.

A job puts a `Taken` among the attributes of an array. The view that an analysis makes of the array then finds the
answers of its kernels there, and its plan has a pass less: no analysis needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from dneuro.kernels.feeds import Feed

TAKEN = "dneuro_taken_along"
"""Attribute of an array that holds a `Taken`."""

Found = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Taken:
    """The reductions of one layer that need no pass over it.

    Parameters
    ----------
    serves : callable
        Whether a feed was taken along, or will be.
    answer : callable, optional
        Gives the results of its kernel; None while nothing but the plan is wanted.
    only : bool
        There is nothing else: the activations themselves were not kept.
    """

    serves: Callable[[Feed], bool]
    answer: Callable[[Feed], Found] | None = None
    only: bool = False
