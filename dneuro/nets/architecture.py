"""A network before it has weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dneuro.errors import NetworkError
from dneuro.spec.network import Preprocessing

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Architecture:
    """A network before it has weights.

    Parameters
    ----------
    name : str
        As in the job: ``torchvision:alexnet``.
    identity : str
        What it is, whatever its weights: the name, or for code and files of the user a hash of them.
    build : callable
        Makes the module, in training mode, with random weights.
    preprocessing : Preprocessing or None
        How a picture becomes its input; None where nobody said so.
    input_shape : (int, int, int) or None
        Channels, height and width of its input; where the preprocessing leaves the size to the pictures, the
        size that the network was made for. None if that is not known either.
    standard : torchvision.models.WeightsEnum, optional
        The weights of torchvision whose input transform and class names hold; None for other networks.
    notes : tuple of str
        What the user should know.
    module : torch.nn.Module, optional
        The network itself, where it comes with weights.
    shapes : bool
        Whether its forward pass can run over shapes alone.
    """

    name: str
    identity: str
    build: Callable[[], nn.Module]
    preprocessing: Preprocessing | None
    input_shape: Shape | None
    standard: Any | None = None
    notes: tuple[str, ...] = ()
    module: nn.Module | None = None
    shapes: bool = True

    def build_shapes(self) -> nn.Module:
        """Return the network in eval mode with shapes only: no memory, no random numbers, milliseconds.

        A network that comes with weights is returned as it is.
        """
        if self.module is not None:
            return self.module
        with _Weightless():
            return self.build().eval()

    @property
    def needed_preprocessing(self) -> Preprocessing:
        """The preprocessing.

        Raises
        ------
        NetworkError
            If nobody said what it is.
        """
        if self.preprocessing is None:
            raise NetworkError(f"how a picture becomes the input of {self.name} is not known", hint=_HOW)
        return self.preprocessing

    @property
    def needed_shape(self) -> Shape:
        """The shape of the input.

        Raises
        ------
        NetworkError
            If it is not known.
        """
        if self.input_shape is None:
            raise NetworkError(f"the shape of the input of {self.name} is not known", hint=_HOW)
        return self.input_shape


_HOW = (
    "say it in the job, for example network: {preprocessing: {resize: 256, crop: 224, "
    "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}"
)


class _Weightless(TorchFunctionMode):
    """Puts what modules make their parameters from on the meta device.

    ``with torch.device("meta")`` would also take the numbers with which builders compute (RegNet's widths)
    and the index tables of attention.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def shape_made_by(preprocessing: Preprocessing, usual: tuple[int, ...]) -> Shape:
    """Return the shape that a preprocessing makes; of the usual height and width where pictures decide."""
    size = preprocessing.crop or preprocessing.resize
    if isinstance(size, int) and preprocessing.crop:
        size = (size, size)
    height, width = usual if size is None or isinstance(size, int) else size
    return preprocessing.channels, height, width


def check_channels(name: str, channels: int, preprocessing: Preprocessing) -> None:
    """Refuse a preprocessing that makes another number of colour channels than the network takes."""
    if preprocessing.channels != channels:
        hint = f"preprocessing: {{color: {'rgb' if channels == 3 else 'grey'}}}"
        raise NetworkError(
            f"{name} takes images of {channels} colour channel{'s' * (channels > 1)}, "
            f"preprocessing with color: {preprocessing.color} makes {preprocessing.channels}",
            hint=hint if channels in (1, 3) else "a network that takes pictures",
        )
