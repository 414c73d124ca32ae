"""Steps that take a layer apart: singular vectors, non-negative parts, directions by chance."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Tag, model_validator

from dneuro.spec.base import (
    ALL,
    NUMBER,
    ONE,
    SEVERAL,
    NotNegative,
    Number,
    OrWritten,
    Positive,
    PositiveNumber,
    Seed,
    Share,
    all_or_number,
    by_count,
    no_bool,
)
from dneuro.spec.problems import refusal
from dneuro.spec.steps.base import AnalysisStep, Persist, refuse_repeated


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
    init: Literal["compressed", "nndsvda", "random"] | None = None
    """Start: iterated on the leading directions without reading (the default for ``hals``), from the singular vectors
    (for ``mu``), or drawn from (0, 1) as in the paper."""
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


class PatchComponentsStep(AnalysisStep):
    """Independent components of the top patches of each channel, as pictures beside the patches."""

    kind: ClassVar[str] = "patch_components"
    k: Positive = 100
    """Patches of each channel: what the winning position saw of its top images, of activations above 0."""
    rank: Positive = 8
    """Components of each channel."""
    renderings: Annotated[
        list[Literal["grey", "rgb", "rgb8"]],
        Field(min_length=1),
        BeforeValidator(lambda one: [one] if isinstance(one, str) else one),
        AfterValidator(refuse_repeated),
        OrWritten({"enum": ["grey", "rgb", "rgb8"]}),
    ] = Field(["grey", "rgb", "rgb8"])
    """``grey``; ``rgb``: of red, green and blue each alone, then combined; ``rgb8``: that as bytes."""
    match: bool = True
    """Bring the components of red and blue into order and sign of the green ones before they are combined."""
    keep: Annotated[int, Field(ge=0), no_bool] = 9
    """Patches stored beside the components, the best ones."""
    fun: Literal["logcosh", "exp", "cube"] = "logcosh"
    """FastICA's contrast function."""
    max_iter: Positive = 200
    """Iterations, at most."""
    tol: PositiveNumber = 1e-4
    """A channel has converged when an iteration turns no component by more (1 − cosine)."""
    seed: Seed = 0
    """Of the first rotation."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of pictures that are no bytes."""


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
