"""The steps of a job: one model per step, keys as the keyword arguments of the ``dn.`` function."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag, field_validator, model_validator

from dneuro.spec.base import (
    ONE,
    SEVERAL,
    Name,
    OrBlank,
    OrWritten,
    Positive,
    PositiveNumber,
    Seed,
    Spec,
    by_count,
)
from dneuro.spec.problems import Problem, ProblemsError, refusal, repeated, shown

Keep = Literal["full", "max", "mean", "stats"]
Per = Literal["channel", "neuron"]
Pool = Literal["max", "mean"]


class LayerSpec(Spec):
    """What is kept of one layer."""

    keep: Keep = "full"
    """``full``: every activation; ``max``: the maximum over positions with its position; ``mean``: the mean
    over positions; ``stats``: no activations, only the statistics taken on the way."""


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


class Step(Spec):
    """What all steps have: an optional name of their own."""

    kind: ClassVar[str]
    name: Name | None = None
    """Name of the step and of its results; the default is the kind of step. Needed where two are alike."""

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, step: Any) -> Any:
        """Take ``{svd: {rank: 8}}``, ``{report: null}`` and ``report`` for the settings of that step."""
        if step == cls.kind:
            return {}
        if isinstance(step, dict) and list(step) == [cls.kind]:
            return {} if step[cls.kind] is None else step[cls.kind]
        return step

    @property
    def id(self) -> str:
        """Name under which the results lie."""
        return self.name or self.kind


class TrainStep(Step):
    """Train the network on the job's images before looking into it (cross-entropy, Adam)."""

    kind: ClassVar[str] = "train"
    epochs: Positive = 1
    """Times that every image is seen."""
    batch: Positive = 64
    """Images per optimiser step."""
    learning_rate: PositiveNumber = 1e-3
    """Adam's step size."""
    seed: Seed = 0
    """Seed of the first weights and of the order of the images."""


class ExtractStep(Step):
    """Run the network once over all images and store activations and statistics."""

    kind: ClassVar[str] = "extract"
    layers: Layers
    """The layers, by name: a list of names keeps them in full, a mapping says what to keep of each."""
    statistics: list[Literal["moments", "top_images"]] = Field(["moments", "top_images"])
    """Statistics per channel that are taken on the way and stored beside each layer."""
    top_k: Positive = 100
    """Images per channel in ``top_images``; raised by itself where a later step needs more."""
    dtype: Literal["float32", "float16"] = "float32"
    """How activations are stored (float16: half the size, relative error up to 5e-4, values beyond ±65504
    are refused)."""
    images_per_unit: Positive | None = None
    """Images per unit of work, a power of two; the default suits the number of images."""
    batch: Positive = 16
    """Images per forward pass. On a CPU few keep the activations in its caches; a GPU wants 64 and more."""
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

    @model_validator(mode="after")
    def _keep_something(self) -> ExtractStep:
        if not self.statistics:
            wrong = [
                Problem("keeps nothing, for no statistics are taken", "add `statistics: [moments]`",
                        ("layers", name, "keep"))
                for name, layer in self.layers.items()
                if layer.keep == "stats"
            ]  # fmt: skip
            if wrong:
                raise ProblemsError(*wrong)
        return self


def _refuse_repeated(names: list[str]) -> list[str]:
    if twice := repeated(names):
        raise refusal(f"named twice: {', '.join(twice)}", "name each once")
    return names


LayerNames = Annotated[list[str], Field(min_length=1), AfterValidator(_refuse_repeated)]


class AnalysisStep(Step):
    """A step that asks the store a question, layer by layer."""

    layer: Annotated[Annotated[str, Tag(ONE)] | Annotated[LayerNames, Tag(SEVERAL)], by_count] | None = None
    """One layer, a list of layers, or none for every layer the job extracts."""

    @property
    def layers(self) -> list[str]:
        """The layers that the step names; empty where it leaves that to the job."""
        return [self.layer] if isinstance(self.layer, str) else list(self.layer or ())


class MomentsStep(AnalysisStep):
    """Count, mean, variance, minimum, maximum and fraction active over the images."""

    kind: ClassVar[str] = "moments"
    per: Literal["channel", "neuron", "image"] = "channel"
    """One row per channel, per neuron (channel, y, x), or per image (over its neurons)."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""


class TopImagesStep(AnalysisStep):
    """The images that excite each channel or neuron most and least, with the position."""

    kind: ClassVar[str] = "top_images"
    k: Positive = 100
    """Images at either end."""
    per: Per = "channel"
    """One list per channel or per neuron (channel, y, x)."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""


class CooccurrenceStep(AnalysisStep):
    """How many of a neuron's top images belong to each class (CoF)."""

    kind: ClassVar[str] = "cooccurrence"
    k: Positive = 100
    """Top images counted."""
    per: Per = "channel"
    """One row per channel or per neuron (channel, y, x)."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""


class SvdStep(AnalysisStep):
    """Truncated singular value decomposition of images × neurons."""

    kind: ClassVar[str] = "svd"
    rank: Positive
    """Number of singular triplets."""
    standardize: Literal["image", "neuron", "center"] | None = "image"
    """``image``: each image to mean 0, variance 1 over its neurons; ``neuron``: each neuron over the images;
    ``center``: each neuron to mean 0; null: as it is."""
    method: Literal["auto", "gram", "krylov"] = "auto"
    """``gram``: exact, through the neuron × neuron matrix; ``krylov``: for layers where that does not fit."""
    seed: Seed = 0
    """Seed of the start block of ``krylov``."""


class SimilarityStep(AnalysisStep):
    """Similarity of every two channels or neurons."""

    kind: ClassVar[str] = "similarity"
    of: Annotated[str, Field(min_length=1)] = "activation"
    """``activation``, or the name of a ``cooccurrence`` step whose rows are compared."""
    metric: Annotated[
        list[Literal["pearson", "euclidean"]],
        Field(min_length=1),
        BeforeValidator(lambda metric: [metric] if isinstance(metric, str) else metric),
        AfterValidator(_refuse_repeated),
        OrWritten({"enum": ["pearson", "euclidean"]}),
    ] = Field(["pearson", "euclidean"])
    """One measure or a list of them."""
    per: Per = "channel"
    """Compare channels or neurons (channel, y, x)."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""


class ReportStep(Step):
    """Pages and pictures of everything the store holds, in ``<store>.report/``."""

    kind: ClassVar[str] = "report"
    neurons: Positive = 12
    """Channels shown per layer: those with the largest variance."""
    images: Positive = 9
    """Images shown per channel and per component, at either end."""
    index: bool = True
    """Pages of every channel of every layer too, some ten kilobytes each, and an index that finds, filters and
    sorts them."""


STEPS: dict[str, type[Step]] = {
    step.kind: step
    for step in (
        TrainStep,
        ExtractStep,
        MomentsStep,
        TopImagesStep,
        CooccurrenceStep,
        SvdStep,
        SimilarityStep,
        ReportStep,
    )
}
"""Every kind of step, by the name it has in a job file."""
