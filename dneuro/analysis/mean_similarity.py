"""How alike are two neurons of a layer on average, and how does that go with depth?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dneuro.analysis.across import check_results, over_layers
from dneuro.analysis.arrays import in_parts
from dneuro.analysis.metrics import METRICS
from dneuro.engine.executors import get_executor
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan, in_driver, plan_pass
from dneuro.errors import ArrayError
from dneuro.kernels import OffDiagonal

NAME = "mean_similarity"
MATRICES = "dn.similarity(x, metric='pearson'), without neighbours and threshold"


def mean_similarity(results: Mapping[str, xr.Dataset], *, client: Any = None) -> xr.Dataset:
    """Average, over all pairs of neurons, of what `similarity` found out about each of several layers.

    Parameters
    ----------
    results : mapping of str to Dataset
        Matrices of `similarity` by layer, the first layer first; in memory, or in a Zarr group, where they may be as
        large as they like.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        Over layer (coordinate: the names): features int64, what is compared; and for each of ``pearson``,
        ``euclidean``, ``cosine`` and ``covariance`` that there is: the mean over all pairs under its own name, with
        <metric>_std (of the pairs about it) float64 and <metric>_pairs int64, the pairs that have a value.

    Raises
    ------
    ArrayError
        If `results` are not such: lists of neighbours, or of pairs beyond a threshold, are not all pairs.
    MemoryLimitError
        If a task does not fit into a worker; before anything is read.

    Notes
    -----
    A pair counts once, no neuron is paired with itself, and pairs without a value (NaN, such as a correlation with a
    neuron that does not vary) are left out.

    **Cost**: one read of the matrices, in blocks; state 24 bytes per neuron. No matrix is ever held. Exact to rounding.

    Distances grow with what is compared: of counts, whose rows all have the same sum, layers can be set beside each
    other; distances of raw activations also tell how strongly a layer is active.

    Source: Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks": average similarity (Pearson) and
    dissimilarity (Euclidean) of the neurons of a layer, by the rows of their co-occurrence frequencies. Raw activations
    in their place, and the leaving out of NaN, are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[0.0, 1, 2], [1, 3, 1], [2, 5, 0]]), dims=("image", "channel"))
    >>> found = dn.mean_similarity({"fc": dn.similarity(x, metric="pearson")})
    >>> found["pearson"].values.round(3).tolist(), found["pearson_pairs"].values.tolist()
    ([-0.333], [3])
    """
    executor = get_executor(client)
    plan_mean_similarity(results, client=executor).check(
        executor, hint="workers with more memory", driver_hint="more memory for the process that asks"
    )
    rows = []
    for result in results.values():
        row: dict[str, Any] = {}
        for metric, matrix in _matrices(result).items():
            found = reduce([matrix], {"pairs": OffDiagonal()}, executor, step=NAME)["pairs"]
            count, total, squares = (found[name].sum() for name in ("count", "sum", "squares"))
            mean = total / count if count else np.nan
            spread = np.sqrt(max(0.0, squares / count - mean**2)) if count else np.nan
            row |= {metric: mean, f"{metric}_std": spread, f"{metric}_pairs": int(count) // 2}
            row["features"] = len(matrix)
        rows.append(row)
    for row in rows:
        for metric in METRICS:
            if any(metric in other for other in rows):
                row.setdefault(f"{metric}_pairs", 0)
    return over_layers(results, rows).assign_attrs(analysis=NAME, layer="", parameters={})


def plan_mean_similarity(results: Mapping[str, xr.Dataset], *, client: Any = None) -> Plan:
    """Return the reading and the memory of `mean_similarity`; reads no data."""
    check_results(results, (), hint=MATRICES)
    executor = get_executor(client)
    plans = []
    for name, result in results.items():
        matrices = _matrices(result)
        if not matrices:
            raise ArrayError(f"layer {name}: the dataset has no matrix of similarities", hint=MATRICES)
        plans += [plan_pass(NAME, [matrix], {"pairs": OffDiagonal()}, executor) for matrix in matrices.values()]
    size = 8 * (1 + 3 * len(METRICS)) * len(results)
    widest = max(len(matrix) for result in results.values() for matrix in _matrices(result).values())
    return Plan(
        NAME, 1, sum(plan.read_bytes for plan in plans), max(plan.tasks for plan in plans),
        max(plan.worker_bytes for plan in plans), in_driver(48 * widest + 2 * size, executor), size,
        "in blocks, no matrix is held",
        plans[0].device, max(plan.device_bytes for plan in plans),
    )  # fmt: skip


def _matrices(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the square matrices of a result, by metric."""
    found = {metric: result[metric] for metric in METRICS if metric in result}
    return {
        metric: in_parts(matrix, str(matrix.dims[0]))
        for metric, matrix in found.items()
        if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    }
