"""Steps about each neuron by itself: its moments, its images, its classes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dneuro.spec.base import Positive, Seed, Share, no_bool
from dneuro.spec.problems import refusal
from dneuro.spec.steps.base import AnalysisStep, Per, Persist, Pool, RowsStep


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
    """How many of the images that a neuron answers to most belong to each class (CoF)."""

    kind: ClassVar[str] = "cooccurrence"
    quantile: Share | None = None
    """Instead of the top ``k``, count every image above this quantile of the neuron's activations, such as 0.99."""
    k: Positive | None = Field(default_factory=lambda known: None if known.get("quantile") else 100)
    """Top images counted; 100 unless a quantile is given."""
    per: Per = "channel"
    """One row per channel or per neuron (channel, y, x)."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""
    persist: Persist = "auto"
    """Keep a layer that has to be read several times, for a quantile, in the workers' memory; ``auto``: if it takes no
    more than 60 % of it."""

    @model_validator(mode="after")
    def _need_one_of_both(self) -> CooccurrenceStep:
        if self.k is not None and self.quantile is not None:
            raise refusal("k and quantile both say what counts", "leave one out", ("quantile",))
        if self.k is None and self.quantile is None:
            raise refusal("neither k nor quantile says what counts", "`k: 100`", ("k",))
        return self


class SelectivityStep(RowsStep):
    """How selective each neuron is for classes: selectivity, Gini index, flatness, multi-facetedness."""

    kind: ClassVar[str] = "selectivity"
    per: Per = "channel"
    """One row per channel or per neuron (channel, y, x)."""
    pool: Pool = "mean"
    """How ``per: channel`` makes one number of all positions."""
    chance: Annotated[int, Field(ge=0), no_bool] = 100
    """Draws of labels by chance that counts are compared with; 0 for none."""
    seed: Seed = 0
    """Seed of these draws."""


class SingleNeuronsStep(AnalysisStep):
    """Neurons ranked by variance: those that vary most and a random choice, with the images at their ends."""

    kind: ClassVar[str] = "single_neurons"
    count: Positive = 16
    """Neurons of largest variance that are looked at."""
    baseline: Positive = 16
    """Neurons drawn at random, to compare."""
    standardize: Literal["image", "center"] | None = "image"
    """``image``: each image to mean 0, variance 1 over its neurons; ``center``: each neuron to mean 0; null: as it
    is. After ``neuron`` all variances would be 1."""
    k: Positive = 100
    """Images at either end of each neuron."""
    seed: Seed = 0
    """Seed of the random choice."""
