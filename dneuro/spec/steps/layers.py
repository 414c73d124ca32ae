"""Steps about two layers: which features of one feed the other."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from dneuro.spec.base import NotNegative, Positive, Seed, no_bool
from dneuro.spec.steps.base import AnalysisStep, Pool


class SourceStep(AnalysisStep):
    """A step that asks how the features of one layer come from those of an earlier one."""

    source: Annotated[str, Field(min_length=1)] | None = None
    """The earlier layer; the default is the one before in the extract step."""


class RegressionStep(SourceStep):
    """Which features of an earlier layer predict those of a later one: ridge regression of activations."""

    kind: ClassVar[str] = "regression"
    ridge: NotNegative = 1e-3
    """Penalty on the squared coefficients of standardised features, as a share of the number of images."""
    folds: Annotated[int, Field(ge=0), no_bool] = 5
    """Parts that the images are dealt into: each is predicted from the others; 0 for none."""
    pool: Pool = "max"
    """How one number is made of all positions of a channel, in both layers."""
    k: Positive = 5
    """Sources listed of each channel, largest coefficient first."""
    seed: Seed = 0
    """Of the dealing."""


class ConnectionsStep(SourceStep):
    """Which channels of the layer before feed a layer most strongly, by the weights between the two."""

    kind: ClassVar[str] = "connections"
    of: Annotated[str, Field(min_length=1)] = "channel"
    """``channel``, or the name of an ``svd`` step whose directions are followed back."""
    k: Positive = 5
    """Sources listed of each channel or component, the strongest first."""
