"""A kernel and what it sees of a layer: the unit of what an extraction takes along."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dneuro.kernels.base import Kernel, key_of, serving

Look = Literal["max", "mean", "neuron"]
"""One number per channel (the maximum or the mean over positions), or every neuron."""


@dataclass(frozen=True)
class Feed:
    """A reduction that can be fed while a layer is in memory.

    Parameters
    ----------
    look : {"max", "mean", "neuron"}
        What the kernel sees of the layer; always ``neuron`` where the layer has no positions.
    kernel : Kernel
        The reduction.
    """

    look: Look
    kernel: Kernel

    @property
    def key(self) -> str:
        """Name under which its partial states are kept; empty if it needs what only an earlier pass can tell."""
        key = key_of(self.kernel)
        return f"{self.look}/{key}" if key else ""

    def found_in(self, keys: Iterable[str], images: int) -> str | None:
        """Return the key, among `keys`, of states about `images` images that this can be made of; None if none."""
        prefix = f"{self.look}/"
        found = serving(self.kernel, [key.removeprefix(prefix) for key in keys if key.startswith(prefix)], images)
        return None if found is None else prefix + found

    def memory(self, images: int, rows: int, shape: Sequence[int]) -> tuple[int, int]:
        """Return (bytes of state, bytes of work) for a layer of `shape` per image; see `Kernel.memory`."""
        return self.kernel.memory(images, rows, self.features(shape))

    def features(self, shape: Sequence[int]) -> int:
        """Return how many numbers it sees of an image, in a layer of `shape` per image."""
        return math.prod(shape if self.look == "neuron" else shape[:1])


def channel_look(shape: Sequence[int]) -> Look:
    """Return how the maximum per channel of a layer of this shape per image is looked at."""
    return "max" if len(shape) > 1 else "neuron"


def join(feeds: Collection[Feed], feed: Feed, images: int) -> tuple[Feed, ...]:
    """Return `feeds` and `feed`, without those that another one serves."""
    if feed.found_in([other.key for other in feeds], images) is not None:
        return tuple(feeds)
    return (*(other for other in feeds if other.found_in([feed.key], images) is None), feed)
