"""The calls of a forward pass: what they are named, and running a network without computing anything.

A *layer* is one call of a module: a leaf, such as a convolution, a block, such as SqueezeNet's Fire, or a container,
such as a ResNet's ``layer4``, which yields what the last of its parts does. Its name is the module's, as
``named_modules`` gives it;
the second and third call of the same module get ``_1`` and ``_2``, as in torchvision's feature extraction:
``layer1.0.relu`` and ``layer1.0.relu_1`` of a ResNet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from dneuro.errors import NetworkError, suggest

BATCH = 5
"""Images in a dry run: few other dimensions have this size, so what lacks one row per image stands out."""


class Place(nn.Module):
    """Stands where the original of an exported network had a module: holds its tensors, and passes on its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self._kind: str | None = None
        """Class name of the original where its calls are layers."""

    def forward(self, output: Tensor) -> Tensor:
        """Return what the original yielded."""
        return output


def kind_of(module: nn.Module) -> str:
    """Return the class name of a module, or of what it stands for."""
    return (module._kind if isinstance(module, Place) else None) or type(module).__name__


def is_layer(module: nn.Module) -> bool:
    """Tell whether calls of `module` are layers: it can be called, which a mere list of modules cannot."""
    if isinstance(module, Place):
        return module._kind is not None
    return type(module).forward is not nn.Module.forward


def passes_on(module: nn.Module) -> bool:
    """Tell whether a module yields what the last of its parts does, and has nothing of its own."""
    return type(module).forward is nn.Sequential.forward


class LayerNames:
    """Names of the layers of a module, and back.

    Parameters
    ----------
    module : torch.nn.Module
        The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._taken = {name for name, _ in module.named_modules()}
        self.modules = {name: part for name, part in module.named_modules() if name and is_layer(part)}

    def name(self, module: str, repeat: int) -> str:
        """Return the name of call number `repeat` (0 is the first) of a module."""
        number = 0
        while repeat:  # a module that is itself called relu_1 keeps its name
            number += 1
            repeat -= f"{module}_{number}" not in self._taken
        return f"{module}_{number}" if number else module

    def find(self, layer: str) -> tuple[str, int]:
        """Return the module and the number of its call that the name `layer` stands for.

        Raises
        ------
        NetworkError
            If no module can have a call of that name.
        """
        if layer in self.modules:
            return layer, 0
        parts = re.fullmatch(r"(.+)_([1-9]\d{0,5})", layer)
        if parts and parts[1] in self.modules and layer not in self._taken:
            module, number = parts[1], int(parts[2])
            return module, sum(f"{module}_{n}" not in self._taken for n in range(1, number + 1))
        raise NetworkError(f"the network has no layer {layer!r}", hint=suggest(layer, self.modules))


def check_layers(known: Iterable[str], wanted: Iterable[str], network: str) -> None:
    """Refuse layers that a network does not have.

    Parameters
    ----------
    known : iterable of str
        The layers there are.
    wanted : iterable of str
        The layers asked for.
    network : str
        Name of the network, for the message.

    Raises
    ------
    NetworkError
        If a wanted layer is not among the known ones; the hint lists the nearest.
    """
    known = list(known)
    unknown = [layer for layer in wanted if layer not in known]
    if unknown:
        others = f" (nor {', '.join(map(repr, unknown[1:]))})" if unknown[1:] else ""
        raise NetworkError(f"{network} has no layer {unknown[0]!r}{others}", hint=suggest(unknown[0], known))


def empty_images(input_shape: tuple[int, int, int]) -> Tensor:
    """Return a batch of images (5, channel, y, x) that has a shape but no content and no memory."""
    return torch.empty((BATCH, *input_shape), device="meta")


def zero_images(input_shape: tuple[int, int, int]) -> Tensor:
    """Return a batch of black images (5, channel, y, x), float32, on the CPU."""
    return torch.zeros((BATCH, *input_shape))


def dry_run(
    module: nn.Module,
    images: Tensor,
    on_call: Callable[[str, nn.Module, object], object],
    on_enter: Callable[[str], object] | None = None,
    network: str = "the network",
) -> object:
    """Run a network over shapes alone, or black images, and report its calls in the order of execution.

    Parameters
    ----------
    module : torch.nn.Module
        The network, in eval mode, with or without weights. Not to be used by another thread meanwhile.
    images : Tensor
        From `empty_images`, or from `zero_images` for a network with weights on the CPU.
    on_call : callable
        Called with each layer's name, its module and its output.
    on_enter : callable, optional
        Called with the name of each module, layer or not, when its forward pass begins.
    network : str
        Name of the network, for messages.

    Returns
    -------
    object
        The network's output, usually a Tensor.

    Raises
    ------
    NetworkError
        If the network cannot take images of that shape.

    Notes
    -----
    Cost over shapes: no arithmetic; about a millisecond per ten layers, and no memory for weights or activations.
    """
    names = LayerNames(module)
    calls: Counter[str] = Counter()

    def leave(name: str, part: nn.Module, output: object) -> None:
        on_call(names.name(name, calls[name]), part, output)
        calls[name] += 1

    def enter(name: str) -> None:
        if on_enter is not None:
            on_enter(name)

    def watch(name: str, part: nn.Module) -> Iterable[RemovableHandle]:
        yield part.register_forward_pre_hook(lambda _part, _args: enter(name))
        if name in names.modules:
            yield part.register_forward_hook(lambda part, _args, output: leave(name, part, output))

    shapes = _shapes(module) if images.is_meta else None
    with ExitStack() as stack, torch.inference_mode():
        for name, part in module.named_modules():
            for handle in watch(name, part):
                stack.callback(handle.remove)
        try:
            return module(images) if shapes is None else functional_call(module, shapes, (images,))
        except Exception as error:  # whatever a foreign forward pass raises over a shape it cannot take
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            shape = "×".join(map(str, images.shape[1:]))
            raise NetworkError(
                f"{network} cannot take an input of {shape} (channels × height × width): {reason}",
                hint="let `preprocessing:` make images of the size the network was built for",
            ) from error


def _shapes(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
