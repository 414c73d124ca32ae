"""The steps of a job: one model per step, keys as the keyword arguments of the ``dn.`` function."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Tag, field_validator, model_validator

from dneuro.spec.base import (
    ALL,
    NUMBER,
    ONE,
    SEVERAL,
    Name,
    NotNegative,
    Number,
    OrBlank,
    OrWritten,
    Positive,
    PositiveNumber,
    Seed,
    Share,
    Spec,
    all_or_number,
    by_count,
    no_bool,
)
from dneuro.spec.problems import Problem, ProblemsError, refusal, repeated, shown

Codec = Literal["zstd-fast", "zstd", "zstd-shuffle", "lz4-shuffle", "none"]
DEFAULT_CODEC: Codec = "zstd-fast"
Keep = Literal["full", "max", "mean", "stats"]
Per = Literal["channel", "neuron"]
Of = Literal["channel", "neuron", "image"]
Pool = Literal["max", "mean"]
Persist = Literal["auto", True, False]
PLACING = {"persist"}
"""Keys of a step that say how it is computed; its result does not depend on them."""


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


class WorkersStep(Step):
    """A step that workers do, those of one pool of the profile."""

    usual_pool: ClassVar[str] = "memory"
    workers: Name | None = None
    """Pool of the profile whose workers do this step; by default `extract` trains and extracts, `memory` analyses."""

    @property
    def pool_name(self) -> str:
        """Name of the pool whose workers do the step."""
        return self.workers or self.usual_pool


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
    """How activations are stored. ``float16``: half the size, relative error up to 5e-4, values beyond ±65504 are
    refused. ``bfloat16``: float32 whose lower 16 bits are 0, relative error up to 4e-3, any reader reads it and the
    codec makes it small."""
    codec: Codec | None = None
    """How activations are packed; changes no number. The default, ``zstd-fast``, is the best compromise measured; a
    layer that is stored already keeps its own."""
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

    @model_validator(mode="after")
    def _need_one_of_both(self) -> CooccurrenceStep:
        if self.k is not None and self.quantile is not None:
            raise refusal("k and quantile both say what counts", "leave one out", ("quantile",))
        if self.k is None and self.quantile is None:
            raise refusal("neither k nor quantile says what counts", "`k: 100`", ("k",))
        return self


class RowsStep(AnalysisStep):
    """A step about one row per neuron: its activations, or its counts per class."""

    of: Annotated[str, Field(min_length=1)] = "activation"
    """``activation``, or the name of a ``cooccurrence`` step whose rows are taken."""


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


class SvdStep(AnalysisStep):
    """Truncated singular value decomposition of images × neurons."""

    kind: ClassVar[str] = "svd"
    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [name]} for name in ("rank", "threshold", "explained_variance")]}
    )
    rank: Annotated[Annotated[Literal["all"], Tag(ALL)] | Annotated[Positive, Tag(NUMBER)], all_or_number] | None = None
    """Number of singular triplets, or ``all``: the whole spectrum, of narrow layers."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Instead of ``rank``: all with a singular value of at least this."""
    threshold_images: Positive | None = None
    """Number of images that ``threshold`` was found for: it is multiplied by √(n / this), as σ grows with √n."""
    explained_variance: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of ``rank``: as few as explain this share of the variance; 1 for the whole spectrum."""
    standardize: Literal["image", "neuron", "center"] | None = "image"
    """``image``: each image to mean 0, variance 1 over its neurons; ``neuron``: each neuron over the images;
    ``center``: each neuron to mean 0; null: as it is."""
    method: Literal["auto", "tsqr", "gram", "krylov"] = "auto"
    """``tsqr``: exact down to the smallest, for narrow layers; ``gram``: exact, through the neuron × neuron matrix;
    ``krylov``: for wide layers."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 4e-3
    """``krylov`` stops when every certificate is below this share of its singular value."""
    seed: Seed = 0
    """Seed of the start block of ``krylov``."""
    persist: Persist = "auto"
    """Keep the layer in the workers' memory for all passes; ``auto``: if it takes no more than 60 % of it."""

    @model_validator(mode="after")
    def _need_one_way_to_end(self) -> SvdStep:
        given = [n for n in ("rank", "threshold", "explained_variance") if getattr(self, n) is not None]
        if len(given) != 1:
            raise refusal(f"takes one of rank, threshold and explained_variance, got {' and '.join(given) or 'none'}",
                          "write `rank: 16`")  # fmt: skip
        if self.threshold_images is not None and self.threshold is None:
            raise refusal("threshold_images scales a threshold, and there is none", "leave it out",
                          ("threshold_images",))  # fmt: skip
        return self


