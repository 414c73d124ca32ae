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
from dneuro.analysis.arrays import View, is_count, view
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError, suggest
from dneuro.kernels import Energy, Moments, Scores, Standardise
from dneuro.kernels.standardise import Mode

Method = Literal["auto", "gram", "krylov"]
GRAM_NEURONS = 4096
"""``method="auto"`` takes the neuron × neuron matrix up to this size (128 MiB)."""
OVERSAMPLING = 10
"""Vectors beyond the rank that a Krylov block has."""
MAX_STEPS = 12
"""Most passes of the Krylov method before it says that it has not converged."""
TOLERANCE = 1e-4
"""Krylov stops when every certificate is below this share of its singular value. The error of a singular value goes
with the square of that."""


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
        stops when the certificate says so; ``"auto"`` takes the first up to 4,096 neurons.
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
        ``svd_flip``: the largest entry of each column of U is positive.

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
    **Cost**: ``"gram"`` 2 passes, state 8·P² bytes; ``"krylov"`` up to 13, as a rule 4 to 6, state
    8·P·(K + 10) bytes, flat in N; one more for the moments under ``"neuron"`` and ``"center"``. Products in float64.

    References
    ----------
    Zhang, "Visualizing neuron role with dimensionality reduction of feature space"; Musco & Musco, "Randomized
    block Krylov methods for stronger and faster approximate singular value decomposition" (2015).
    """
    executor = get_executor(client)
    seen = _setup(x, rank, standardize, method)
    plan = plan_svd(x, rank=rank, standardize=standardize, method=method, client=executor)
    plan.check(executor.memory, hint="method='krylov', a lower rank, or workers with more memory")
    chosen = plan.method
    events.emit("note", "svd", f"{seen.layer or 'array'}: {chosen}, {plan.passes} passes at most")
    standardise, passes = _standardise(seen, standardize, executor)
    if chosen == "gram":
        values, vectors, residuals, total = _gram(seen, standardise, rank, executor)
        steps, converged = 1, True
    else:
        values, vectors, residuals, total, steps, converged = _krylov(seen, standardise, rank, seed, executor)
    scale = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    scores = seen.reduce({"scores": Scores(standardise, vectors * scale)}, executor, "svd")["scores"]
    u, vectors = _flip(scores["score"], vectors)
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
        "method": chosen,
        "passes": passes + steps + 1,
        "converged": converged,
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
    n, p = len(seen.taking_part), seen.labels.count
    chosen = method
    if chosen == "auto":
        chosen = "gram" if p <= GRAM_NEURONS else "krylov"
    columns = min(rank + OVERSAMPLING, n, p)
    if chosen == "krylov" and 3 * columns >= min(n, p):
        chosen = "gram"  # the space would soon be the whole one
    width = p if chosen == "gram" else columns
    steps = 1 if chosen == "gram" else MAX_STEPS
    stand_in = Standardise(standardize)
    known = np.broadcast_to(np.float64(0), (p, width))
    energy = Energy(stand_in, None if chosen == "gram" else known)
    scores = Scores(stand_in, np.broadcast_to(np.float64(0), (p, rank)))
    moments = standardize in ("neuron", "center")
    plan = seen.plan(
        "svd",
        {"energy": energy},
        executor,
        passes=steps + 1 + moments,
        result_bytes=8 * rank * (n + p + 3),
        driver_bytes=8 * (3 * p * p if chosen == "gram" else (2 * MAX_STEPS + 2) * p * columns) + 16 * rank * (n + p),
        method=chosen,
    )
    last = seen.plan("svd", {"scores": scores}, executor)
    return replace(plan, worker_bytes=max(plan.worker_bytes, last.worker_bytes))


def _setup(x: xr.DataArray, rank: int, standardize: Mode, method: Method) -> View:
    seen = view(x, per="neuron")
    smallest = min(len(seen.taking_part), seen.labels.count)
    if not is_count(rank) or rank > smallest:
        raise ArrayError(
            f"rank={rank!r} of {len(seen.taking_part)} images × {seen.labels.count} neurons",
            hint=f"a whole number from 1 to {smallest}",
        )
    if standardize not in ("image", "neuron", "center", None):
        raise ArrayError(
            f"standardize={standardize!r} is unknown",
            hint=suggest(str(standardize), ("image", "neuron", "center", "None")),
        )
    if method not in ("auto", "gram", "krylov"):
        raise ArrayError(f"method={method!r} is unknown", hint=suggest(str(method), ("auto", "gram", "krylov")))
    return seen


def _standardise(seen: View, mode: Mode, executor: Executor) -> tuple[Standardise, int]:
    """Return how Z is made, and the number of passes that took."""
    if mode in (None, "image"):
        return Standardise(mode), 0
    found = seen.reduce({"moments": Moments()}, executor, "svd")["moments"]
    mean, std = found["mean"].reshape(-1), found["std"].reshape(-1)
    std = np.where(found["max"].reshape(-1) > found["min"].reshape(-1), std, 0.0)
    return Standardise(mode, mean=mean, std=std if mode == "neuron" else None), 1


def _gram(
    seen: View, standardise: Standardise, rank: int, executor: Executor
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Return (σ, V, certificates, ‖Z‖²_F) through the eigenvectors of ZᵀZ."""
    found = seen.reduce({"energy": Energy(standardise)}, executor, "svd")["energy"]
    product, total = found["product"], float(found["total"])
    squares, vectors = np.linalg.eigh(product)
    squares, vectors = squares[::-1][:rank], vectors[:, ::-1][:, :rank]
    values = np.sqrt(np.maximum(squares, 0.0))
    return values, vectors, _certify(product @ vectors, vectors, values), total


