"""Steps that run the network: training it, extracting its activations."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from dneuro.spec.base import OrBlank, OrWritten, Positive, PositiveNumber, Seed, Spec
from dneuro.spec.problems import Problem, ProblemsError, refusal, repeated, shown
from dneuro.spec.steps.base import Codec, Keep, WorkersStep


class LayerSpec(Spec):
    """What is kept of one layer."""

    keep: Keep = "full"
    """``full``: every activation; ``max``: the maximum over positions with its position; ``mean``: the mean
    over positions; ``stats``: no activations, only the statistics taken on the way."""

    called: Annotated[str, Field(max_length=40)] = ""
    """What a paper or you call the layer: ``pool5``. Stands beside its name in the report; changes nothing else."""


def _name_layers(layers: object) -> object:
    """Turn a list of layer names into the mapping that keeps each of them in full."""
    if not isinstance(layers, list | tuple):
        return layers
    odd = [
        Problem(f"the name of a layer must be text, not {shown(name)}", "write it in quotes", (index,))
        for index, name in enumerate(layers)
        if not isinstance(name, str)
    ]
    if odd:
        raise ProblemsError(*odd)
    if twice := repeated(layers):
        raise refusal(f"layer named twice: {', '.join(twice)}", "name each layer once")
    return {name: {} for name in layers}


_LAYER_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}
Layers = Annotated[
    dict[str, Annotated[LayerSpec, OrBlank()]],
    Field(min_length=1),
    BeforeValidator(_name_layers),
    OrWritten(_LAYER_NAMES),
]
"""What is kept of each layer, by the layer's name; a list of names keeps them in full."""


class TrainStep(WorkersStep):
    """Train the network on the job's images before looking into it (cross-entropy, Adam)."""

    kind: ClassVar[str] = "train"
    usual_pool: ClassVar[str] = "extract"
    epochs: Positive = 1
    """Times that every image is seen."""
    batch: Positive = 64
    """Images per optimiser step."""
    learning_rate: PositiveNumber = 1e-3
    """Adam's step size."""
    seed: Seed = 0
    """Seed of the first weights and of the order of the images."""


class ExtractStep(WorkersStep):
    """Run the network once over all images and store activations and statistics."""

    kind: ClassVar[str] = "extract"
    usual_pool: ClassVar[str] = "extract"
    layers: Layers
    """The layers, by name: a list of names keeps them in full, a mapping says what to keep of each."""
    statistics: list[Literal["moments", "top_images"]] = Field(["moments", "top_images"])
    """Statistics per channel that are taken on the way and stored beside each layer."""
    top_k: Positive = 100
    """Images per channel in ``top_images``; raised by itself where a later step needs more."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How activations are stored. ``float16``: half the size, relative error up to 5e-4, nothing beyond ±65504, see
    ``on_nonfinite``. ``bfloat16``: float32 whose lower 16 bits are 0, relative error up to 4e-3, any reader reads it
    and the codec makes it small."""
    codec: Codec | None = None
    """How activations are packed; changes no number. The default, ``zstd-fast``, is the best compromise measured; a
    layer that is stored already keeps its own."""
    images_per_unit: Positive | None = None
    """Images per unit of work, a power of two; the default suits the number of images."""
    batch: Positive = 16
    """Images per forward pass. On a CPU few keep the activations in its caches; a GPU wants 64 and more."""
    on_nonfinite: Literal["fail", "mask"] = "fail"
    """What becomes of an image with NaN or infinity among its activations, or a number beyond what ``dtype`` holds, or
    with NaN or infinity in the network's output where ``predictions`` are stored. ``fail``: the extraction ends and
    names it; ``mask``: it is left out of all layers and listed, like one that cannot be read."""
    predictions: bool = True
    """Also store the predicted class, where the network classifies; runs the network to its end."""
    thumbnails: bool = True
    """Also store each picture as the network saw it, for the report."""

    @field_validator("images_per_unit")
    @classmethod
    def _need_power_of_two(cls, count: int | None) -> int | None:
        if count is not None and count & (count - 1):
            below = 1 << count.bit_length() - 1
            raise refusal(f"must be a power of two, is {count}", f"take {below} or {2 * below}")
        return count
