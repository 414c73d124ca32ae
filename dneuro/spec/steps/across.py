"""Steps over what another step found out about several layers."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dneuro.spec.base import Positive, Share
from dneuro.spec.steps.base import AnalysisStep, Step
from dneuro.spec.steps.neurons import SelectivityStep
from dneuro.spec.steps.pairs import SimilarityStep


class AcrossStep(AnalysisStep):
    """A step that sets layers beside each other, by what an earlier step found out about each."""

    source_step: ClassVar[type[Step]]
    """Whose results it is about."""
    each_layer: ClassVar[bool] = False
    """Whether it gives a result for each layer, besides the one over all."""
    of: str


class FacetsStep(AcrossStep):
    """Which neurons are single-faceted, which multi-faceted, and how facets, sparsity and flatness go with depth."""

    kind: ClassVar[str] = "facets"
    source_step: ClassVar[type[Step]] = SelectivityStep
    each_layer: ClassVar[bool] = True
    of: Annotated[str, Field(min_length=1)] = "selectivity"
    """The name of a ``selectivity`` step: of counts, as in the paper, or of activations."""
    per_layer: bool = False
    """What divides single from multi: the mean of each layer, or of all layers together."""
    cutoff: Share = 0.05
    """A neuron is significant if its p-value within the layer is below this."""
    k: Positive = 10
    """Extreme neurons named of each layer, at either end."""


class MeanSimilarityStep(AcrossStep):
    """How similar two neurons of a layer are on average, layer by layer."""

    kind: ClassVar[str] = "mean_similarity"
    source_step: ClassVar[type[Step]] = SimilarityStep
    of: Annotated[str, Field(min_length=1)] = "similarity"
    """The name of a ``similarity`` step that keeps whole matrices: of counts or of activations."""