def _krylov(
    seen: View, standardise: Standardise, rank: int, seed: int, executor: Executor
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float, int, bool]:
    """Return (σ, V, certificates, ‖Z‖²_F, passes, converged) through a block Krylov space of ZᵀZ.

    The basis grows by one orthonormal block per pass. The pass gives ZᵀZ times the new block, so ZᵀZ is known on the
    whole basis, and both the Rayleigh-Ritz values and their residuals come without another read.
    """
    p = seen.labels.count
    columns = min(rank + OVERSAMPLING, len(seen.taking_part), p)
    block = np.linalg.qr(np.random.default_rng(seed).standard_normal((p, columns)))[0]
    basis, image = np.empty((p, 0)), np.empty((p, 0))
    total, step, converged = 0.0, 0, False
    while True:
        found = seen.reduce({"energy": Energy(standardise, block)}, executor, "svd")["energy"]
        total, step = float(found["total"]), step + 1
        basis, image = np.hstack([basis, block]), np.hstack([image, found["product"]])
        projected = basis.T @ image
        squares, small = np.linalg.eigh((projected + projected.T) / 2)
        small = small[:, ::-1][:, :rank]
        values = np.sqrt(np.maximum(squares[::-1][:rank], 0.0))
        vectors = basis @ small
        residuals = _certify(image @ small, vectors, values)
        # σ below the rounding of the largest one cannot be told from 0; they do not hold up the others.
        matter = values > 1e-7 * values[0] if values[0] > 0 else np.zeros_like(values, dtype=bool)
        converged = step > 1 and bool((residuals[matter] <= TOLERANCE * values[matter]).all())
        full = basis.shape[1] + columns > min(p, len(seen.taking_part))
        if converged or full or step == MAX_STEPS:
            break
        block = found["product"]
        for _ in range(2):  # twice is enough (Kahan, Parlett) to stay orthogonal to the basis
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
    if not converged:
        worst = float((residuals[matter] / values[matter]).max(initial=0.0))
        events.emit("warning", "svd", f"not converged after {step} passes: a certificate is {worst:.1e} of its σ")
    return values, vectors, residuals, total, step, converged


def _certify(
    applied: NDArray[np.float64], vectors: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return for each σ the radius within which some true singular value lies.

    Some eigenvalue of ZᵀZ lies within ‖r‖ of σ², r = ZᵀZ v − σ² v; dividing by the sum of the two roots makes it a
    distance of singular values (for σ = 0, the root itself).
    """
    norms = np.linalg.norm(applied - vectors * values**2, axis=0)
    radii: NDArray[np.float64] = np.where(
        values > np.sqrt(norms), norms / np.maximum(values, np.finfo(float).tiny), np.sqrt(norms)
    )
    return radii


def _flip(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return U and V with the largest entry of each column of U positive."""
    signs = np.sign(u[np.argmax(np.abs(u), axis=0), np.arange(u.shape[1])])
    signs[signs == 0] = 1.0
    return u * signs, v * signs
