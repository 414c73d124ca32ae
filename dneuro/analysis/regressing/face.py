"""Which features of one layer predict those of another? Ridge regression from products made block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from dneuro import events
from dneuro.analysis.arrays import Pool
from dneuro.analysis.regressing.asked import NAME, Asked, asked
from dneuro.analysis.regressing.by_images import ByImages
from dneuro.analysis.regressing.by_products import ByProducts
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import Sizes, get_executor
from dneuro.engine.plan import Plan
from dneuro.engine.residence import SHARE

TOO_LARGE = "fewer features, or workers with more memory"


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
    **Cost**: where the images are fewer than the sources, one pass, in which all features are brought to this process:
    some 24·N·(P + Q) bytes, and products of images, 16·N². Else products of features, 8·P·(P + Q) bytes for each fold:
    one pass with those of all folds in a state, where they leave 40 % of the memory free; if they do not, one pass with
    those of all images together and further ones with as many folds at a time as there is room for, each of which
    multiplies its own images only. A fit without a fold is made of the sums over all less those of the fold. In this
    process 4 times such products. Exact to the rounding of float64 in each of these ways; what varies, over the images
    of a fit, by less than 1e-13 of its mean square over all images does not vary.

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
    wanted = asked(x, source, ridge, folds, pool, k, seed)
    way, plan = _choose(wanted, executor)
    plan.check(executor, hint=TOO_LARGE, driver_hint=TOO_LARGE)
    often = "once" if plan.passes == 1 else f"{plan.passes} times"
    events.emit("note", NAME, f"{wanted.views[0].layer or 'array'} {plan.method}, read {often}")
    found = way.fit(executor)
    beta, correlation = found.coefficient(), found.correlation()
    size = np.abs(beta)
    order = np.argsort(np.negative(size, out=size), axis=1, kind="stable")[:, :k].copy()
    del size
    targets, sources = (seen.labels for seen in wanted.views)
    one, other = targets.dims[0], f"source_{sources.dims[0]}"
    pair = (one, other)
    result = xr.Dataset(
        {
            "coefficient": (pair, beta),
            "correlation": (pair, correlation),
            "r2": (one, found.r2()),
            "r2_held_out": (one, found.r2_held_out()),
            "strongest": ((one, "rank"), order),
            "strongest_coefficient": ((one, "rank"), np.take_along_axis(beta, order, axis=1)),
        },
        coords={**targets.coords, **{f"source_{dim}": values for dim, values in sources.coords.items()}},
    )
    result.attrs = {
        "analysis": NAME,
        "layer": wanted.views[0].layer,
        "source": wanted.views[1].layer,
        "images": wanted.images,
        "parameters": {"ridge": ridge, "folds": folds, "pool": pool, "k": k, "seed": seed},
        "passes": way.passes,
    }
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
    return _choose(asked(x, source, ridge, folds, pool, k, seed), get_executor(client))[1]


def _choose(wanted: Asked, executor: Sizes) -> tuple[ByProducts | ByImages, Plan]:
    """Return the first way that leaves room, with its plan; if none does, the one that takes least.

    Where images are fewer than sources, they come first: they are less than any products of sources. Of folds at a time
    only those numbers are tried that make for fewer passes, most of them first.
    """
    folds = wanted.folds
    several = sorted({-(-folds // groups) for groups in range(1, folds + 1)}, reverse=True)
    ways: list[ByProducts | ByImages] = [ByProducts(wanted, count) for count in several]
    ways.insert(0 if wanted.images < wanted.sources else len(ways), ByImages(wanted))
    plans = [(way, way.plan(executor)) for way in ways]
    workers, asking = SHARE * executor.memory, SHARE * executor.driver_memory
    for way, plan in plans:
        if plan.worker_bytes <= workers and plan.asking_bytes(executor) <= asking:
            return way, plan
    return min(plans, key=lambda pair: max(pair[1].worker_bytes, pair[1].asking_bytes(executor)))
