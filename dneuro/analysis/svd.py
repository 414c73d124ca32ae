"""Along which directions does a layer vary most?

Z is the standardised images × neurons. It never exists as a whole: every pass standardises a slice, multiplies
it by a few vectors, and forgets it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import View, choose, is_count, view
from dneuro.analysis.eigen import MAX_STEPS, OVERSAMPLING, certify, gram, krylov
from dneuro.analysis.selection import says_selection
from dneuro.analysis.standardisation import standardisation
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError
from dneuro.kernels import Energy, Moments, Scores, Standardise
from dneuro.kernels.standardise import Mode

Method = Literal["auto", "gram", "krylov"]
GRAM_NEURONS = 4096
"""``method="auto"`` takes the neuron × neuron matrix up to this size (128 MiB)."""


@says_selection
def svd(
    x: xr.DataArray,
    *,
    rank: int,
    standardize: Mode = "image",
    method: Method = "auto",
    seed: int = 0,
    client: Any = None,
) -> xr.Dataset:
    """Truncated singular value decomposition Z ≈ U S Vᵀ of images × neurons.

    Parameters
    ----------
    x : DataArray, dims (image N, features… P)
        Activations; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    rank : int
        Number of singular triplets K, at most min(N, P).
    standardize : {"image", "neuron", "center", None}
        ``"image"``: each image to mean 0 and variance 1 over its neurons, as Zhang does; ``"neuron"``: each neuron to
        mean 0 and variance 1 over the images; ``"center"``: each neuron to mean 0; None: as it is. What does not vary
        gets weight 0.
    method : {"auto", "gram", "krylov"}
        ``"gram"`` diagonalises ZᵀZ (P × P, float64); ``"krylov"`` builds a block Krylov space of it and
        stops when the certificate says so; ``"auto"`` takes the first up to 4,096 neurons if it fits into a worker.
    seed : int
        Seed of the start block of ``"krylov"``.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        singular_value (component K), in descending order; explained_variance_ratio (component): σ² / ‖Z‖²_F;
        score (image, component): U; vector (component, features…): V; residual (component): some singular value
        of Z lies within this distance of the one given. All float64. ``attrs`` has total_variance (‖Z‖²_F),
        reconstruction_error (‖Z − U S Vᵀ‖_F), method, passes, converged. Signs as scikit-learn's
        ``svd_flip``: the largest entry of each column of U is positive. A σ that is nothing but rounding is 0, and so
        is its score.

    Raises
    ------
    ArrayError
        If `x` is not such an array, or `rank` does not lie in 1…min(N, P).
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: ``"gram"`` 2 passes, state 8·P² bytes; ``"krylov"`` up to 13, as a rule 4 to 7, state
    8·P·(K + 10) bytes, flat in N, and in the driver twice that per pass; one pass more for the moments under
    ``"neuron"`` and ``"center"``. Products in float64; the singular values are those of the N × K matrix Z V, so that
    small ones do not suffer from squaring.

    References
    ----------
    Zhang, "Visualizing neuron role with dimensionality reduction of feature space"; Musco & Musco, "Randomized
    block Krylov methods for stronger and faster approximate singular value decomposition" (2015).
    """
    executor = get_executor(client)
    seen = _setup(x, rank, standardize, method)
    plan = plan_svd(x, rank=rank, standardize=standardize, method=method, client=executor)
    plan.check(executor.memory, hint="method='krylov', a lower rank, or workers with more memory")
    events.emit("note", "svd", f"{seen.layer or 'array'}: {plan.method}, {plan.passes} passes at most")
    standardise, passes = standardisation(seen, standardize, executor, "svd")
    if plan.method == "gram":
        found = gram(seen, standardise, rank, executor)
    else:
        found = krylov(seen, standardise, rank, seed, executor)
    scores = seen.reduce({"scores": Scores(standardise, found.vectors)}, executor, "svd")["scores"]
    u, values, turn = np.linalg.svd(scores["score"], full_matrices=False)
    rounding = np.finfo(float).eps * max(len(u), len(found.vectors)) * values[0]
    values[values <= rounding] = 0.0
    u[:, values == 0] = 0.0
    residuals = certify(found.applied @ turn.T, found.vectors @ turn.T, values) + rounding
    u, vectors = _flip(u, found.vectors @ turn.T)
    total = found.total
    rest = max(total - float(values @ values), 0.0)
    result = xr.Dataset(
        {
            "singular_value": ("component", values),
            "explained_variance_ratio": ("component", values**2 / total if total else np.zeros_like(values)),
            "residual": ("component", residuals),
            "score": (("image", "component"), u),
            "vector": (("component", *seen.labels.dims), vectors.T.reshape(-1, *seen.labels.sizes)),
        },
        coords={**seen.labels.coords, "image": seen.images[scores["image"]], "component": np.arange(len(values))},
    )
    result.attrs = {
        "analysis": "svd",
        "layer": seen.layer,
        "standardize": standardize or "none",
        "parameters": {"rank": rank, "standardize": standardize, "method": method, "seed": seed},
        "total_variance": total,
        "reconstruction_error": math.sqrt(rest),
        "method": plan.method,
        "passes": passes + found.passes + 1,
        "converged": found.converged,
    }
    return result


def plan_svd(
    x: xr.DataArray,
    *,
    rank: int,
    standardize: Mode = "image",
    method: Method = "auto",
    seed: int = 0,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `svd`; reads no data."""
    executor = get_executor(client)
    seen = _setup(x, rank, standardize, method)
    if method == "krylov":
        return _plan(seen, rank, standardize, "krylov", executor)
    plan = _plan(seen, rank, standardize, "gram", executor)
    if method == "auto" and (seen.labels.count > GRAM_NEURONS or plan.worker_bytes > executor.memory):
        return _plan(seen, rank, standardize, "krylov", executor)
    return plan


