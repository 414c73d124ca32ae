"""Which features of one layer predict those of another? Ridge regression from products made in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Pool, Prepare, View, choose, view
from dneuro.analysis.checks import check_count, check_number, check_seed
from dneuro.analysis.nonnegative.asked import same_images
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import get_executor
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan, plan_pass
from dneuro.errors import ArrayError
from dneuro.kernels.base import Array, Origin
from dneuro.kernels.paired import PairedProducts

Matrix = NDArray[np.float64]
NAME = "regression"
TOO_LARGE = "fewer folds, fewer features, or workers with more memory"


@says_selection
def regression(
    x: xr.DataArray,
    *,
    source: xr.DataArray,
    ridge: float = 1e-3,
    folds: int = 5,
    pool: Pool = "max",
    k: int = 5,
    seed: int = 0,
    client: Any = None,
) -> xr.Dataset:
    """Ridge regression of every feature of a layer on all features of another, over the images.

    Parameters
    ----------
    x : DataArray, dims (image N, channel Q[, y, x]), or (image N, component Q)
        What is predicted: a layer, or the ``score`` of its `svd`.
    source : DataArray, dims (image N, channel P[, y, x]), or (image N, component P)
        What it is predicted from: the same images.
    ridge : float
        Penalty on the squared coefficients of standardised features, as a share of the number of images; 0 for
        ordinary least squares, of all solutions the smallest.
    folds : int
        Parts that the images are dealt into at random; each is predicted from the others. 0 or 1: none of that.
    pool : {"max", "mean"}
        How one number is made of all positions of a channel, in both.
    k : int
        Sources listed of each feature, largest coefficient (in size) first.
    seed : int
        Of the dealing.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        coefficient (channel, source_channel) float64: standard deviations of the target per standard deviation of the
        source, the others held; correlation (channel, source_channel): of the two alone; r2 (channel): share of the
        variance that the regression explains on the images it was fitted to; r2_held_out (channel): on images it was
        not fitted to (1 − Σ(y − ŷ)² / Σ(y − ȳ)², ȳ the mean of the others; it may be negative), NaN without folds;
        strongest (channel, rank) int64: the `k` sources of largest |coefficient|, strongest_coefficient beside them.
        Dims are called after those of the arrays. What does not vary has coefficient 0, as a source, and NaN as a
        target.

    Raises
    ------
    ArrayError
        If the arrays are not such, not about the same images, or a parameter cannot be.
    NonFiniteError
        If one holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: one pass over both arrays, whatever the folds: the products of each fold are kept apart, and a fit without
    a fold is made of the sum of the others. State 8·F·P·(P + Q) bytes per task. Exact to the rounding of float64.

    Source: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", future work: which features
    of one layer feed those of the next. The paper names no method; regression, its penalty and the held-out folds are
    dneuro's. A coefficient says what predicts, not what causes: `connections` reads the weights.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> a = xr.DataArray(np.random.default_rng(0).normal(size=(200, 3)), dims=("image", "channel"))
    >>> found = dn.regression(2 * a[:, :1] - a[:, 2:3].values, source=a, ridge=0)
    >>> found["strongest"].values[0, :2].tolist(), round(float(found["r2_held_out"][0]), 6)
    ([0, 2], 1.0)
    """
    executor = get_executor(client)
    parameters: dict[str, Any] = {"ridge": ridge, "folds": folds, "pool": pool, "k": k, "seed": seed}
    views, rows, kernel = _setup(x, source, ridge, folds, pool, k, seed)
    _plan(views, kernel, executor).check(executor, hint=TOO_LARGE, driver_hint=TOO_LARGE)
    both = views[::-1]  # the kernel wants the source first
    found = reduce(
        [seen.xs[0] for seen in both], {"products": kernel}, executor, step=NAME, rows=rows,
        prepare=PreparePair(tuple(seen.prepare for seen in both)),
    )["products"]  # fmt: skip
    every = _Sums.of(found, kernel.sources)
    whole = every.added()
    coefficient, _ = whole.fit(ridge)
    near, far = np.sqrt(whole.variance_a), np.sqrt(whole.variance_b)
    live = far > 0
    scale = np.divide(near[:, None], far, out=np.zeros_like(coefficient), where=live)
    beta = (coefficient * scale).T
    beta[~live] = np.nan
    size = np.outer(far, near)
    correlation = np.divide(whole.covariance.T, size, out=np.full(size.shape, np.nan), where=size > 0)
    order = np.argsort(-np.nan_to_num(np.abs(beta), nan=-1.0), axis=1, kind="stable")[:, :k]
    targets, sources = views[0].labels, views[1].labels
    one, other = targets.dims[0], f"source_{sources.dims[0]}"
    pair = (one, other)
    result = xr.Dataset(
        {
            "coefficient": (pair, beta),
            "correlation": (pair, correlation),
            "r2": (one, whole.explained(coefficient, whole)),
            "r2_held_out": (one, _held_out(every, ridge) if kernel.folds > 1 else np.full(len(beta), np.nan)),
            "strongest": ((one, "rank"), order),
            "strongest_coefficient": ((one, "rank"), np.take_along_axis(beta, order, axis=1)),
        },
        coords={**targets.coords, **{f"source_{dim}": values for dim, values in sources.coords.items()}},
    )
    result.attrs = {"analysis": NAME, "layer": views[0].layer, "source": views[1].layer,
                    "images": int(whole.count[0]), "parameters": parameters}  # fmt: skip
    return result


def plan_regression(
    x: xr.DataArray,
    *,
    source: xr.DataArray,
    ridge: float = 1e-3,
    folds: int = 5,
    pool: Pool = "max",
    k: int = 5,
    seed: int = 0,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `regression`; reads no data."""
    views, _, kernel = _setup(x, source, ridge, folds, pool, k, seed)
    return _plan(views, kernel, get_executor(client))


