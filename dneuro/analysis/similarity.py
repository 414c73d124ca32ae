"""Which neurons say the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Per, Pool, View, view
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError, suggest
from dneuro.kernels import CrossProducts
from dneuro.kernels.products import PairDistances

METRICS = ("pearson", "euclidean")
CANCELS = 1e-7
"""Squared distances below this share of the squared norms are summed directly: the products have lost half of
their digits there."""
DIRECT_PAIRS = 1 << 20
"""At most this many pairs per extra pass."""


def similarity(
    x: xr.DataArray,
    *,
    metric: str | Sequence[str] = METRICS,
    per: Per = "channel",
    pool: Pool = "max",
    client: Any = None,
) -> xr.Dataset:
    """Pearson correlation and Euclidean distance of every two channels or neurons.

    Parameters
    ----------
    x : DataArray, dims (image N, channel P[, y, x]) or (channel P, class N)
        Activations, or the counts of `cooccurrence`, whose rows are then compared over the classes.
    metric : {"pearson", "euclidean"} or sequence of them
        What to compute.
    per, pool : str
        As in `top_images`.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        pearson, euclidean (channel, other_channel), or (neuron, other_neuron) for ``per="neuron"`` (channel,
        y and x stacked), float64. The diagonal is exactly 1, or 0. Pearson is NaN where a neuron does not
        vary, as in `numpy.corrcoef`.

    Raises
    ------
    ArrayError
        If `x` is not such an array, or the metric unknown.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If the P × P matrix does not fit into a worker; before anything is read.

    Notes
    -----
    **Cost**: one pass, and one more if some neurons are almost alike and distances are asked for; state 8·P² bytes;
    exact (products in float64 about a pilot mean; nearly vanishing distances are summed directly). Source:
    Sadeghi, neuron similarity.
    """
    wanted = [metric] if isinstance(metric, str) else list(metric)
    for name in wanted or [""]:
        if name not in METRICS:
            raise ArrayError(f"metric {name!r} is unknown", hint=suggest(name, METRICS))
    executor = get_executor(client)
    seen = _setup(x, per, pool)
    plan_similarity(x, per=per, pool=pool, client=executor).check(
        executor.memory, hint="per='channel', fewer neurons, or workers with more memory"
    )
    found = seen.reduce({"products": CrossProducts()}, executor, "similarity")["products"]
    matrices: dict[str, NDArray[np.float64]] = {}
    if "pearson" in wanted:
        matrices["pearson"] = _pearson(found)
    if "euclidean" in wanted:
        matrices["euclidean"] = _euclidean(found, seen, executor)
    dim = seen.labels.dims[0] if len(seen.labels.dims) == 1 else "neuron"
    coords = {}
    if len(seen.labels.dims) == 1 and dim in seen.labels.coords:
        coords = {dim: seen.labels.coords[dim], f"other_{dim}": (f"other_{dim}", seen.labels.coords[dim])}
    result = xr.Dataset({name: ((dim, f"other_{dim}"), m) for name, m in matrices.items()}, coords=coords)
    result.attrs = {"analysis": "similarity", "layer": seen.layer, "images": len(seen.taking_part),
                    "parameters": {"metric": wanted, "per": per, "pool": pool}}  # fmt: skip
    return result


def plan_similarity(
    x: xr.DataArray,
    *,
    metric: str | Sequence[str] = METRICS,
    per: Per = "channel",
    pool: Pool = "max",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `similarity`; reads no data."""
    seen = _setup(x, per, pool)
    count = 1 if isinstance(metric, str) else len(metric)
    size = 8 * seen.labels.count**2
    return seen.plan(
        "similarity",
        {"products": CrossProducts()},
        get_executor(client),
        passes=1 + ("euclidean" in metric),
        result_bytes=count * size,
        driver_bytes=(count + 3) * size,
    )


def _setup(x: xr.DataArray, per: Per, pool: Pool) -> View:
    if "image" not in x.dims and "class" in x.dims:
        # Rows of counts: the classes are what the neurons are compared over.
        x = x.rename({"class": "image"}).astype("float64")
        x = x.drop_vars("image", errors="ignore")
        return view(x, per="neuron" if len(x.dims) > 2 else per, pool=pool)
    return view(x, per=per, pool=pool)


def _pearson(found: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    n, total = int(found["count"]), found["sum"]
    covariance = found["products"] - np.outer(total, total) / n
    squares = covariance.diagonal().copy()
    # What is left of a constant neuron is dust of the subtraction; it has no correlation with anything.
    alive = squares > 1e-13 * np.maximum(found["products"].diagonal(), np.finfo(float).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(alive, 1.0 / np.sqrt(np.where(alive, squares, 1.0)), np.nan)
    matrix = np.clip(covariance * scale[:, None] * scale[None, :], -1.0, 1.0)
    matrix[np.diag_indices_from(matrix)] = np.where(alive, 1.0, np.nan)
    return matrix


def _euclidean(found: dict[str, NDArray[Any]], seen: View, executor: Executor) -> NDArray[np.float64]:
    n, total, shift = int(found["count"]), found["sum"], found["shift"]
    squares = found["products"].diagonal()
    apart = shift[:, None] - shift[None, :]
    squared = squares[:, None] + squares[None, :] - 2 * found["products"]
    squared += 2 * apart * (total[:, None] - total[None, :]) + n * apart**2
    norms = squares + 2 * shift * total + n * shift**2
    close = np.triu(squared <= CANCELS * (norms[:, None] + norms[None, :]), k=1)
    pairs = np.argwhere(close)
    for start in range(0, len(pairs), DIRECT_PAIRS):
        some = pairs[start : start + DIRECT_PAIRS]
        exact = seen.reduce({"pairs": PairDistances(some)}, executor, "similarity")["pairs"]["squared"]
        squared[some[:, 0], some[:, 1]] = squared[some[:, 1], some[:, 0]] = exact
    squared[np.diag_indices_from(squared)] = 0.0
    distances: NDArray[np.float64] = np.sqrt(np.maximum(squared, 0.0))
    return distances
