"""Which networks there are: torchvision's, ours, and the user's own."""

from __future__ import annotations

from functools import partial
from typing import Literal

from dneuro.errors import NetworkError, suggest
from dneuro.nets import convnet, custom, exported, vision
from dneuro.nets.architecture import Architecture, check_channels, shape_made_by
from dneuro.spec.network import EXPORT, PYTHON, NetworkSpec, Preprocessing

CONVNET = "dneuro:convnet"


def names() -> list[str]:
    """Return the names of all networks that have one: ours, and torchvision's that take pictures."""
    return [CONVNET, *(vision.PREFIX + name for name in vision.names())]


def kind_of_weights(weights: str) -> Literal["DEFAULT", "none", "file"]:
    """Tell what the ``weights:`` of a job mean."""
    if weights.upper() == "DEFAULT":
        return "DEFAULT"
    return "none" if weights.lower() == "none" else "file"


def find(spec: NetworkSpec, weights: str | None = None) -> Architecture:
    """Return the architecture that a job names; nothing is built but what comes with its weights.

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
        If the network is unknown, cannot be had or is none, or the preprocessing makes another number of
        colour channels.

    Notes
    -----
    Cost: the user's own factory is called, a ``.pt2`` file is read; else nothing.
    """
    if spec.name.startswith(PYTHON):
        return custom.find(spec)
    if spec.name.startswith(EXPORT):
        return exported.find(spec)
    _check_name(spec.name)
    if spec.name == CONVNET:
        return _convnet(spec)
    return vision.find(spec, spec.weights if weights is None else weights)


def _check_name(name: str) -> None:
    known = names()
    if name in known:
        return
    if name.startswith(vision.PREFIX):
        vision.check_name(name)
    full = name if ":" in name else vision.PREFIX + name
    raise NetworkError(
        f"unknown network {name!r}",
        hint=f"{suggest(full, known)}; or python:module:factory, or export:file.pt2",
    )


def _convnet(spec: NetworkSpec) -> Architecture:
    preprocessing = spec.preprocessing or Preprocessing(resize=convnet.INPUT_SHAPE[1:], color="grey")
    check_channels(spec.name, 1, preprocessing)
    return Architecture(
        name=spec.name,
        identity=spec.name,
        build=partial(convnet.ConvNet, spec.classes or convnet.CLASSES),
        preprocessing=preprocessing,
        input_shape=shape_made_by(preprocessing, convnet.INPUT_SHAPE[1:]),
    )