@dataclass(frozen=True)
class PreparePair:
    """The blocks of two arrays, each checked and pooled as its own view wants it."""

    each: tuple[Prepare, ...]

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        """Return the values of each."""
        return [prepare([block], origin)[0] for prepare, block in zip(self.each, blocks, strict=True)]


def _setup(
    x: xr.DataArray, source: xr.DataArray, ridge: float, folds: int, pool: Pool, k: int, seed: int
) -> tuple[tuple[View, View], NDArray[np.bool_] | None, PairedProducts]:
    check_number("ridge", ridge, least=0, hint="ridge=1e-3")
    check_count("k", k, hint="k=5")
    check_count("folds", folds, least=0, hint="folds=5, or 0 for none")
    check_seed(seed)
    choose("pool", pool, ("max", "mean"))
    before = view(source, per="channel", pool=pool)
    views = view(x, per="channel", pool=pool, own=("rank", f"source_{before.labels.dims[0]}")), before
    for seen in views:
        if len(seen.labels.dims) != 1:
            raise ArrayError(f"{seen.layer or 'an array'} has features {seen.labels.dims}", hint="stack them into one")
    names = [seen.layer or what for seen, what in zip(views, ("the array", "its source"), strict=True)]
    rows = same_images(views, names)
    images = len(views[0].images) if rows is None else int(rows.sum())
    if folds > max(1, images):
        raise ArrayError(f"folds={folds!r} of {images} images", hint="folds=5, or 0 for none")
    dealt = _deal(len(views[0].images), rows, max(1, folds), seed)
    return views, rows, PairedProducts(dealt, max(1, folds), views[1].labels.count, views[0].labels.count)


