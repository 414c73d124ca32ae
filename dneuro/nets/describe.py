"""The layers of a network: names, shapes, receptive fields, parameters, without loading weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets import catalogue
from dneuro.nets.calls import BATCH, check_layers, dry_run, empty_images
from dneuro.nets.receptive import FieldTracker, ReceptiveField
from dneuro.spec.network import NetworkSpec

__all__ = ["Layer", "Trace", "check_layers", "classifies", "layers", "trace"]


@dataclass(frozen=True)
class Layer:
    """One layer: one call of a leaf module.

    Parameters
    ----------
    name : str
        The module's name; with ``_1``, ``_2`` from its second call on.
    kind : str
        Class name of the module: ``Conv2d``.
    shape : tuple of int
        Shape of the output per image: (channel, y, x) or (channel,).
    field : ReceptiveField or None
        What each position sees of the input; None if everything, or unknown.
    parameters : tuple of str
        Names of the module's own parameters, ``features.0.weight``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    field: ReceptiveField | None
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """What a forward pass does, in order.

    Parameters
    ----------
    layers : dict
        Name to `Layer`, in the order of execution; calls that do not yield one row per image are left out.
    order : dict
        Name to place among all calls of leaf modules.
    entered : dict
        Name of each module that runs to the place in `order` of the first call after it began.
    classes : int or None
        Length of the last output if it is (batch, classes).
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

        def needed(key: str) -> bool:
            owner = key.rpartition(".")[0]
            while owner not in self.entered:
                owner = owner.rpartition(".")[0]
            return self.entered[owner] <= last

        return needed


def layers(spec: NetworkSpec, input_shape: tuple[int, int, int] | None = None) -> dict[str, Layer]:
    """Return all layers of a network by name, in the order of execution.

    Parameters
    ----------
    spec : NetworkSpec
        The network; its weights are not read.
    input_shape : (int, int, int), optional
        Channels, height and width of the input; the default is what its preprocessing makes.

    Raises
    ------
    NetworkError
        If the network is unknown or cannot take images of that shape.

    Notes
    -----
    Cost: one pass over shapes alone, 0.02 s for AlexNet, half a second for the largest.
    """
    return _trace_spec(spec, input_shape).layers


def classifies(spec: NetworkSpec) -> int | None:
    """Return the number of classes if the network's output is (batch, classes), else None."""
    return _trace_spec(spec).classes


def _trace_spec(spec: NetworkSpec, input_shape: tuple[int, int, int] | None = None) -> Trace:
    architecture = catalogue.find(spec)
    return trace(architecture.build_shapes(), input_shape or architecture.input_shape, spec.name)


def trace(module: nn.Module, input_shape: tuple[int, int, int], network: str = "the network") -> Trace:
    """Follow one forward pass, over shapes alone.

    Parameters
    ----------
    module : torch.nn.Module
        The network, in eval mode, with or without weights.
    input_shape : (int, int, int)
        Channels, height and width of its input.
    network : str
        Its name, for messages.

    Raises
    ------
    NetworkError
        If the network cannot take images of that shape.
    """
    found: dict[str, Layer] = {}
    order: dict[str, int] = {}
    entered: dict[str, int] = {}
    leaf_names = {part: name for name, part in module.named_modules()}
    images = empty_images(input_shape)

    def note(name: str, part: nn.Module, output: object) -> None:
        order[name] = len(order)
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == BATCH:
            own = tuple(f"{leaf_names[part]}.{key}" for key, _ in part.named_parameters())
            shape = tuple(output.shape[1:])
            found[name] = Layer(name, type(part).__name__, shape, tracker.field(output), own)

    with FieldTracker(images) as tracker:
        output = dry_run(module, images, note, lambda name: entered.setdefault(name, len(order)), network)
    if not isinstance(output, Tensor):
        raise NetworkError(
            f"{network} yields a {type(output).__name__}, not one tensor",
            hint="dneuro looks into networks that yield one tensor, such as classifiers",
        )
    classes = output.shape[1] if output.ndim == 2 and len(output) == BATCH else None
    return Trace(found, order, entered, classes)
