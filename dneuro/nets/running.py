"""Running a network over pixels: input, precision, device; on a GPU one batch ahead of what is asked for."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dneuro.errors import NetworkError
from dneuro.nets.compiled import blank as blank_inputs
from dneuro.nets.compiled import program
from dneuro.nets.device import room_on
from dneuro.nets.load import Network
from dneuro.nets.precision import computing_in
from dneuro.nets.rooms import Rooms
from dneuro.nets.strongest import Strongest
from dneuro.nets.taps import Output, tap

UNKNOWN = -1
"""The class of an image where the network's output has NaN, or no finite largest number: it says nothing."""


@dataclass
class Running:
    """A batch that is on its way through the network; `result` waits for it.

    Parameters
    ----------
    outputs : dict of Tensor
        Layer to what is taken of it, on the CPU.
    classes : Tensor or None
        The class with the largest output, per image; `UNKNOWN` where that is not finite.
    done : torch.cuda.Event, optional
        Passed when the copies to the CPU are there; None where they are there already.
    held : list
        What the device still reads from.
    """

    outputs: dict[str, Output]
    classes: Tensor | None
    done: Any = None
    held: list[Any] = field(default_factory=list)

    def result(self) -> tuple[dict[str, NDArray[np.float32] | Strongest], NDArray[np.int64] | None]:
        """Return the outputs (images, …) by layer, or the maxima per channel, and the classes (images,)."""
        if self.done is not None:
            self.done.synchronize()
        self.held.clear()
        classes = None if self.classes is None else self.classes.numpy()
        return {name: _each(output, lambda part: part.numpy()) for name, output in self.outputs.items()}, classes