def _deal(images: int, rows: NDArray[np.bool_] | None, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of every image: those that take part are dealt in random order, one after the other."""
    there = np.arange(images) if rows is None else np.flatnonzero(rows)
    fold = np.zeros(images, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(there)] = np.arange(len(there)) % folds
    return fold


def _plan(views: tuple[View, View], kernel: PairedProducts, executor: Any) -> Plan:
    state = kernel.memory(0, 0, 0)[0]
    size = 16 * kernel.sources * kernel.targets + 100 * kernel.targets
    return plan_pass(
        NAME, [seen.xs[0] for seen in views[::-1]], {"products": kernel}, executor,
        result_bytes=size, driver_bytes=2 * size + 3 * state + 24 * kernel.sources * (kernel.sources + kernel.targets),
        method=f"on {views[1].layer or 'its source'}",
    )  # fmt: skip


@dataclass(frozen=True)
class _Sums:
    """What is known of regressors A and targets B: of each fold, or of one group of images."""

    count: Matrix
    sums: Matrix
    squares: Matrix
    products: Matrix
    sources: int

    @classmethod
    def of(cls, found: dict[str, Any], sources: int) -> _Sums:
        return cls(found["count"], found["sum"], found["squares"], found["products"], sources)

    def added(self, without: int | None = None) -> _Sums:
        """Return the sums over all folds, or over all but one."""
        keep = np.arange(len(self.count)) != (-1 if without is None else without)
        return replace(self, **{name: getattr(self, name)[keep].sum(axis=0, keepdims=True) for name in _ADDED})

    def only(self, fold: int) -> _Sums:
        """Return the sums over one fold."""
        return replace(self, **{name: getattr(self, name)[fold : fold + 1] for name in _ADDED})

    @property
    def mean(self) -> Matrix:
        """Of A and B, about the shift."""
        return np.asarray(self.sums[0] / self.count[0])

    @property
    def _moments(self) -> Matrix:
        mean = self.mean
        return np.asarray(self.products[0] / self.count[0] - np.outer(mean[: self.sources], mean))

    @property
    def covariance(self) -> Matrix:
        """Of A with B (sources, targets)."""
        return self._moments[:, self.sources :]

    @property
    def variance_a(self) -> Matrix:
        """Of the sources; 0 where it is rounding."""
        return self._variances(self._moments.diagonal(), self.products[0].diagonal())

    @property
    def variance_b(self) -> Matrix:
        """Of the targets; 0 where it is rounding."""
        spread = self.squares[0] / self.count[0] - self.mean[self.sources :] ** 2
        return self._variances(spread, self.squares[0])

    def _variances(self, spread: Matrix, squares: Matrix) -> Matrix:
        return np.where(spread > 1e-13 * squares / self.count[0], spread, 0.0)

    def fit(self, ridge: float) -> tuple[Matrix, Matrix]:
        """Return coefficients (sources, targets) in the units of A and B, and the means they are about."""
        spread = np.sqrt(self.variance_a)
        live = spread > 0
        made = np.zeros_like(self.covariance)
        scale = spread[live]
        corr = self._moments[:, : self.sources][np.ix_(live, live)] / np.outer(scale, scale)
        right = self.covariance[live] / scale[:, None]
        corr[np.diag_indices_from(corr)] = 1.0 + ridge
        if ridge > 0:
            solved = np.linalg.solve(corr, right)
        else:
            solved = np.linalg.pinv(corr, rcond=1e-12, hermitian=True) @ right
        made[live] = solved / scale[:, None]
        return made, self.mean

    def residual(self, coefficient: Matrix, mean: Matrix) -> tuple[Matrix, Matrix]:
        """Return Σ(y − ŷ)² and Σ(y − ȳ)² over these images, of a fit about `mean`."""
        n, p = self.count[0], self.sources
        products = self.products[0] - np.outer(mean[:p], self.sums[0]) - np.outer(self.sums[0][:p], mean)
        products += n * np.outer(mean[:p], mean)
        total = self.squares[0] - 2 * mean[p:] * self.sums[0][p:] + n * mean[p:] ** 2
        cross = products[:, p:]
        left = total - 2 * (coefficient * cross).sum(axis=0)
        left += (coefficient * (products[:, :p] @ coefficient)).sum(axis=0)
        return np.maximum(left, 0.0), total

    def explained(self, coefficient: Matrix, fitted: _Sums) -> Matrix:
        """Return R² of a fit on these images, NaN of what does not vary."""
        left, total = self.residual(coefficient, fitted.mean)
        return np.where(self.variance_b > 0, 1 - left / np.where(total > 0, total, 1.0), np.nan)


_ADDED = ("count", "sums", "squares", "products")


def _held_out(every: _Sums, ridge: float) -> Matrix:
    left = total = np.zeros(every.squares.shape[1])
    for fold in range(len(every.count)):
        coefficient, mean = every.added(without=fold).fit(ridge)
        missed, there = every.only(fold).residual(coefficient, mean)
        left, total = left + missed, total + there
    live = every.added().variance_b > 0
    return np.where(live, 1 - left / np.where(total > 0, total, 1.0), np.nan)
