"""Do random directions vary less than neurons do, and which images lie at their ends?"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import View, choose, of_ends, view
from dneuro.analysis.checks import check_count, check_number, check_seed
from dneuro.analysis.images import label_numbers
from dneuro.analysis.selection import says_selection
from dneuro.analysis.standardisation import standardisation
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError
from dneuro.kernels import Kernel, Moments, Scores, Standardise
from dneuro.kernels.standardise import Mode, Standardised

Entries = Literal["gaussian", "uniform"]
KEPT = 0.9
"""Quantile of the variances from which on directions are kept, where nothing is said."""
TOO_LARGE = "fewer directions, a smaller chunk along image, or workers with more memory"
MUCH_TO_ANSWER = "fewer directions, or more memory for the process that asks"

OWN = ("direction", "rank", "score", "mean", "variance", "kept", "vector", "neuron_variance")
"""Dims and variables of the result, besides those of both ends."""


@says_selection
def random_projections(
    x: xr.DataArray,
    *,
    directions: int = 100,
    entries: Entries = "gaussian",
    standardize: Mode = "image",
    cutoff: float | None = None,
    quantile: float | None = None,
    k: int = 100,
    seed: int = 0,
    client: Any = None,
) -> xr.Dataset:
    """Scores of the images on random directions, with variances beside those of neurons, and the images at the ends.

    Parameters
    ----------
    x : DataArray, dims (image N, features… P)
        Activations; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    directions : int
        Number of directions D.
    entries : {"gaussian", "uniform"}
        ``"gaussian"``: unit vectors, uniform on the sphere; ``"uniform"``: entries uniform on [0, 1), not normalised,
        which is what the cut-off of Zhang's paper (850) fits.
    standardize : {"image", "neuron", "center", None}
        As in `svd`. Under ``"neuron"`` every neuron that varies has variance 1.
    cutoff : float, optional
        A direction is kept if the variance of its scores is at least this.
    quantile : float, optional
        The same, the cut-off being this quantile of the variances of all directions; 0.9 if neither is given.
    k : int
        Images at either end of each direction; with fewer images than `k`, all of them.
    seed : int
        Seed of the directions. Direction i depends on the seed, on i and on P alone.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        score (image, direction), mean and variance (direction), vector (direction, features…), neuron_variance
        (features…: of the standardised activations), all float64; kept (direction) bool; top_value, bottom_value,
        top_image, bottom_image and, where `x` has a coordinate ``label``, top_label, bottom_label (direction, rank).
        ``attrs["cutoff"]`` is the variance from which on directions are kept. All directions are there: those that are
        not kept are the baseline.

    Raises
    ------
    ArrayError
        If `x` is not such an array, or a parameter cannot be.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    The expected variance along a unit direction is the mean of the neurons' variances. **Cost**: one pass
    (``"neuron"``: two); state 8·N·(D + 1) + 48·P bytes, 8·P·D for the directions; exact to rounding, products in
    float64.

    Source: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", random projections: images
    highest on ⟨φ(x), v⟩, of directions whose scores have a variance of at least 850. How the paper draws v is inferred
    from that number: with entries uniform on [0, 1) and each image standardised over its P neurons the variance is on
    average (P − ‖z̄‖²) / 12, z̄ the mean of the images: at most 768 for the 9,216 of pool5. Unit vectors and the
    quantile are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.eye(6, dtype="f4"), dims=("image", "channel"))
    >>> found = dn.random_projections(x, directions=20, standardize="center", seed=1)
    >>> int(found["kept"].sum()), found["score"].shape
    (2, (6, 20))
    """
    executor = get_executor(client)
    parameters: dict[str, Any] = {"directions": directions, "entries": entries, "standardize": standardize,
                                  "cutoff": cutoff, "quantile": quantile, "k": k, "seed": seed}  # fmt: skip
    plan = plan_random_projections(x, **parameters, client=executor)
    plan.check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    seen = view(x, per="neuron", own=(*OWN, *of_ends(x)))
    # The mean over the images is the same for a score and for what it is made of: no pass is spent on it.
    mode = None if standardize == "center" else standardize
    standardise, _ = standardisation(seen, mode, executor, "random_projections")
    vectors = _draw(directions, seen.labels.count, entries, seed)
    found = seen.reduce(_kernels(standardise, vectors.T), executor, "random_projections")
    score = found["scores"]["score"]
    mean = score.mean(axis=0)
    if standardize == "center":
        score, mean = score - mean, np.zeros(directions)
    variance = score.var(axis=0)
    limit = float(np.quantile(variance, KEPT if quantile is None else quantile)) if cutoff is None else float(cutoff)
    images = seen.images[found["scores"]["image"]]
    result = xr.Dataset(
        {
            "score": (("image", "direction"), score),
            "mean": ("direction", mean),
            "variance": ("direction", variance),
            "kept": ("direction", variance >= limit),
            "vector": (("direction", *seen.labels.dims), vectors.reshape(directions, *seen.labels.sizes)),
            "neuron_variance": (seen.labels.dims, found["neurons"]["variance"].reshape(seen.labels.sizes)),
            **_ends(score, found["scores"]["image"], seen, min(k, len(score)), x),
        },
        coords={**seen.labels.coords, "image": images},
    )
    result.attrs = {"analysis": "random_projections", "layer": seen.layer, "standardize": standardize or "none",
                    "images": len(score), "parameters": parameters, "cutoff": limit}  # fmt: skip
    return result


def plan_random_projections(
    x: xr.DataArray,
    *,
    directions: int = 100,
    entries: Entries = "gaussian",
    standardize: Mode = "image",
    cutoff: float | None = None,
    quantile: float | None = None,
    k: int = 100,
    seed: int = 0,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `random_projections`; reads no data."""
    for name, number in (("directions", directions), ("k", k)):
        check_count(name, number, hint=f"{name}=100")
    check_seed(seed)
    choose("entries", entries, ("gaussian", "uniform"))
    choose("standardize", standardize, ("image", "neuron", "center", None))
    _check_limits(cutoff, quantile)
    executor = get_executor(client)
    seen = view(x, per="neuron", own=(*OWN, *of_ends(x)))
    if "label" in x.coords:
        label_numbers(x)
    n, p = len(seen.taking_part), seen.labels.count
    ends = (48 if "label" in x.coords else 32) * directions * min(k, n)
    size = 8 * directions * (n + p + 2) + directions + 8 * (p + n) + ends
    before = seen.plan("random_projections", {"moments": Moments()}, executor).passes if standardize == "neuron" else 0
    return seen.plan(
        "random_projections",
        _kernels(Standardise(None), np.broadcast_to(0.0, (p, directions))),
        executor,
        passes=1 + before,
        result_bytes=size,
        driver_bytes=2 * size + 24 * directions * n,
    )


