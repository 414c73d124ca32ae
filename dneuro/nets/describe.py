"""The layers of a network: names, shapes, receptive fields, parameters, without loading weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dneuro.nets import catalogue
from dneuro.nets.calls import BATCH, check_layers, dry_run, empty_images, kind_of, passes_on, zero_images
from dneuro.nets.follow import Follower
from dneuro.nets.output import layer_output, main_output
from dneuro.nets.receptive import ReceptiveField
from dneuro.spec.network import NetworkSpec

__all__ = ["Layer", "Trace", "check_layers", "classifies", "layers", "table", "trace"]


@dataclass(frozen=True)
class Layer:
    """One layer: one call of a module, see `dneuro.nets.calls`.

    Parameters
    ----------
    name : str
        The module's name; with ``_1``, ``_2`` from its second call on.
    kind : str
        Class name of the module: ``Conv2d``.
    shape : tuple of int
        Shape of the output per image, its axes in the order of `dims`.
    field : ReceptiveField or None
        What each position sees of the input; None if everything, or unknown.
    parameters : tuple of str
        Names of the module's own parameters, ``features.0.weight``.
    dims : tuple of str, or None
        What the axes of the output are, per image: ``("channel",)``, ``("channel", "y", "x")``,
        ``("y", "x", "channel")`` or ``("token", "channel")``; None if they are something else (windows of an
        attention), or not known.
    is_complex : bool
        Whether the output is of complex numbers, which cannot be stored.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    field: ReceptiveField | None
    parameters: tuple[str, ...]
    dims: tuple[str, ...] | None
    is_complex: bool = False

    @property
    def stored(self) -> tuple[int, ...] | None:
        """Shape per image with the channels first, (channel,) or (channel, y, x), as a Tap with `dims` yields it.

        Tokens lie along y: (channel, token, 1). None where `dims` is.
        """
        if self.dims == ("y", "x", "channel"):
            height, width, channels = self.shape
            return channels, height, width
        if self.dims == ("token", "channel"):
            tokens, channels = self.shape
            return channels, tokens, 1
        return self.shape if self.dims else None


@dataclass(frozen=True)
class Trace:
    """What a forward pass does, in order.

    Parameters
    ----------
    layers : dict
        Name to `Layer`, in the order of execution; calls that do not yield one row per image are left out.
    order : dict
        Name to place among all calls, a block after its parts.
    entered : dict
        Name of each module that runs to the place in `order` of the first call after it began.
    classes : int or None
        Length of the last output if it is (batch, classes) of real numbers.
    """

    layers: dict[str, Layer]
    order: dict[str, int]
    entered: dict[str, int]
    classes: int | None

    def needs(self, wanted: Iterable[str]) -> Callable[[str], bool]:
        """Return a function that tells whether a key of the state is used before all `wanted` are reached.

        Modules that use parts without calling them (attention) need all of their parts.
        """
        last = max(self.order[name] for name in wanted)
        return lambda key: self._first_use(key) <= last

    def users(self, keys: Iterable[str], wanted: Iterable[str]) -> list[str]:
        """Return which of the layers `wanted` need one of the keys."""
        first = min(self._first_use(key) for key in keys)
        return [name for name in wanted if self.order[name] >= first]

    def _first_use(self, key: str) -> int:
        owner = key.rpartition(".")[0]
        while owner not in self.entered:
            owner = owner.rpartition(".")[0]
        return self.entered[owner]


def layers(spec: NetworkSpec, input_shape: tuple[int, int, int] | None = None) -> dict[str, Layer]:
    """Return all layers of a network by name, in the order of execution.

    Parameters
    ----------
    spec : NetworkSpec
        The network; its weights are not read, unless they come with it.
    input_shape : (int, int, int), optional
        Channels, height and width of the input; the default is what its preprocessing makes.

    Raises
    ------
    NetworkError
        If the network is unknown or cannot take images of that shape, or the shape is not known.

    Notes
    -----
    Cost: one pass over shapes alone, 0.02 s for AlexNet, half a second for the largest. For a network made by the
    user's Python one pass of five images of zeros.
    """
    return _trace_spec(spec, input_shape).layers


def classifies(spec: NetworkSpec) -> int | None:
    """Return the number of classes if the network's output is (batch, classes), else None."""
    return _trace_spec(spec).classes


def table(found: Mapping[str, Layer], images: int | None = None) -> list[dict[str, Any]]:
    """Return what a list of layers shows, one row each, JSON-able.

    Parameters
    ----------
    found : mapping of str to Layer
        From `layers`.
    images : int, optional
        Number of images, for `bytes`.

    Returns
    -------
    list of dict
        ``name``, ``kind``, ``shape`` and ``dims`` per image; ``receptive_field`` with ``size``, ``stride`` and
        ``start`` in input pixels as [y, x], None if everything or unknown; ``bytes_per_image`` as float32; ``bytes``
        of all images, None without their number; ``parameters``, names of the layer's own.
    """
    return [_row(layer, images) for layer in found.values()]


def _row(layer: Layer, images: int | None) -> dict[str, Any]:
    field = layer.field
    size = 4 * math.prod(layer.shape)
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "dims": None if layer.dims is None else list(layer.dims),
        "receptive_field": field and {key: list(getattr(field, key)) for key in ("size", "stride", "start")},
        "bytes_per_image": size,
        "bytes": None if images is None else size * images,
        "parameters": list(layer.parameters),
    }


def _trace_spec(spec: NetworkSpec, input_shape: tuple[int, int, int] | None = None) -> Trace:
    architecture = catalogue.find(spec)
    module = architecture.build_shapes()
    return trace(module, input_shape or architecture.needed_shape, spec.name, shapes=architecture.shapes)


def trace(
    module: nn.Module, input_shape: tuple[int, int, int], network: str = "the network", *, shapes: bool = True
) -> Trace:
    """Follow one forward pass.

    Parameters
    ----------
    module : torch.nn.Module
        The network, in eval mode, with or without weights.
    input_shape : (int, int, int)
        Channels, height and width of its input.
    network : str
        Its name, for messages.
    shapes : bool
        Over shapes alone; otherwise with numbers, on the CPU, which any forward pass can take.

    Raises
    ------
    NetworkError
        If the network cannot take images of that shape.
    """
    found: dict[str, Layer] = {}
    order: dict[str, int] = {}
    entered: dict[str, int] = {}
    module_names = {part: name for name, part in module.named_modules()}
    images = empty_images(input_shape) if shapes else zero_images(input_shape)

    def note(name: str, part: nn.Module, output: object) -> None:
        order[name] = len(order)
        output = layer_output(output)
        if isinstance(output, Tensor) and follower.per_image(output):
            # torch's own modules may use parts that they do not call; those of a block are layers themselves.
            inner = type(part).__module__.startswith("torch.nn") and not passes_on(part)
            own = tuple(f"{module_names[part]}.{key}" for key, _ in part.named_parameters(recurse=inner))
            shape, field, dims = tuple(output.shape[1:]), follower.field(output), follower.dims(output)
            found[name] = Layer(name, kind_of(part), shape, field, own, dims, output.is_complex())

    with Follower(images) as follower:
        output = dry_run(module, images, note, lambda name: entered.setdefault(name, len(order)), network)
    main = main_output(output)
    classes = None
    if main is not None and main.ndim == 2 and len(main) == BATCH and not main.is_complex():
        classes = main.shape[1]
    return Trace(found, order, entered, classes)
