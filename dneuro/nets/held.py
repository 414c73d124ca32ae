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


class Held(NamedTuple):
    """Bytes per image.

    Parameters
    ----------
    most : int
        Of all tensors that there are at the same time.
    largest : int
        Of the largest tensor.
    """

    most: int
    largest: int


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
    operation needs in its inside. All in float32: half precision takes less.

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
    return Held(-(-watch.most // BATCH), -(-watch.largest // BATCH))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, while operations run inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, int] = {}
        self.now = self.most = self.largest = 0
        self.over = False

    def begin(self, images: Tensor) -> None:
        """Start from the images alone: what was there before, the weights, does not count."""
        self._alive = dict.fromkeys(self._alive, 0)
        self.now = self.most = self.largest = 0
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
            self.most = max(self.most, self.now)
            self.largest = max(self.largest, storage.nbytes())

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return found