def _check_limits(cutoff: float | None, quantile: float | None) -> None:
    if cutoff is not None and quantile is not None:
        raise ArrayError(
            f"cutoff={cutoff!r} and quantile={quantile!r}: only one can say what is kept", hint="leave one out"
        )
    if cutoff is not None:
        check_number("cutoff", cutoff, least=0, hint="cutoff=850")
    if quantile is not None:
        check_number("quantile", quantile, least=0, most=1, hint="quantile=0.9")


def _kernels(standardise: Standardise, vectors: NDArray[np.float64]) -> dict[str, Kernel]:
    return {"scores": Scores(standardise, vectors), "neurons": Standardised(Moments(), standardise)}


def _draw(directions: int, neurons: int, entries: Entries, seed: int) -> NDArray[np.float64]:
    """Return the directions, one a row; the first ones are the same however many there are."""
    rng = np.random.default_rng(seed)
    if entries == "uniform":
        return rng.random((directions, neurons))
    drawn = rng.standard_normal((directions, neurons))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def _ends(
    score: NDArray[np.float64], rows: NDArray[np.int64], seen: View, k: int, x: xr.DataArray
) -> dict[str, tuple[tuple[str, str], NDArray[Any]]]:
    """Return the images at either end of every direction; of equal scores the image that comes first is first."""
    found: dict[str, tuple[tuple[str, str], NDArray[Any]]] = {}
    dims = ("direction", "rank")
    for end, sign in (("top", -1.0), ("bottom", 1.0)):
        order = np.argsort(sign * score, axis=0, kind="stable")[:k].T
        found[f"{end}_value"] = (dims, np.take_along_axis(score.T, order, axis=1))
        found[f"{end}_image"] = (dims, seen.images[rows[order]])
        if "label" in x.coords:
            found[f"{end}_label"] = (dims, label_numbers(x)[rows[order]])
    return found