class Runner:
    """Runs a network over batches of pixels and yields the outputs of some of its layers; use it in a ``with`` block.

    On the CPU `start` computes. On a GPU it returns at once: pixels travel from pinned memory as bytes, are scaled
    there, and the outputs travel back, all on one stream of this runner's own, so that the next batch can be started
    before the result of this one is asked for.

    Parameters
    ----------
    network : Network
        The network, on its device.
    layers : sequence of str
        Layers wanted; may be empty.
    to_end : bool
        Run to the end and yield the class with the largest output, `UNKNOWN` where that is not finite.
    batch : int
        Images per batch, if all have as many; the last may have fewer.
    pooled : collection of str
        Layers of which only the maximum per channel is wanted.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        *,
        to_end: bool,
        batch: int = 0,
        pooled: Collection[str] = (),
    ) -> None:
        self._network = network
        self._device = network.device
        self._rooms = Rooms(batch, pinned=self.ahead)
        self._layers, self._to_end, self._batch, self._pooled = tuple(layers), to_end, batch, frozenset(pooled)
        self._room = self._rooms.tensor if self._device.type == "cpu" else None
        self._tap = None
        if not network.compile:
            self._tap = tap(
                network.module, layers, to_end=to_end, dims=network.dims, room=self._room, pooled=pooled
            )
        self._stream = _stream(self._device) if self.ahead else None
        how = network.preprocessing
        self._mean, self._std = (  # one number may serve all colours
            torch.tensor(values, dtype=torch.float32).expand(how.channels).to(self._device)
            for values in (how.mean, how.std)
        )
        self._full = torch.tensor(255.0, device=self._device)  # a number would become a product with its inverse

    @property
    def ahead(self) -> bool:
        """Whether `start` returns before the batch is done."""
        return self._device.type == "cuda"

    def pixels(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return room for the pixels of a batch: pinned where the network is on a GPU."""
        return self._rooms.array(shape, torch.uint8)

    def furnish(self, pixels: tuple[int, ...], ahead: int, outputs: Iterable[tuple[tuple[int, ...], int]]) -> None:
        """Make room now for what a whole run holds, so that the passes in between find their memory as they left it.

        Parameters
        ----------
        pixels : tuple of int
            Shape per image of the pixels.
        ahead : int
            Batches of pixels there are at the same time.
        outputs : iterable of (tuple of int, int)
            For each layer its shape per image, and how many batches of it there are at the same time.
        """
        counts: Counter[tuple[int, ...]] = Counter()
        for shape, count in outputs:
            counts[shape] += count
        with room_on(self._device, self._batch):  # memory that a card reads from may run out, too
            self._rooms.furnish(pixels, torch.uint8, ahead)
            counts[pixels] += self._room is not None
            for shape, count in counts.items():
                self._rooms.furnish(shape, torch.float32, count)

    def start(self, pixels: NDArray[np.uint8]) -> Running:
        """Send a batch on its way.

        Parameters
        ----------
        pixels : ndarray of uint8
            (images, height, width, colours), contiguous, from `pixels` where the copy shall be asynchronous; not to
            be written to before the result is there.

        Raises
        ------
        DeviceError
            If the device has no room for the batch.
        """
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        exact = computing_in(self._network.precision, self._device)
        with room_on(self._device, len(pixels)), stream, torch.inference_mode(), exact:
            inputs = self.inputs(torch.from_numpy(pixels).to(self._device, non_blocking=True))
            outputs, last = self._compiled(inputs) if self._tap is None else self._tap(inputs)
            outputs = {name: _each(outputs.pop(name), self._to_cpu) for name in list(outputs)}  # one after the other
            classes = None if last is None else self._to_cpu(_classes(last))
            if self._stream is None:
                return Running(outputs, classes)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
            return Running(outputs, classes, done, [pixels])

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return (images, colours, height, width), float32: ``(pixels / 255 - mean) / std``.

        In memory a picture stays as it came, pixel by pixel, which is the order in which convolutions are fastest.
        On the CPU they lie in a room of their own: they are there before anything else of a pass.
        """
        images, height, width, colors = pixels.shape
        scaled = pixels.to(torch.float32) if self._room is None else self._room(pixels.shape).copy_(pixels)
        scaled = scaled.view(-1, width * colors)  # rows: the colours' numbers repeat along them
        scaled.div_(self._full).sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        return scaled.view(images, height, width, colors).permute(0, 3, 1, 2)

    def _compiled(self, inputs: Tensor) -> tuple[dict[str, Output], Tensor | None]:
        """Run the compiled program, which takes batches of one size: a smaller one is filled up with zeros."""
        images = len(inputs)
        if images < self._batch:
            filled = blank_inputs((self._batch, *inputs.shape[1:]), self._device)
            filled[:images] = inputs
            inputs = filled
        run = program(self._network, self._layers, to_end=self._to_end, pooled=self._pooled, shape=inputs.shape)
        outputs, last = run(inputs)
        found = {name: _each(output, lambda part: self._own(part[:images]))
                 for name, output in zip(self._layers, outputs, strict=True)}  # fmt: skip
        return found, None if last is None else last[:images]

    def _own(self, part: Tensor) -> Tensor:
        """Return what a program yields in a room of its own, where it stays on the CPU."""
        if self._room is None:
            return part
        dtype = torch.float32 if part.is_floating_point() else part.dtype
        return self._room(part.shape, dtype).copy_(part)

    def _to_cpu(self, values: Tensor) -> Tensor:
        values = values.float() if values.is_floating_point() else values
        if values.device.type != "cuda":
            return values.cpu()
        return self._rooms.tensor(values.shape, values.dtype).copy_(values, non_blocking=True)

    def close(self) -> None:
        """Take the taps off the network."""
        if self._tap is not None:
            self._tap.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.synchronize()  # what was started may still read pixels that are about to be freed
        self.close()


def _each(output: Any, change: Callable[[Any], Any]) -> Any:
    """Change what is taken of a layer, both parts of a `Strongest` alike."""
    return Strongest(*map(change, output)) if isinstance(output, tuple) else change(output)


def _classes(output: Tensor) -> Tensor:
    if output.ndim != 2:
        raise NetworkError(f"the network yields shape {tuple(output.shape)}, not one number for each class")
    largest, classes = output.float().max(dim=1)  # of a row with NaN it is NaN; -inf rules a class out
    return torch.where(largest.isfinite(), classes, UNKNOWN)


def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
