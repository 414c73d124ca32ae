"""Torchvision's networks that take pictures: those that classify, and those that segment."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from torchvision import models

from dneuro.errors import NetworkError, suggest
from dneuro.nets.architecture import Architecture, check_channels, shape_made_by
from dneuro.spec.network import NetworkSpec, Preprocessing

PREFIX = "torchvision:"

_REFUSED = {
    models.quantization: "computes with 8-bit integers, which are not activations that can be compared",
    models.detection: "takes lists of pictures and yields boxes, so its layers have no row per picture",
    models.video: "takes films, not pictures",
    models.optical_flow: "takes pairs of pictures",
}


def names() -> list[str]:
    """Return the names of torchvision's networks that can be used, without the prefix."""
    return [*models.list_models(module=models), *models.list_models(module=models.segmentation)]


def check_name(name: str) -> None:
    """Refuse a name that is not in `names`, with the reason; it may be one of torchvision's all the same.

    Raises
    ------
    NetworkError
        If torchvision has such a network, but it cannot be used.
    """
    model = name.removeprefix(PREFIX)
    for module, reason in _REFUSED.items():
        if model in models.list_models(module=module):
            plain = model.removeprefix("quantized_")
            raise NetworkError(
                f"{name} {reason}",
                hint=f"{PREFIX}{plain}"
                if plain != model
                else f"networks that classify or segment pictures can be used: {suggest(model, names(), limit=4)}",
            )


def find(spec: NetworkSpec, weights: str) -> Architecture:
    """Return one of torchvision's networks.

    Parameters
    ----------
    spec : NetworkSpec
        Name, number of classes and preprocessing.
    weights : str
        A file that has the name of one of torchvision's brings that one's input transform and image size.

    Raises
    ------
    NetworkError
        If the preprocessing makes another number of colour channels.
    """
    model = spec.name.removeprefix(PREFIX)
    standard = _standard_weights(model, weights)
    preprocessing = spec.preprocessing or _preprocessing(standard)
    check_channels(spec.name, 3, preprocessing)
    classes = spec.classes or len(standard.meta["categories"])
    notes: tuple[str, ...] = ()
    if _segments(model) and spec.preprocessing is None:
        side = preprocessing.crop
        notes = (f"pictures are cut to {side}×{side} pixels from their centre; torchvision segments them whole",)
    return Architecture(
        name=spec.name,
        identity=spec.name,
        build=partial(models.get_model, model, weights=None, num_classes=classes, **_settings(model, standard)),
        preprocessing=preprocessing,
        input_shape=shape_made_by(preprocessing, _size(standard)),
        standard=standard,
        notes=notes,
    )


def rename_key(key: str) -> str | None:
    """Return what a key of an older file is called today; None if it belongs to training only."""
    if _TRAINING_ONLY.match(key):
        return None
    for pattern, today in _RENAMED:
        key = pattern.sub(today, key)
    return key


_TRAINING_ONLY = re.compile(r"(aux[12]|AuxLogits|aux_classifier)\.")
"""Second outputs of Inception and of segmentation, which only their training uses."""

_RENAMED = [
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$"), r"\1\2"),  # DenseNet
    (re.compile(r"\.mlp\.linear_1\.(\w+)$"), r".mlp.0.\1"),  # vision transformers
    (re.compile(r"\.mlp\.linear_2\.(\w+)$"), r".mlp.3.\1"),
]
"""Names that torchvision changed after it published weights (its own loaders do the same)."""


def _segments(model: str) -> bool:
    return model in models.list_models(module=models.segmentation)


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
    return {"weights_backbone": None} if _segments(model) else {}


def _size(standard: Any) -> tuple[int, int]:
    transform = standard.transforms()
    size = getattr(transform, "crop_size", transform.resize_size)
    return size[0], size[0]


def _preprocessing(standard: Any) -> Preprocessing:
    """Return the input transform; one that leaves the size to the pictures cuts a square, for all have one size."""
    transform = standard.transforms()
    return Preprocessing(
        resize=transform.resize_size[0],
        crop=_size(standard)[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