def _plan(seen: View, rank: int, standardize: Mode, method: str, executor: Executor) -> Plan:
    """Return the plan of one method."""
    n, p = len(seen.taking_part), seen.labels.count
    stand_in = Standardise(standardize)
    columns = min(rank + OVERSAMPLING, n, p)
    before = seen.plan("svd", {"moments": Moments()}, executor).passes if standardize in ("neuron", "center") else 0
    if method == "gram":
        energy, steps, driver = Energy(stand_in), 1, 3 * p * p
    else:
        energy, steps = Energy(stand_in, np.broadcast_to(0.0, (p, columns))), MAX_STEPS
        driver = (3 * MAX_STEPS + 2) * p * columns  # basis, its image, and one of them being extended
    plan = seen.plan(
        "svd",
        {"energy": energy},
        executor,
        passes=before + steps + 1,
        result_bytes=8 * rank * (n + p + 3),
        driver_bytes=8 * driver + 24 * rank * (n + p),
        method=method,
    )
    last = seen.plan("svd", {"scores": Scores(stand_in, np.broadcast_to(0.0, (p, rank)))}, executor)
    return replace(plan, worker_bytes=max(plan.worker_bytes, last.worker_bytes))


def _setup(x: xr.DataArray, rank: int, standardize: Mode, method: Method) -> View:
    seen = view(x, per="neuron")
    smallest = min(len(seen.taking_part), seen.labels.count)
    if not is_count(rank) or rank > smallest:
        raise ArrayError(
            f"rank={rank!r} of {len(seen.taking_part)} images × {seen.labels.count} neurons",
            hint=f"a whole number from 1 to {smallest}",
        )
    choose("standardize", standardize, ("image", "neuron", "center", None))
    choose("method", method, ("auto", "gram", "krylov"))
    return seen


def _flip(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return U and V with the largest entry of each column of U positive."""
    signs = np.sign(u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])])
    signs[signs == 0] = 1.0
    return u * signs, v * signs