class _Factorisation(AnalysisStep):
    """What both non-negative factorisations are asked."""

    rank: Positive
    """Number of components."""
    update: Literal["hals", "mu"] = "hals"
    """``hals``: hierarchical alternating least squares; ``mu``: the multiplicative updates of the paper."""
    init: Literal["nndsvda", "random"] = "nndsvda"
    """Start: from the singular vectors, or drawn from (0, 1) as in the paper."""
    sweeps: Positive | None = None
    """Updates of each factor per iteration; 10 for ``hals``, 1 for ``mu``. They cost no reading."""
    max_iter: Positive = 200
    """Iterations, at most; each is one pass over the layer."""
    tol: Annotated[Number, Field(ge=0, lt=1)] = 1e-5
    """It has converged when an iteration lowers the error by no more than this share of ‖X‖; 0 never stops early."""
    seed: Seed = 0
    """Seed of the start."""
    persist: Persist = "auto"
    """Keep what is factorised in the workers' memory; ``auto``: if it takes no more than 60 % of it."""


class NmfStep(_Factorisation):
    """Non-negative factorisation of images × neurons: parts that add up."""

    kind: ClassVar[str] = "nmf"


class CoupledNmfStep(_Factorisation):
    """Non-negative factorisation of several layers, and the pictures if asked, with one set of image weights."""

    kind: ClassVar[str] = "coupled_nmf"
    pictures: bool = False
    """Couple the pictures too, as the store keeps them, in [0, 1]; their components are latent images."""
    weights: Annotated[
        Annotated[Literal["equal"], Tag(ONE)] | Annotated[list[PositiveNumber], Tag(SEVERAL)], by_count
    ] | None = None
    """One number per layer (pictures first), or ``equal``: each counts alike; the default is 1 for each, as in the
    paper."""


class RandomProjectionsStep(AnalysisStep):
    """Scores of the images on random directions, with their variances and the images at their ends."""

    kind: ClassVar[str] = "random_projections"
    directions: Positive = 100
    """Number of directions."""
    entries: Literal["gaussian", "uniform"] = "gaussian"
    """``gaussian``: unit vectors, uniform on the sphere; ``uniform``: entries uniform on [0, 1), not normalised."""
    standardize: Literal["image", "neuron", "center"] | None = "image"
    """``image``: each image to mean 0, variance 1 over its neurons; ``neuron``: each neuron over the images;
    ``center``: each neuron to mean 0; null: as it is."""
    cutoff: NotNegative | None = None
    """A direction is kept if the variance of its scores is at least this."""
    quantile: Share | None = None
    """The same, with this quantile of the variances of all directions; 0.9 if neither is given."""
    k: Positive = 100
    """Images at either end of each direction."""
    seed: Seed = 0
    """Seed of the directions."""

    @model_validator(mode="after")
    def _need_one_limit(self) -> RandomProjectionsStep:
        if self.cutoff is not None and self.quantile is not None:
            raise refusal("cutoff and quantile both say what is kept", "leave one out", ("quantile",))
        return self


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


class SimilarPlacesStep(AnalysisStep):
    """Where the neurons lie that say most nearly the same as each neuron: how far away, and in which channel."""

    kind: ClassVar[str] = "similar_places"
    neighbours: Positive = 5
    """Most similar others of each neuron that are looked at."""
    metric: Literal["pearson", "cosine", "euclidean"] = "pearson"
    """What similar means."""


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
        AfterValidator(_refuse_repeated),
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
    """Keep a layer that has to be read several times in the workers' memory; ``auto``: if it fits."""

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
    """Most iterations; the layer is read once in each."""
    tol: NotNegative = 1e-4
    """Stop when the centres move by less than this share of the mean variance of a feature (squared)."""
    k: Positive = 10
    """Images listed of each cluster, the nearest to its centre first."""
    seed: Seed = 0
    """Seed of the first centres."""


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
        SelectivityStep,
        SvdStep,
        NmfStep,
        CoupledNmfStep,
        RandomProjectionsStep,
        SingleNeuronsStep,
        SimilarityStep,
        SimilarPlacesStep,
        ClustersStep,
        KmeansStep,
        RegressionStep,
        ConnectionsStep,
        ReportStep,
    )
}
"""Every kind of step, by the name it has in a job file."""
