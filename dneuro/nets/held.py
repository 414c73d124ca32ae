"""What a forward pass holds in memory at the same time, known without computing it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dneuro.nets.calls import BATCH, dry_run, empty_images, zero_images
from dneuro.nets.catalogue import find
from dneuro.spec.network import NetworkSpec

PASSES = 8
"""Forward passes that are laid out one after the other, at most."""


class Held(NamedTuple):
    """Bytes per image.

    Parameters
    ----------
    most : int
        Of all tensors that there are at the same time.
    largest : int
        Of the largest tensor.
    extent : int
        From the first to the last of those that there are at the same time, where each lies in the smallest gap that
        others left, or after all of them; in as many passes as it grows.
    """

    most: int
    largest: int
    extent: int


def held_per_image(
    spec: NetworkSpec, layers: Sequence[str], *, to_end: bool, input_shape: tuple[int, int, int]
) -> Held:
    """Return what a forward pass holds, the input included.

    Parameters
    ----------
    spec : NetworkSpec
        The network; its weights are not read, unless they come with it.
    layers : sequence of str
        The layers that are wanted.
    to_end : bool
        Whether the network runs to its end; otherwise to the last of the layers.
    input_shape : (int, int, int)
        Channels, height and width of its input.

    Notes
    -----
    Every tensor counts from the operation that makes it until nothing refers to it any more: what a residual block
    adds at its end counts until then, what is changed in place counts once. Neither weights count, nor what an
    operation needs in its inside. All in float32: half precision takes less, and copies weights.

    **Cost**: one pass over shapes alone. For a network made by the user's Python one pass of five images of zeros.
    """
    architecture = find(spec)
    module = architecture.build_shapes()
    images = empty_images(input_shape) if architecture.shapes else zero_images(input_shape)
    missing = set(layers)

    def note(name: str, _part: nn.Module, _output: object) -> None:
        missing.discard(name)
        watch.over |= not missing and not to_end

    with _Watch() as watch:
        for tensor in (*module.parameters(), *module.buffers()):
            watch.count(tensor)
        dry_run(module, images, note, lambda name: name or watch.begin(images), network=spec.name)
    return Held(*(-(-found // BATCH) for found in (watch.most, watch.largest, _extent(watch.events))))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, while operations run inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, int] = {}
        self.now = self.most = self.largest = 0
        self.events: list[tuple[int, int]] = []
        """What was made, and its bytes, and −1 for what nothing refers to any more."""
        self.over = False

    def begin(self, images: Tensor) -> None:
        """Start from the images alone: what was there before, the weights, does not count."""
        self._alive = dict.fromkeys(self._alive, 0)
        self.now = self.most = self.largest = 0
        self.events.clear()
        self.count(images)

    def count(self, tensor: Tensor) -> None:
        """Count a tensor, unless it shares the memory of another one, until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        weakref.finalize(storage, self._forget, key).atexit = False
        self.now += storage.nbytes()
        if not self.over:
            self.events.append((key, storage.nbytes()))
            self.most = max(self.most, self.now)
            self.largest = max(self.largest, storage.nbytes())

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)
        self.events.append((key, -1))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return found


def _extent(events: Sequence[tuple[int, int]]) -> int:
    """Return what tensors that come and go take, pass after pass, until a pass needs no more than the one before."""
    pool, before = _Pool(), -1
    for _ in range(PASSES):
        if pool.end == before:
            break
        before = pool.end
        for key, size in events:
            if size < 0:
                pool.free(key)
            else:
                pool.take(key, size)
        pool.clear()
    return pool.end


class _Pool:
    """Where an allocator would put tensors that takes the smallest gap, and merges a gap with its neighbours."""

    def __init__(self) -> None:
        self._gaps: list[tuple[int, int]] = []
        self._taken: dict[int, tuple[int, int]] = {}
        self.end = 0
        """One past the last byte that was ever taken."""

    def take(self, key: int, size: int) -> None:
        """Put something somewhere."""
        fitting = [(stop - start, start, stop) for start, stop in self._gaps if stop - start >= size]
        if fitting:
            _, start, stop = min(fitting)
            self._gaps.remove((start, stop))
            if stop - start > size:
                self._gaps.append((start + size, stop))
        else:  # where the last gap begins, if it reaches the end
            start = next((start for start, stop in self._gaps if stop == self.end), self.end)
            self._gaps = [gap for gap in self._gaps if gap[0] != start]
            self.end = start + size
        self._taken[key] = start, start + size

    def free(self, key: int) -> None:
        """Make a gap of it, with those that it touches; nothing where it is not there."""
        if key not in self._taken:
            return
        start, stop = self._taken.pop(key)
        touching = [gap for gap in self._gaps if gap[1] == start or gap[0] == stop]
        self._gaps = [gap for gap in self._gaps if gap not in touching]
        whole = [(start, stop), *touching]
        self._gaps.append((min(gap[0] for gap in whole), max(gap[1] for gap in whole)))

    def clear(self) -> None:
        """Free all that is there."""
        for key in list(self._taken):
            self.free(key)
