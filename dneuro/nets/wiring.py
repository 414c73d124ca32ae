"""The weights between two layers of a network, as target channel × source channel × kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.describe import Layer
from dneuro.nets.load import Network
from dneuro.nets.taps import tap

WEIGHTED = {"Conv2d", "Linear"}
NORMS = {"BatchNorm2d", "BatchNorm1d"}
BY_CHANNEL = NORMS | {
    "ReLU", "ReLU6", "LeakyReLU", "ELU", "GELU", "SiLU", "Hardswish", "Sigmoid", "Tanh", "Identity", "Dropout",
    "Dropout2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Flatten", "LocalResponseNorm",
}  # fmt: skip
"""Kinds of modules that leave every channel where it is (response normalisation mixes neighbours a little)."""


@dataclass(frozen=True)
class Wiring:
    """What lies between two layers.

    Parameters
    ----------
    module : str
        Name of the one module with weights.
    before, after : tuple of str
        Names of the modules in front of it, from the source on, and of those behind it, up to the target.
    """

    module: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def wiring(layers: Mapping[str, Layer], source: str, target: str, network: str = "the network") -> Wiring:
    """Return what lies between two layers, if it is one convolution or linear layer and what works by channel.

    Parameters
    ----------
    layers : mapping of str to Layer
        All layers in the order of execution, from `dneuro.nets.describe.layers`.
    source, target : str
        The earlier and the later layer.

    Raises
    ------
    NetworkError
        If there is no such module, several, or something whose effect on channels is not known.
    """
    names = [name for name in layers if not any(other.startswith(f"{name}.") for other in layers)]
    for name in (source, target):
        if name not in names:
            raise NetworkError(f"{name} is no single module of {network}", hint="a layer without parts of its own")
    first, last = names.index(source), names.index(target)
    if first >= last:
        raise NetworkError(f"{source} does not come before {target} in {network}", hint=f"source: one before {target}")
    between = names[first + 1 : last + 1]
    weighted = [name for name in between if layers[name].kind in WEIGHTED]
    odd = [name for name in between if layers[name].kind not in WEIGHTED | BY_CHANNEL]
    if len(weighted) != 1 or odd:
        said = f"{odd[0]} ({layers[odd[0]].kind})" if odd else f"{len(weighted)} modules with weights"
        raise NetworkError(
            f"between {source} and {target} of {network} lie {said}: no one weight leads from a channel to a channel",
            hint="two layers with one convolution or linear layer between them",
        )
    place = between.index(weighted[0])
    return Wiring(weighted[0], tuple(between[:place]), tuple(between[place + 1 :]))


def weight_shape(
    module: nn.Module, found: Wiring, channels: int
) -> tuple[int, int, int, int]:
    """Return the shape (target channels, source channels, y, x) of the weights; needs no numbers."""
    part = module.get_submodule(found.module)
    shape = tuple(int(length) for length in part.weight.shape)  # type: ignore[union-attr]
    if len(shape) == 4:
        return shape[0], channels, shape[2], shape[3]
    return shape[0], channels, 1, shape[1] // channels


def weights_of(network: Network, found: Wiring, source: str, target: str) -> NDArray[np.float64]:
    """Return the weights between two layers (target channel, source channel, y, x), zero where groups keep apart.

    A batch norm on the way is multiplied in. Of a linear layer behind positions, y and x are these positions, as
    pooled.

    Raises
    ------
    NetworkError
        If the target is not what these modules make of the source: the network branches there, or does more between
        them than its modules say.

    Notes
    -----
    Cost: two forward passes of one random image, which prove that the way is the one that was found.
    """
    image = torch.rand(1, *network.input_shape, generator=torch.Generator().manual_seed(0))
    with tap(network.module, [source, target]) as tapped:
        outputs = {name: cast(Tensor, output) for name, output in tapped(image)[0].items()}
    part = network.module.get_submodule(found.module)
    with torch.inference_mode():
        entering = _through(network.module, found.before, outputs[source])
        flat = entering.flatten(1) if isinstance(part, nn.Linear) else entering
        try:
            made = _through(network.module, found.after, part(flat))
        except RuntimeError:
            made = None
    if made is None or made.shape != outputs[target].shape or not torch.allclose(
        made, outputs[target], rtol=1e-3, atol=1e-4 * float(outputs[target].abs().max())
    ):  # fmt: skip
        raise NetworkError(
            f"{target} of {network.name} is not made of {source} by {found.module} alone",
            hint="two layers that follow each other without a branch",
        )
    weight = _dense(part, _places(network.module, found.before, outputs[source]))
    for name in found.before:
        weight = weight * _scale(network.module.get_submodule(name), 0)
    for name in found.after:
        weight = weight * _scale(network.module.get_submodule(name), 1)
    return np.asarray(weight.double().cpu().numpy())


def _through(module: nn.Module, names: tuple[str, ...], output: Tensor) -> Tensor:
    output = output.clone()
    for name in names:
        output = module.get_submodule(name)(output)
    return output


def _places(module: nn.Module, names: tuple[str, ...], output: Tensor) -> tuple[int, ...]:
    """Return the last height and width that channels have on a way, before they are flattened; 1 × 1 of none."""
    found: tuple[int, ...] = (1, 1)
    with torch.inference_mode():
        for length in range(len(names) + 1):
            made = _through(module, names[:length], output)
            found = tuple(made.shape[2:]) if made.ndim == 4 else found
    return found


def _dense(part: Any, places: tuple[int, ...]) -> Tensor:
    """Return weights (target channel, source channel, y, x); those between groups are 0."""
    weight: Tensor = part.weight.detach()
    if isinstance(part, nn.Linear):
        return weight.reshape(len(weight), -1, *places)
    groups, (targets, sources) = part.groups, weight.shape[:2]
    dense = weight.new_zeros((targets, sources * groups, *weight.shape[2:]))
    each = targets // groups
    for group in range(groups):
        rows = slice(group * each, (group + 1) * each)
        dense[rows, group * sources : (group + 1) * sources] = weight[rows]
    return dense


def _scale(part: Any, before: int) -> Tensor | float:
    """Return what a batch norm multiplies channels by, shaped to the sources (0) or the targets (1) of weights."""
    if type(part).__name__ not in NORMS:
        return 1.0
    factor: Tensor = torch.rsqrt(part.running_var + part.eps)
    factor = factor * part.weight.detach() if part.weight is not None else factor
    return factor.reshape(-1, 1, 1, 1) if before else factor.reshape(1, -1, 1, 1)
