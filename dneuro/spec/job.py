"""A job: images, network, store, steps."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from dneuro.errors import suggest
from dneuro.spec.base import PathText, Spec
from dneuro.spec.images import ImagesSpec
from dneuro.spec.network import NetworkSpec
from dneuro.spec.steps import STEPS, ExtractStep, Step, TrainStep


class JobSpec(Spec):
    """What to compute; where to compute it is a profile's business."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the job: letters, digits, ``_``, ``.`` and ``-``."""
    images: ImagesSpec
    """Which images."""
    network: NetworkSpec
    """Which network."""
    store: PathText
    """Where the activations and results go: the path of a Zarr store, by custom ``….zarr``. Relative paths
    are relative to the folder in which dneuro is started."""
    steps: Annotated[list[SerializeAsAny[Step]], Field(min_length=1)]
    """What to do, in this order; each step is one key, its kind, with its settings."""

    @field_validator("steps", mode="before")
    @classmethod
    def _read_steps(cls, steps: object) -> object:
        return [_read_step(step) for step in steps] if isinstance(steps, list) else steps

    @model_validator(mode="after")
    def _check_order(self) -> JobSpec:
        ids = [step.id for step in self.steps]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"two steps are named {twice[0]!r}: give one of them a name of its own, "
                             f"`name: {twice[0]}-2`")  # fmt: skip
        kinds = [step.kind for step in self.steps]
        if kinds.count("extract") != 1:
            raise ValueError(f"a job has exactly one extract step, this one has {kinds.count('extract')}")
        if "train" in kinds[1:]:
            raise ValueError("the train step comes first")
        if kinds[kinds[0] == "train"] != "extract":
            raise ValueError("the extract step comes before the steps that use what it stores")
        return self

    @property
    def train(self) -> TrainStep | None:
        """The train step, if there is one."""
        return next((step for step in self.steps if isinstance(step, TrainStep)), None)

    @property
    def extract(self) -> ExtractStep:
        """The extract step."""
        return next(step for step in self.steps if isinstance(step, ExtractStep))


def _read_step(step: Any) -> Any:
    """Turn ``{svd: {rank: 8}}`` into an SvdStep; pydantic reports what is wrong inside."""
    if isinstance(step, Step):
        return step
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, dict) or len(step) != 1:
        raise ValueError("a step is one key, its kind, with its settings below it, such as `svd: {rank: 8}`")
    ((kind, settings),) = step.items()
    if kind not in STEPS:
        raise ValueError(f"unknown step {kind!r}; {suggest(str(kind), STEPS)}")
    return STEPS[kind].model_validate({} if settings is None else settings)
