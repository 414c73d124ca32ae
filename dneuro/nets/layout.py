"""Memory formats: whether convolutions hold a picture pixel by pixel (channels last) or channel by channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from dneuro.errors import NetworkError
from dneuro.nets.calls import kind_of

Wanted = Literal["auto", "channels_last", "contiguous"]
Format = Literal["channels_last", "contiguous"]

_CONVOLUTIONS = ("Conv2d", "ConvTranspose2d")
_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def arrange(
    module: nn.Module, wanted: Wanted, input_shape: tuple[int, int, int], *, known: bool, network: str
) -> Format:
    """Put the weights of convolutions into the memory format that a job wants, and return it.

    A convolution works in the format of its weights, and what follows goes on in it; the input needs no change.
    Values stay the same up to rounding.

    Parameters
    ----------
    module : torch.nn.Module
        The network, with its weights, in eval mode; changed in place.
    wanted : {"auto", "channels_last", "contiguous"}
        ``auto``: channels last if the network has convolutions and can take it.
    input_shape : (int, int, int)
        Channels, height and width of its input.
    known : bool
        Whether the network is known to take channels last. Another one is tried out with one image: a ``view`` of
        its activations may rely on their order in memory.
    network : str
        Its name, for messages.

    Raises
    ------
    NetworkError
        If ``channels_last`` is asked for and the network cannot take it.
    """
    if wanted == "contiguous" or (wanted == "auto" and not any(True for _ in _weights(module))):
        _convert(module, "contiguous")
        return "contiguous"
    _convert(module, "channels_last")
    reason = None if known else _try(module, input_shape)
    if reason is None:
        return "channels_last"
    if wanted == "channels_last":
        raise NetworkError(f"{network} cannot work channels last: {reason}", hint="network: {memory_format: auto}")
    _convert(module, "contiguous")
    return "contiguous"


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    for part in module.modules():
        weight = getattr(part, "weight", None) if kind_of(part) in _CONVOLUTIONS else None
        if isinstance(weight, nn.Parameter) and weight.ndim == 4:
            yield weight


def _convert(module: nn.Module, form: Format) -> None:
    for weight in _weights(module):
        weight.data = weight.data.contiguous(memory_format=_FORMATS[form])


def _try(module: nn.Module, input_shape: tuple[int, int, int]) -> str | None:
    """Return why the network cannot run as it is; None if it can."""
    if any(tensor.is_meta for tensor in module.parameters()):
        return "not all of its weights are there to try it"
    device = next((tensor.device for tensor in module.parameters()), None)
    try:
        with torch.inference_mode():
            module(torch.zeros((1, *input_shape), device=device))
    except Exception as error:  # whatever a foreign forward pass raises
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
