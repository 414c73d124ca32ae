"""Taps: the outputs of chosen layers, all in one forward pass that goes no further than it must."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.calls import LayerNames
from dneuro.nets.output import layer_output, main_output
from dneuro.nets.strongest import Strongest, strongest

Room = Callable[..., Tensor]

Output = Tensor | Strongest
"""What is taken of a layer: all of it, or the maximum per channel."""


class _Stop(Exception):  # noqa: N818 - not an error: every wanted layer has been seen
    pass


class _Pass(threading.local):
    """What the forward pass of the current thread has seen; `batch` is None where there is none."""

    def __init__(self) -> None:
        self.batch: int | None = None
        self.calls: Counter[str] = Counter()
        self.outputs: dict[str, Output] = {}


class Tap:
    """Yields the outputs of layers, made by `tap`; close it, or use it in a ``with`` block, to take it off.

    Several threads may call one Tap at the same time, and a network may have several Taps.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str],
        *,
        to_end: bool = False,
        dims: Mapping[str, tuple[str, ...] | None] | None = None,
        room: Room | None = None,
        pooled: Collection[str] = (),
    ) -> None:
        layer_names = LayerNames(module)
        self._dims = dict(dims or {})
        self._module = module
        self._names = tuple(dict.fromkeys(names))
        self._to_end = to_end
        self._room = room
        self._pooled = frozenset(pooled)
        self._pass = _Pass()
        self._wanted = {layer_names.find(name): name for name in self._names}
        if to_end:
            _refuse_partial(module)
        watched = {module for module, _ in self._wanted}
        self._handles = [self._watch(name, layer_names.modules[name]) for name in sorted(watched)]

    def __call__(self, batch: Tensor) -> tuple[dict[str, Output], Tensor | None]:
        """Run the network on `batch`.

        Parameters
        ----------
        batch : Tensor
            Images (batch, channel, y, x); moved to the network's device.

        Returns
        -------
        outputs : dict
            Layer name to a copy of its output (batch, …), in the order in which the layers were named; contiguous,
            and with the channels first where `dims` say where they are; its `Strongest` where it is `pooled`.
        last : Tensor or None
            The network's own output where it ran `to_end`.

        Raises
        ------
        NetworkError
            If a layer is not reached, or its output is not one tensor of real numbers with a row per image.
        """
        if not self._handles and self._wanted:
            raise NetworkError("this tap is closed", hint="make a new one with tap(module, names)")
        seen = self._pass
        seen.batch, seen.calls, seen.outputs = len(batch), Counter(), {}
        last = None
        try:
            with torch.inference_mode():
                last = self._module(batch.to(device=_device(self._module)))
        except _Stop:
            pass
        finally:
            outputs = seen.outputs
            seen.batch, seen.outputs = None, {}
        for name in self._names:
            if name not in outputs:
                raise NetworkError(
                    f"layer {name!r} was not called in a forward pass of the network",
                    hint="`dneuro layers <network>` lists those that are",
                )
        end = _check_output("the network", _main(last), len(batch)) if self._to_end else None
        return {name: outputs[name] for name in self._names}, end

    def close(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self, module: str, part: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_part: nn.Module, _args: object, output: object) -> None:
            seen = self._pass
            if seen.batch is None:  # somebody else's forward pass
                return
            name = self._wanted.get((module, seen.calls[module]))
            seen.calls[module] += 1
            if name is None:
                return
            # A copy: the next layer may work in place, as AlexNet's ReLU does on what features.0 yields.
            yielded = _check_output(f"layer {name!r}", layer_output(output), seen.batch)
            kept = _channels_first(yielded, self._dims.get(name))
            if name in self._pooled:
                seen.outputs[name] = self._in_rooms(strongest(kept))
            elif self._room is None:
                seen.outputs[name] = kept.clone(memory_format=torch.contiguous_format)
            else:
                seen.outputs[name] = self._room(kept.shape).copy_(kept)
            if len(seen.outputs) == len(self._wanted) and not self._to_end:
                raise _Stop

        return part.register_forward_hook(hook)

    def _in_rooms(self, found: Strongest) -> Strongest:
        if self._room is None:
            return found
        return Strongest(*(self._room(part.shape, part.dtype).copy_(part) for part in found))


def tap(
    module: nn.Module,
    names: Iterable[str],
    *,
    to_end: bool = False,
    dims: Mapping[str, tuple[str, ...] | None] | None = None,
    room: Room | None = None,
    pooled: Collection[str] = (),
) -> Tap:
    """Return a callable that runs the network and yields the outputs of some of its layers.

    Parameters
    ----------
    module : torch.nn.Module
        The network, in eval mode.
    names : iterable of str
        Layers, as `dneuro.nets.describe.layers` names them.
    to_end : bool
        Run to the end and yield the network's output too (``out`` of several); otherwise stop after the last of
        the layers.
    dims : mapping of str to tuple of str, optional
        What the axes of the layers' outputs are, from `dneuro.nets.describe.Layer` or `Network.dims`: then a layer
        (y, x, channel) comes out as (batch, channel, y, x) and one of (token, channel) as (batch, channel, token, 1),
        the shape that `Layer.stored` says. Without it outputs come as the network has them.

    room : callable, optional
        From a shape, and a dtype if it is not float32, to the tensor on the CPU that an output is copied to; the
        default makes new ones of the output's own kind.
    pooled : collection of str
        Layers (channel, y, x) of which only the maximum per channel is wanted: they are not copied.

    Raises
    ------
    NetworkError
        If the network has no such layer, or is to run to its end but has not all of its weights.

    Examples
    --------
    >>> from dneuro.nets.convnet import ConvNet
    >>> with tap(ConvNet().eval(), ["relu2", "conv1"]) as tapped:
    ...     outputs, last = tapped(torch.zeros(4, 1, 28, 28))
    >>> {name: tuple(output.shape) for name, output in outputs.items()}, last
    ({'relu2': (4, 20, 4, 4), 'conv1': (4, 10, 24, 24)}, None)
    """
    return Tap(module, names, to_end=to_end, dims=dims, room=room, pooled=pooled)


def _channels_first(output: Tensor, dims: tuple[str, ...] | None) -> Tensor:
    if dims == ("y", "x", "channel"):
        return output.permute(0, 3, 1, 2)
    if dims == ("token", "channel"):
        return output.transpose(1, 2).unsqueeze(-1)
    return output


def _main(output: object) -> object:
    found = main_output(output)
    return output if found is None else found


def _check_output(what: str, output: object, batch: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise NetworkError(f"{what} yields a {type(output).__name__}, not one tensor")
    if output.ndim < 2 or len(output) != batch:
        shape = tuple(output.shape)
        raise NetworkError(f"{what} yields shape {shape}, not one row for each of {batch} images")
    if output.is_complex():
        raise NetworkError(
            f"{what} yields complex numbers ({output.dtype}), not real ones",
            hint="another layer; or a module behind it that makes them real, such as one that yields torch.abs of them",
        )
    return output


def _refuse_partial(module: nn.Module) -> None:
    empty = [name for name, tensor in module.named_parameters() if tensor.is_meta]
    if empty:
        raise NetworkError(
            f"the network cannot run to its end: there are no weights for {empty[0]}",
            hint="store no predictions (`predictions: false`), or give all of the weights",
        )


def _device(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in module.parameters() if not tensor.is_meta), None)
