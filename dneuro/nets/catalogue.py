"""Which networks there are, how each is built, and what its input looks like."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from dneuro.errors import NetworkError, suggest
from dneuro.nets import convnet
from dneuro.spec.network import NetworkSpec, Preprocessing

CONVNET = "dneuro:convnet"
_TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Architecture:
    """A network before it has weights.

    Parameters
    ----------
    name : str
        As in the job: ``torchvision:alexnet``.
    build : callable
        Makes the module, in training mode, with random weights.
    preprocessing : Preprocessing
        How a picture becomes its input.
    input_shape : (int, int, int)
        Channels, height and width of its input; where the preprocessing leaves the size to the pictures, the
        size that the network was made for.
    standard : torchvision.models.WeightsEnum or None
        The weights of torchvision whose input transform and class names hold; None for other networks.
    """

    name: str
    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    standard: Any | None

    def build_shapes(self) -> nn.Module:
        """Return the network in eval mode with shapes only: no memory, no random numbers, milliseconds."""
        with _Weightless():
            return self.build().eval()


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


def names() -> list[str]:
    """Return the names of all networks: ours, and torchvision's that take images and yield one tensor."""
    return [CONVNET, *(_TORCHVISION + name for name in models.list_models(module=models))]


def kind_of_weights(weights: str) -> Literal["DEFAULT", "none", "file"]:
    """Tell what the ``weights:`` of a job mean."""
    if weights.upper() == "DEFAULT":
        return "DEFAULT"
    return "none" if weights.lower() == "none" else "file"


def find(spec: NetworkSpec, weights: str | None = None) -> Architecture:
    """Return the architecture that a job names; nothing is built and no file is read.

    Parameters
    ----------
    spec : NetworkSpec
        Name, number of classes and preprocessing.
    weights : str, optional
        Stands in for ``spec.weights``. A file that has the name of one of torchvision's (such as
        ``vit_b_16_swag-9ac1b537.pth``) brings that one's input transform and image size.

    Raises
    ------
    NetworkError
        If the network is unknown, or the preprocessing makes another number of colour channels.
    """
    _check_name(spec.name)
    if spec.name == CONVNET:
        build: Callable[[], nn.Module] = partial(convnet.ConvNet, spec.classes or convnet.CLASSES)
        preprocessing = spec.preprocessing or Preprocessing(resize=convnet.INPUT_SHAPE[1:], color="grey")
        _check_channels(spec.name, 1, preprocessing)
        shape = _input_shape(preprocessing, convnet.INPUT_SHAPE[1:])
        return Architecture(spec.name, build, preprocessing, shape, None)
    model = spec.name.removeprefix(_TORCHVISION)
    standard = _standard_weights(model, spec.weights if weights is None else weights)
    preprocessing = spec.preprocessing or _preprocessing(standard)
    _check_channels(spec.name, 3, preprocessing)
    classes = spec.classes or len(standard.meta["categories"])
    build = partial(models.get_model, model, weights=None, num_classes=classes, **_settings(model, standard))
    shape = _input_shape(preprocessing, standard.transforms().crop_size * 2)
    return Architecture(spec.name, build, preprocessing, shape, standard)


def rename_key(key: str) -> str | None:
    """Return what a key of an older file is called today; None if it belongs to training only."""
    if re.match(r"(aux[12]|AuxLogits)\.", key):  # second outputs of Inception, which only its training uses
        return None
    for pattern, today in _RENAMED:
        key = pattern.sub(today, key)
    return key


_RENAMED = [
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$"), r"\1\2"),  # DenseNet
    (re.compile(r"\.mlp\.linear_1\.(\w+)$"), r".mlp.0.\1"),  # vision transformers
    (re.compile(r"\.mlp\.linear_2\.(\w+)$"), r".mlp.3.\1"),
]
"""Names that torchvision changed after it published weights (its own loaders do the same)."""


def _check_name(name: str) -> None:
    known = names()
    if name in known:
        return
    if name.startswith(_TORCHVISION) and name.removeprefix(_TORCHVISION) in models.list_models():
        raise NetworkError(
            f"{name} does not take images and yield one tensor, so dneuro cannot look into it",
            hint=f"networks that classify images can be used, for example {_TORCHVISION}alexnet",
        )
    full = name if ":" in name else _TORCHVISION + name
    raise NetworkError(f"unknown network {name!r}", hint=suggest(full, known))


def _standard_weights(model: str, weights: str) -> Any:
    """Return those of torchvision's weights that a file has the name of, else the default ones."""
    choices = models.get_model_weights(model)
    stem = Path(weights).stem
    return next((choice for choice in choices if Path(choice.url).stem == stem), choices.DEFAULT)


def _settings(model: str, standard: Any) -> dict[str, Any]:
    """Return what torchvision's builder sets when it loads these weights, beside the number of classes."""
    if model in ("googlenet", "inception_v3"):
        return {"transform_input": True, "aux_logits": False, "init_weights": True}
    if model.startswith("vit_"):
        return {"image_size": standard.meta["min_size"][0]}
    return {}


def _preprocessing(standard: Any) -> Preprocessing:
    transform = standard.transforms()
    return Preprocessing(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _check_channels(name: str, channels: int, preprocessing: Preprocessing) -> None:
    if preprocessing.channels != channels:
        color = "rgb" if channels == 3 else "grey"
        raise NetworkError(
            f"{name} takes images of {channels} colour channel{'s' * (channels > 1)}, "
            f"preprocessing with color: {preprocessing.color} makes {preprocessing.channels}",
            hint=f"preprocessing: {{color: {color}}}",
        )


def _input_shape(preprocessing: Preprocessing, usual: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape that the preprocessing makes, or the usual one where pictures decide."""
    size = preprocessing.crop or preprocessing.resize
    if isinstance(size, int) and preprocessing.crop:
        size = (size, size)
    height, width = usual if size is None or isinstance(size, int) else size
    return preprocessing.channels, height, width
