"""Steps that compare neurons, or images, with each other: similarity, clusters."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dneuro.spec.base import NotNegative, OrWritten, Positive, Seed
from dneuro.spec.problems import Problem, ProblemsError, refusal
from dneuro.spec.steps.base import AnalysisStep, Of, Per, Persist, Pool, RowsStep, refuse_repeated


def _refuse_images_of_counts(step: RowsStep) -> None:
    if step.of != "activation" and getattr(step, "per", None) == "image":
        raise refusal("counts are of channels or neurons over classes, there are no images to compare",
                      "leave out `of`, or `per`", ("per",))  # fmt: skip


class SimilarityStep(RowsStep):
    """Similarity of every two channels or neurons."""

    kind: ClassVar[str] = "similarity"
    metric: Annotated[
        list[Literal["pearson", "euclidean", "cosine", "covariance"]],
        Field(min_length=1),
        BeforeValidator(lambda metric: [metric] if isinstance(metric, str) else metric),
        AfterValidator(refuse_repeated),
        OrWritten({"enum": ["pearson", "euclidean", "cosine", "covariance"]}),
    ] = Field(["pearson", "euclidean"])
    """One measure or a list of them."""
    neighbours: Positive | None = None
    """Keep only this many of the most similar others of each, where a matrix of all pairs would be too large."""
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Keep only pairs whose value is at least this in size, or whose distance is at most this; of one measure."""
    precision: Literal["auto", "float32", "float64"] = "auto"
    """In which activations are multiplied (sums are float64); ``auto``: float64 up to 2,048 neurons."""
    per: Of = "channel"
    """Compare channels or neurons (channel, y, x), or the images over all neurons; their matrix is held in memory."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""
    persist: Persist = "auto"
    """Keep a layer that has to be read several times in the workers' memory; ``auto``: if it fits, and more than 2,048
    neurons are compared."""

    @model_validator(mode="after")
    def _keep_one_thing(self) -> SimilarityStep:
        _refuse_images_of_counts(self)
        if self.threshold is not None and self.neighbours is not None:
            what = "neighbours and threshold each say what to keep"
            raise ProblemsError(Problem(what, "leave one out", ("threshold",)))
        if self.threshold is not None and len(self.metric) > 1:
            what = f"a threshold of {len(self.metric)} measures, each on another scale"
            raise ProblemsError(Problem(what, f"add `metric: {self.metric[0]}`", ("threshold",)))
        return self


class SimilarPlacesStep(AnalysisStep):
    """Where the neurons lie that say most nearly the same as each neuron: how far away, and in which channel."""

    kind: ClassVar[str] = "similar_places"
    neighbours: Positive = 5
    """Most similar others of each neuron that are looked at."""
    metric: Literal["pearson", "cosine", "euclidean"] = "pearson"
    """What similar means."""


class ClustersStep(RowsStep):
    """Agglomerative clusters of channels or neurons by their similarity."""

    kind: ClassVar[str] = "clusters"
    count: Positive | None = None
    """Cut the tree into this many clusters."""
    distance: NotNegative | None = None
    """Or cut it where clusters would be joined over more than this distance (1 − r, or Euclidean)."""
    metric: Literal["pearson", "euclidean"] = "pearson"
    """What the tree is made of."""
    linkage: Literal["average", "complete", "single", "ward"] = "average"
    """Distance between clusters; ``ward`` is for Euclidean distances."""
    per: Of = "channel"
    """Cluster channels or neurons (channel, y, x), or the images by all neurons: up to some 20,000, more by
    ``kmeans``."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""
    k: Positive = 10
    """Members listed of each cluster, the most central first."""

    @model_validator(mode="after")
    def _need_one_cut(self) -> ClustersStep:
        _refuse_images_of_counts(self)
        if self.count is None and self.distance is None:
            raise refusal("neither count nor distance says where the tree is cut", "`count: 8`, or `distance: 0.3`")
        if self.count is not None and self.distance is not None:
            raise refusal("count and distance both say where the tree is cut", "leave one out", ("distance",))
        if self.linkage == "ward" and self.metric != "euclidean":
            raise refusal("ward is about Euclidean distances", "`metric: euclidean`", ("linkage",))
        return self


class KmeansStep(AnalysisStep):
    """Clusters of images by k-means."""

    kind: ClassVar[str] = "kmeans"
    count: Positive
    """Number of clusters."""
    per: Per = "channel"
    """The features of an image: its channels, or all its neurons (channel, y, x)."""
    pool: Pool = "max"
    """How ``per: channel`` makes one number of all positions."""
    standardize: Literal["image", "neuron"] | None = None
    """Each image to mean 0, variance 1 over its features, or each feature over the images; null: as it is."""
    max_iter: Positive = 100
    """Most iterations; the layer is read once in each, unless it is kept in memory."""
    tol: NotNegative = 1e-4
    """Stop when the centres move by less than this share of the mean variance of a feature (squared)."""
    k: Positive = 10
    """Images listed of each cluster, the nearest to its centre first."""
    seed: Seed = 0
    """Seed of the first centres."""
    persist: Persist = "auto"
    """Keep what iterations read in the workers' memory; ``auto``: if it takes no more than 60 % of it, or is small."""
