"""What the steps of a job have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, Tag, model_validator

from dneuro.spec.base import ONE, SEVERAL, Name, OrBlank, Positive, Seed, Spec, by_count
from dneuro.spec.device import CPU, DeviceName, is_apart, wrong_tf32
from dneuro.spec.problems import refusal, repeated

Codec = Literal["zstd-fast", "zstd", "zstd-shuffle", "lz4-shuffle", "none"]
DEFAULT_CODEC: Codec = "zstd-fast"
Keep = Literal["full", "max", "mean", "stats"]
Per = Literal["channel", "neuron"]
Of = Literal["channel", "neuron", "image"]
Pool = Literal["max", "mean"]
Persist = Literal["auto", True, False]
PLACING = {"persist"}
"""Keys of a step that say how it is computed; its result does not depend on them."""
PLACED = {"workers", "device", "tf32"}
"""Keys of a step that say what computes it, and are no keywords of its function."""


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


class WorkersStep(Step):
    """A step that workers do, those of one pool of the profile."""

    usual_pool: ClassVar[str] = "memory"
    workers: Name | None = None
    """Pool of the profile whose workers do this step; by default `extract` trains, extracts and does steps on a device,
    `memory` analyses."""

    @property
    def pool_name(self) -> str:
        """Name of the pool whose workers do the step."""
        return self.workers or self.usual_pool


def refuse_repeated(names: list[str]) -> list[str]:
    """Refuse a list that has a name twice."""
    if twice := repeated(names):
        raise refusal(f"named twice: {', '.join(twice)}", "name each once")
    return names


LayerNames = Annotated[list[str], Field(min_length=1), AfterValidator(refuse_repeated)]


class SelectSpec(Spec):
    """Which images take part in a step; as ``dn.select``."""

    correct: bool | None = None
    """Only images that the network classified correctly (true), or wrongly (false)."""
    classes: Annotated[list[str | int], Field(min_length=1)] | None = None
    """Only images of these classes, by name or index."""
    images: Annotated[list[str | int], Field(min_length=1)] | None = None
    """Only these images, by filename or number."""
    sample: Positive | None = None
    """So many of the images that are left, drawn at random."""
    seed: Seed = 0
    """Of the draw."""


class AnalysisStep(WorkersStep):
    """A step that asks the store a question, layer by layer."""

    layer: Annotated[Annotated[str, Tag(ONE)] | Annotated[LayerNames, Tag(SEVERAL)], by_count] | None = None
    """One layer, a list of layers, or none for every layer the job extracts."""

    select: Annotated[SelectSpec, OrBlank()] | None = None
    """Images that take part; the default is all that could be read."""

    device: DeviceName = CPU
    """``cpu`` (NumPy) or the device of the workers that they compute on, such as ``cuda``; never switched silently."""

    tf32: bool = False
    """Let NVIDIA's GPUs round the factors of float32 products to 10 bits."""

    @model_validator(mode="after")
    def _need_a_device_with_tf32(self) -> Self:
        if self.tf32 and (wrong := wrong_tf32(self.device)):
            raise refusal(wrong, "add `device: cuda`", ("tf32",))
        return self

    @property
    def pool_name(self) -> str:
        """Name of the pool whose workers do the step: where the cards are, if it is to run on one."""
        return self.workers or ("extract" if is_apart(self.device) else self.usual_pool)

    @property
    def layers(self) -> list[str]:
        """The layers that the step names; empty where it leaves that to the job."""
        return [self.layer] if isinstance(self.layer, str) else list(self.layer or ())


class RowsStep(AnalysisStep):
    """A step about one row per neuron: its activations, or its counts per class."""

    of: Annotated[str, Field(min_length=1)] = "activation"
    """``activation``, or the name of a ``cooccurrence`` step whose rows are taken."""
