"""Which neurons say the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Per, Pool, View, check_labelled, choose, view
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.kernels import CrossProducts
from dneuro.kernels.products import PairDistances

METRICS = ("pearson", "euclidean")
CANCELS = 1e-7
"""Squared distances below this share of what they are the difference of are summed directly: half of their digits
are lost."""


@says_selection
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
    wanted = _metrics(metric)
    executor = get_executor(client)
    seen = _setup(x, per, pool)
    plan_similarity(x, metric=wanted, per=per, pool=pool, client=executor).check(
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
    wanted = _metrics(metric)
    seen = _setup(x, per, pool)
    size = 8 * seen.labels.count**2
    return seen.plan(
        "similarity",
        {"products": CrossProducts()},
        get_executor(client),
        passes=1 + ("euclidean" in wanted and seen.readable),
        result_bytes=len(wanted) * size,
        driver_bytes=(len(wanted) + 3) * size,
    )


def _metrics(metric: str | Sequence[str]) -> list[str]:
    wanted = [metric] if isinstance(metric, str) else list(metric)
    for name in wanted or [""]:
        choose("metric", name, METRICS)
    return wanted


def _setup(x: xr.DataArray, per: Per, pool: Pool) -> View:
    check_labelled(x)
    if "image" not in x.dims and "class" in x.dims:
        # Rows of counts: the classes are what the neurons are compared over.
        x = x.rename({"class": "image"}).astype("float64")
        x = x.drop_vars("image", errors="ignore")
        return view(x, per="neuron" if len(x.dims) > 2 else per, pool=pool)
    return view(x, per=per, pool=pool)


def _pearson(found: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    n, total, products = int(found["count"]), found["sum"], found["products"]
    squares = products.diagonal() - total * total / n
    alive = squares > 0  # the z of a constant neuron are all the same few bits: their products cancel exactly
    scale = np.full(len(squares), np.nan)
    scale[alive] = 1.0 / np.sqrt(squares[alive])
    matrix = np.empty_like(products)
    for i in range(len(matrix)):
        matrix[i] = np.clip((products[i] - total[i] * total / n) * (scale[i] * scale), -1.0, 1.0)
        matrix[i, i] = 1.0 if alive[i] else np.nan
    return matrix


def _euclidean(found: dict[str, NDArray[Any]], seen: View, executor: Executor) -> NDArray[np.float64]:
    n, total, shift, products = int(found["count"]), found["sum"], found["shift"], found["products"]
    squares = products.diagonal()
    squared: NDArray[np.float64] = np.empty_like(products)
    pairs = []
    for i in range(len(squared)):
        apart = shift[i] - shift
        large = squares[i] + squares + n * apart**2
        squared[i] = large - 2 * products[i] + 2 * apart * (total[i] - total)
        close = i + 1 + np.flatnonzero(squared[i, i + 1 :] < CANCELS * large[i + 1 :])
        pairs.append(np.stack([np.full_like(close, i), close], axis=1).astype(np.int32))
    some = np.concatenate(pairs)
    if len(some) and not seen.readable:
        events.emit("note", "similarity", f"{len(some)} pairs of {seen.layer} are almost alike: half of the digits of "
                    "their distance are lost, for the activations were not kept")  # fmt: skip
    elif len(some):
        exact = seen.reduce({"pairs": PairDistances(some)}, executor, "similarity")["pairs"]["squared"]
        squared[some[:, 0], some[:, 1]] = squared[some[:, 1], some[:, 0]] = exact
    squared[np.diag_indices_from(squared)] = 0.0
    np.maximum(squared, 0.0, out=squared)
    np.sqrt(squared, out=squared)
    return squared
