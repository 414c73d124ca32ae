"""A job: images, network, store, steps."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    Tag,
    WrapSerializer,
)
from pydantic_core import CoreSchema

from dneuro.errors import suggest
from dneuro.spec.base import Json, Name, PathText, Spec
from dneuro.spec.images import ImagesSpec
from dneuro.spec.network import NetworkSpec
from dneuro.spec.order import check_order
from dneuro.spec.problems import Problem, ProblemsError, refusal, shown
from dneuro.spec.steps import (
    STEPS,
    ClustersStep,
    ConnectionsStep,
    CooccurrenceStep,
    CoupledNmfStep,
    ExtractStep,
    FacetsStep,
    KmeansStep,
    MeanSimilarityStep,
    MomentsStep,
    NmfStep,
    PatchComponentsStep,
    RandomProjectionsStep,
    RegressionStep,
    ReportStep,
    SelectivityStep,
    SimilarityStep,
    SimilarPlacesStep,
    SingleNeuronsStep,
    Step,
    SvdStep,
    TopImagesStep,
    TrainStep,
)


class _OneKey:
    """Annotation: in YAML a step is one key, its kind, with its settings, or the bare kind."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        settings = dict(zip(STEPS, handler(schema)["oneOf"], strict=True))
        bare = [kind for kind, step in STEPS.items() if not _needs_settings(step)]
        for kind in bare:
            settings[kind] = {"anyOf": [settings[kind], {"type": "null"}]}
        one_key = {"type": "object", "properties": settings, "additionalProperties": False,
                   "minProperties": 1, "maxProperties": 1}  # fmt: skip
        return {"anyOf": [one_key, {"enum": bare}]}


def _needs_settings(step: type[Step]) -> bool:
    extra = step.model_config.get("json_schema_extra")
    alternatives = isinstance(extra, dict) and "oneOf" in extra
    return alternatives or any(field.is_required() for field in step.model_fields.values())


def _kind(step: Any) -> str:
    if isinstance(step, Step):
        return step.kind
    return step if isinstance(step, str) else str(next(iter(step)))


def _check_kind(step: Any) -> Any:
    """Let through what `_kind` can tell; name the choices, or what went wrong with the indentation."""
    if isinstance(step, Step):
        return step
    if not isinstance(step, str) and not (isinstance(step, dict) and len(step) == 1):
        raise ProblemsError(_no_step(step))
    if (kind := _kind(step)) not in STEPS:
        raise refusal(f"unknown step {kind!r}", suggest(kind, STEPS), (kind,))
    return step


def _no_step(step: object) -> Problem:
    what = f"a step is one key, its kind, with its settings below it, not {shown(step)}"
    if isinstance(step, dict):
        kinds = [kind for kind in step if kind in STEPS]
        others = ", ".join(f"`{key}`" for key in step if key not in STEPS)
        if len(kinds) == 1 and step[kinds[0]] is None:
            what = f"the settings of {kinds[0]} stand beside it"
            return Problem(what, f"indent {others} below `{kinds[0]}:`")
        if len(kinds) > 1:
            return Problem(what, "begin each step with a dash of its own")
    return Problem(what, f"write `- svd: {{rank: 8}}`; kinds: {', '.join(STEPS)}")


def _dump(step: Step, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {step.kind: dump(step)}


AnyStep = Annotated[
    Annotated[TrainStep, Tag(TrainStep.kind)]
    | Annotated[ExtractStep, Tag(ExtractStep.kind)]
    | Annotated[MomentsStep, Tag(MomentsStep.kind)]
    | Annotated[TopImagesStep, Tag(TopImagesStep.kind)]
    | Annotated[CooccurrenceStep, Tag(CooccurrenceStep.kind)]
    | Annotated[SelectivityStep, Tag(SelectivityStep.kind)]
    | Annotated[FacetsStep, Tag(FacetsStep.kind)]
    | Annotated[SvdStep, Tag(SvdStep.kind)]
    | Annotated[NmfStep, Tag(NmfStep.kind)]
    | Annotated[CoupledNmfStep, Tag(CoupledNmfStep.kind)]
    | Annotated[RandomProjectionsStep, Tag(RandomProjectionsStep.kind)]
    | Annotated[SingleNeuronsStep, Tag(SingleNeuronsStep.kind)]
    | Annotated[SimilarityStep, Tag(SimilarityStep.kind)]
    | Annotated[MeanSimilarityStep, Tag(MeanSimilarityStep.kind)]
    | Annotated[SimilarPlacesStep, Tag(SimilarPlacesStep.kind)]
    | Annotated[ClustersStep, Tag(ClustersStep.kind)]
    | Annotated[KmeansStep, Tag(KmeansStep.kind)]
    | Annotated[RegressionStep, Tag(RegressionStep.kind)]
    | Annotated[ConnectionsStep, Tag(ConnectionsStep.kind)]
    | Annotated[PatchComponentsStep, Tag(PatchComponentsStep.kind)]
    | Annotated[ReportStep, Tag(ReportStep.kind)],
    Discriminator(_kind),
    BeforeValidator(_check_kind),
    WrapSerializer(_dump),
    _OneKey(),
]
"""Every step of `STEPS`, in its order, written as ``{kind: settings}``. The tags are the keys in the YAML
file, so that the place of an error is its key path."""


class JobSpec(Spec):
    """What to compute; where to compute it is a profile's business."""

    name: Name
    """Name of the job: letters, digits, ``_``, ``.`` and ``-``."""
    images: ImagesSpec
    """Which images."""
    network: NetworkSpec
    """Which network."""
    store: PathText
    """Where the activations and results go: the path of a Zarr store, by custom ``….zarr``. Relative paths
    are relative to the folder in which dneuro is started."""
    steps: Annotated[list[AnyStep], Field(min_length=1), AfterValidator(check_order)]
    """What to do, in this order; each step is one key, its kind, with its settings."""

    @property
    def train(self) -> TrainStep | None:
        """The train step, if there is one."""
        return next((step for step in self.steps if isinstance(step, TrainStep)), None)

    @property
    def extract(self) -> ExtractStep:
        """The extract step."""
        return next(step for step in self.steps if isinstance(step, ExtractStep))
