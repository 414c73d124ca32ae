"""A network and its taps made one program by torch.compile: all wanted layers, and nothing after the last of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.precision import computing_in
from dneuro.nets.taps import Output, tap

if TYPE_CHECKING:
    from dneuro.nets.load import Network

_lock = threading.Lock()
"""torch compiles one program at a time."""


def program(
    network: Network, layers: Iterable[str], *, to_end: bool, pooled: Iterable[str], shape: Sequence[int]
) -> nn.Module:
    """Return the program of a network for batches of one shape; made once, kept with the network.

    Parameters
    ----------
    network : Network
        The network, on its device; `network.programs` keeps what was made of it.
    layers : iterable of str
        Layers, as `dneuro.nets.describe.layers` names them.
    to_end : bool
        Whether it yields the network's own output too.
    pooled : iterable of str
        Layers of which only the maximum per channel is wanted.
    shape : sequence of int
        Images, channels, height and width. Another number of images would be another program: fill a batch up.

    Returns
    -------
    Module
        From images to a list of the layers' outputs, in the order of `layers`, and the network's own output or None.
        They are as `tap` yields them, but for the order in memory.

    Raises
    ------
    NetworkError
        If the network cannot be compiled as a whole. What torch cannot compile it would otherwise run as before
        without a word.

    Notes
    -----
    **Cost**: half a minute of a core for SqueezeNet on a CPU, and what the compiler needs of memory
    (`dneuro.extract.plan.COMPILER_BYTES`).
    """
    key = (tuple(layers), to_end, frozenset(pooled), tuple(shape))
    with _lock:
        if key not in network.programs:
            try:
                network.programs[key] = _make(network, *key)
            except (NetworkError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:  # whatever the compiler trips over
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise NetworkError(f"{network.name} cannot be compiled: {why}", hint=_hint(error)) from error
        return network.programs[key]


def _make(
    network: Network, layers: tuple[str, ...], to_end: bool, pooled: frozenset[str], shape: tuple[int, ...]
) -> nn.Module:
    from torch._inductor import config
    from torch.fx.experimental.proxy_tensor import make_fx

    images = blank(shape, network.device)
    with (
        torch.no_grad(),
        computing_in(network.precision, network.device),
        config.patch(compile_threads=1),  # others would be processes that nobody counts
        tap(network.module, layers, to_end=to_end, dims=network.dims, pooled=pooled) as tapped,
    ):

        def listed(batch: Tensor) -> tuple[list[Output], Tensor | None]:
            outputs, last = tapped(batch)
            return list(outputs.values()), last

        # Not torch.export: it loses its way where the taps end the pass behind the last layer.
        plain = make_fx(listed, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(images)
        compiled: Any = torch.compile(plain, fullgraph=True, dynamic=False)
        compiled(images)
    return compiled  # type: ignore[no-any-return]


def blank(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return inputs (images, colours, height, width) of zeros that lie in memory as those of pictures do.

    Another order would be another program to torch.
    """
    images, colors, height, width = shape
    return torch.zeros((images, height, width, colors), device=device).permute(0, 3, 1, 2)


def _hint(error: Exception) -> str:
    if "No working C++ compiler" in str(error):
        return "install a C++ compiler (g++) on the workers, or leave network.compile out"
    if "data-dependent" in str(error):
        return "it computes what to do next from its numbers: leave network.compile out"
    return "leave network.compile out"
