"""Along which directions does a layer vary most?

Z is the standardised images × neurons. It never exists as a whole: every pass standardises a slice, multiplies
it by a few vectors, and forgets it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import View, choose, view
from dneuro.analysis.checks import check_number, check_seed
from dneuro.analysis.components import Rank, Wanted
from dneuro.analysis.eigen import (
    FEWEST_STEPS,
    MAX_STEPS,
    Eigenvectors,
    certify,
    columns_of,
    gram,
    gram_bytes,
    krylov,
    space_bytes,
    tsqr,
    tsqr_bytes,
)
from dneuro.analysis.selection import says_selection
from dneuro.analysis.standardisation import standardisation
from dneuro.analysis.turned import has_panels, standardisation_turned, turned
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.engine.residence import Persist, check_persist, kept_bytes, residents
from dneuro.errors import ArrayError, MemoryLimitError
from dneuro.kernels import Energy, Kernel, Moments, Scores, Standardise, Step, Triangle
from dneuro.kernels.standardise import Mode
from dneuro.quantities import MiB

OWN = ("component", "singular_value", "explained_variance_ratio", "residual", "score", "vector")
Method = Literal["auto", "tsqr", "gram", "krylov"]
TOLERANCE = 4e-3
"""Certificates that are good enough, as a share of their singular value: it is then right to some 1e-5."""
TSQR_NEURONS, SPECTRUM_NEURONS = 256, 2048
"""``method="auto"`` takes the triangle up to the first size, and up to the second where the rank is not known."""
GRAM_NEURONS = 1024
"""``method="auto"`` takes the neuron × neuron matrix up to this size; beyond, it costs more than the Krylov steps."""
ROUNDINGS = 8
"""What rounding in float32 may add to a residual, in ε ‖Z‖: sums of thousands of like terms lean to one side."""
ONE_PIECE = 256 * MiB
"""Arrays up to this size may be read in one piece, where that makes for a smaller matrix."""


@says_selection
def svd(
    x: xr.DataArray,
    *,
    rank: Rank = None,
    threshold: float | None = None,
    explained_variance: float | None = None,
    threshold_images: int | None = None,
    standardize: Mode = "image",
    method: Method = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    persist: Persist = "auto",
    client: Any = None,
) -> xr.Dataset:
    """Truncated singular value decomposition Z ≈ U S Vᵀ of images × neurons.

    Parameters
    ----------
    x : DataArray, dims (image N, features… P)
        Activations; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    rank : int or "all", optional
        Number of singular triplets K, at most min(N, P), or the whole spectrum.
    threshold : float, optional
        Instead of `rank`: all with a singular value of at least this.
    explained_variance : float, optional
        Instead of `rank`: as few as explain this share of ‖Z‖²_F.
    threshold_images : int, optional
        Number of images that `threshold` was found for: it is multiplied by √(N / threshold_images), as singular values
        grow with √N. Zhang's 200 at 6,000 images is 577 at 50,000.
    standardize : {"image", "neuron", "center", None}
        ``"image"``: each image to mean 0 and variance 1 over its neurons, as Zhang does; ``"neuron"``: each neuron to
        mean 0 and variance 1 over the images; ``"center"``: each neuron to mean 0; None: as it is. What does not vary
        gets weight 0.
    method : {"auto", "tsqr", "gram", "krylov"}
        ``"tsqr"`` reduces Z to a triangle, block by block; nothing is squared, so the smallest singular values are
        right too. ``"gram"`` diagonalises ZᵀZ (P × P, float64). ``"krylov"`` builds a block Krylov space of it and
        stops when the certificate says so. ``"auto"`` takes the first for layers of up to 256 neurons (2,048 where the
        rank is not known), the second up to 1,024 or where the rank is an eighth of what there is, else the third. An
        array in panels (all images, some neurons per chunk) is decomposed on the side of the images, with ZZᵀ in place
        of ZᵀZ. The first two take the smaller side of a small array however it is chunked.
    tolerance : float
        ``"krylov"`` stops when every certificate is below this share of its singular value. The error of a singular
        value goes with the square of that.
    seed : int
        Seed of the start block of ``"krylov"``.
    persist : {"auto", True, False}
        Whether the array is kept in the workers' memory for all passes: with ``"auto"`` if it takes with the passes no
        more than 60 % of it.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        singular_value (component K), in descending order; explained_variance_ratio (component): σ² / ‖Z‖²_F;
        score (image, component): U; vector (component, features…): V; residual (component): some singular value
        of Z lies within this distance of the one given. All float64. ``attrs`` has total_variance (‖Z‖²_F),
        reconstruction_error (‖Z − U S Vᵀ‖_F), entries (N·P, of which the root mean square error of an entry follows),
        threshold (σ from which on components are given, scaled), method, passes, converged. Signs as scikit-learn's
        ``svd_flip``: the largest entry of each column of U is positive. A σ that is nothing but rounding is 0, and so
        is its score.

    Raises
    ------
    ArrayError
        If `x` is not such an array, or `rank` does not lie in 1…min(N, P).
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read. If so many components reach `threshold`, or explain that
        share, that those do not fit.

    Notes
    -----
    **Cost**: ``"tsqr"`` and ``"gram"`` 2 passes, state 8·P² bytes, and in the driver 80·P² and 40·P²; ``"krylov"`` as a
    rule 4 passes, at most 13, state 8·P·l bytes per task, l = K + 20 … K + 50, flat in N, and in the driver 16·P·l +
    4·N·l bytes per pass: at most 7 where it has no room for those of more; one pass more for the moments under
    ``"neuron"`` and ``"center"``. On the side of the images N and P change places. Where the rank is not known
    ``"krylov"`` looks for 16, 64 and at most 256 components, each time from what it has.

    ``"tsqr"`` and ``"gram"`` compute in float64. ``"krylov"`` multiplies float32 activations in float32 and sums in
    float64, as long as that leaves the certificates alone; else it goes on in float64 and says so. The singular values
    are those of the N × K matrix Z V, so that small ones do not suffer from squaring.

    References
    ----------
    Zhang, "Visualizing neuron role with dimensionality reduction of feature space", truncated SVD: its Φ is neurons ×
    images, each column (an image) normalised; the entries of Φ's right singular vectors, by which it ranks images, are
    the `score` here. Its error ‖U S Vᵀ − Φ‖_F of pool5 at rank 8 is 7,050 of ‖Φ‖ = √(6000 · 9216) = 7,436; its limit
    for a large σ, about 200, is one of 6,000 images. Other standardisations, explained variance, signs and certificates
    are dneuro's. Musco & Musco, "Randomized
    block Krylov methods for stronger and faster approximate singular value decomposition" (2015).
    """
    executor = get_executor(client)
    wanted = Wanted(rank, threshold, explained_variance, threshold_images)
    seen = _setup(x, wanted, standardize, method, tolerance, seed, persist)
    wanted = wanted.scaled(len(seen.taking_part))
    asked = {"rank": rank, "threshold": threshold, "explained_variance": explained_variance,
             "threshold_images": threshold_images}  # fmt: skip
    options = {"standardize": standardize, "method": method, "tolerance": tolerance, "seed": seed}
    plan, way = _choose(seen, wanted, standardize, method, executor)
    kept = _kept(seen, plan, executor, persist)
    cut = {} if kept.fits(executor) else in_panels(x, **asked, **options, persist=persist, client=executor)
    out = _ways_out(way, cut)
    kept.check(
        executor, hint=f"{out}, or workers with more memory",
        driver_hint=f"{out}, or more memory for the process that asks",
    )  # fmt: skip
    events.emit("note", "svd", f"{seen.layer or 'array'}: {plan.method}, {plan.passes} passes at most")
    with residents(
        seen.xs, executor, passes=plan.passes, worker_bytes=plan.process_bytes(executor), persist=persist, step="svd"
    ) as xs:
        found = _triplets(replace(seen, xs=tuple(xs)), way, wanted, standardize, seed, tolerance, executor)
    total, images, passes = found.total, found.images, found.passes
    assert found.scores is not None and images is not None
    left, values, turn = np.linalg.svd(found.scores, full_matrices=False)
    found = replace(found, scores=None)  # they take as much as U
    rounding = max(np.finfo(float).eps * max(len(left), len(found.vectors)) * values[0], found.rounding)
    values[values <= rounding] = 0.0
    right = found.vectors @ turn.T
    residuals = certify(found.applied @ turn.T, right, values) + max(rounding, ROUNDINGS * found.rounding)
    if way.side == "image":
        left, right, images = right, left, np.arange(len(right))
        numbers = seen.taking_part
    else:
        numbers = seen.images[images]
    left[:, values == 0] = 0.0
    u, vectors = _flip(left, right)
    rest = max(total - float(values @ values), 0.0)
    result = xr.Dataset(
        {
            "singular_value": ("component", values),
            "explained_variance_ratio": ("component", values**2 / total if total else np.zeros_like(values)),
            "residual": ("component", residuals),
            "score": (("image", "component"), u),
            "vector": (("component", *seen.labels.dims), vectors.T.reshape(-1, *seen.labels.sizes)),
        },
        coords={**seen.labels.coords, "image": numbers, "component": np.arange(len(values))},
    )
    result.attrs = {
        "analysis": "svd",
        "layer": seen.layer,
        "standardize": standardize or "none",
        "parameters": {**{name: value for name, value in asked.items() if value is not None}, **options},
        "total_variance": total,
        "reconstruction_error": math.sqrt(rest),
        "method": way.method,
        "side": way.side,
        "passes": passes,
        "converged": found.converged,
        "entries": len(left) * len(right),
    }
    if wanted.threshold is not None:
        result.attrs["threshold"] = wanted.threshold
    return result


def plan_svd(
    x: xr.DataArray,
    *,
    rank: Rank = None,
    threshold: float | None = None,
    explained_variance: float | None = None,
    threshold_images: int | None = None,
    standardize: Mode = "image",
    method: Method = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    persist: Persist = "auto",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `svd`; reads no data."""
    wanted, executor = Wanted(rank, threshold, explained_variance, threshold_images), get_executor(client)
    seen = _setup(x, wanted, standardize, method, tolerance, seed, persist)
    return _kept(seen, _choose(seen, wanted, standardize, method, executor)[0], executor, persist)


def in_panels(x: xr.DataArray, *, client: Any = None, **asked: Any) -> dict[str, int]:
    """Return chunks, by dim, in which the plan of `svd` fits though that of an array as it is cut does not.

    Fewer images than neurons need the least memory on the side of the images, which is that of a large array only in
    chunks of all images.

    Parameters
    ----------
    x : DataArray
        As of `svd`, like the others.

    Returns
    -------
    dict of str to int
        As `x.chunk` takes it; empty where no such chunks are a way out. Reads no data.
    """
    executor = get_executor(client)
    with events.only(lambda event: None):  # what there is to say of the array was said
        seen = view(x, per="neuron", own=OWN)
        chunks = seen.xs[0].chunks
        if chunks is None or has_panels(seen) or len(seen.taking_part) >= seen.labels.count:
            return {}
        first, *others = (str(dim) for dim in x.dims if dim != "image")
        width = BLOCK_BYTES // max(1, int(x.nbytes) // x.sizes[first])
        if width > (stored := max(chunks[1])):
            width -= width % stored  # what is cut across is read again for each of its parts
        lengths = {"image": -1, first: max(1, min(width, -(-x.sizes[first] // 2)))}
        lengths |= {dim: -1 for dim, its in zip(others, chunks[2:], strict=True) if len(its) > 1}
        try:
            return lengths if plan_svd(x.chunk(lengths), **asked, client=executor).fits(executor) else {}
        except MemoryLimitError:  # persist=True
            return {}


def as_call(chunks: Mapping[str, int]) -> str:
    """Return how an array is cut so."""
    return f".chunk({', '.join(f'{dim}={length}' for dim, length in chunks.items())})"


def _ways_out(way: _Way, chunks: Mapping[str, int]) -> str:
    """Return what else could be asked than what does not fit."""
    ways = [f"x{as_call(chunks)}, which takes the side of the images"] if chunks else []
    return ", ".join([*ways, *(["method='krylov'"] if way.method != "krylov" else []), "a lower rank"])


@dataclass(frozen=True)
class _Way:
    """A method, on the side of the neurons (ZᵀZ, blocks of images) or of the images (ZZᵀ, panels of neurons).

    Of the Krylov method also the most steps that the process which asks has room for.
    """

    method: str
    side: Literal["neuron", "image"]
    steps: int = MAX_STEPS


@dataclass(frozen=True)
class _Side:
    """What is decomposed: Z, or Zᵀ."""

    view: View
    standardise: Standardise


def _side(seen: View, way: _Way, standardize: Mode, executor: Executor) -> tuple[_Side, int]:
    """Return Z or Zᵀ, and the number of passes that its means took."""
    if way.side == "image":
        standardise, passes = standardisation_turned(seen, standardize, executor)
        return _Side(turned(seen), standardise), passes
    standardise, passes = standardisation(seen, standardize, executor, "svd")
    return _Side(seen, standardise), passes


def _kept(seen: View, plan: Plan, executor: Executor, persist: Persist) -> Plan:
    """Return the plan with the memory of the array, if it is to be kept."""
    kept = kept_bytes(
        seen.xs, executor, passes=plan.passes, worker_bytes=plan.process_bytes(executor), persist=persist
    )
    return replace(plan, worker_bytes=plan.worker_bytes + kept)


def _triplets(
    seen: View, way: _Way, wanted: Wanted, standardize: Mode, seed: int, tolerance: float, executor: Executor
) -> Eigenvectors:
    """Return as many singular vectors as are wanted, the scores of the images on them, and all passes counted."""
    side, before = _side(seen, way, standardize, executor)
    found = _decompose(side, way, wanted, seed, tolerance, executor)
    if found.scores is not None and found.images is not None:
        return replace(found, passes=before + found.passes)
    _check_scores(side, found.vectors, wanted, executor)
    made = side.view.reduce({"scores": Scores(side.standardise, found.vectors)}, executor, "svd")["scores"]
    return replace(found, scores=made["score"], images=made["image"], passes=before + found.passes + 1)


def _check_scores(side: _Side, vectors: NDArray[np.float64], wanted: Wanted, executor: Executor) -> None:
    """Refuse scores of more components than were planned: how many, a threshold or a share has only now found out.

    Raises
    ------
    MemoryLimitError
        With the numbers.
    """
    (features, count), rows = vectors.shape, len(side.view.taking_part)
    if count <= wanted.most(min(rows, features)):
        return
    held = _result_bytes(count, rows, features) + 16 * features * count
    plan = side.view.plan(
        f"svd of {count} components", {"scores": Scores(side.standardise, vectors)}, executor, driver_bytes=held
    )
    hint = "rank=, or a higher threshold"
    plan.check(executor, hint=f"{hint}, or workers with more memory", driver_hint=hint)


def _result_bytes(rank: int, rows: int, features: int) -> int:
    """Return the bytes that the process which asks holds while it puts the result together."""
    # Scores, LAPACK's copies of them and its work, U; vectors and their image, both turned, and what certifies them.
    return 8 * rank * (4 * rows + 6 * features + 4 * rank)


def _decompose(
    side: _Side, way: _Way, wanted: Wanted, seed: int, tolerance: float, executor: Executor
) -> Eigenvectors:
    """Return as many singular vectors as are wanted."""
    view, standardise = side.view, side.standardise
    smallest = min(len(view.taking_part), view.labels.count)
    if way.method != "krylov":

        def enough(values: NDArray[np.float64], total: float) -> int:
            return wanted.enough(values[:smallest], total, smallest) or smallest

        return (gram if way.method == "gram" else tsqr)(view, standardise, executor, enough)
    rank, passes, known = wanted.first(smallest), 0, None
    while True:
        found = krylov(view, standardise, rank, seed, tolerance, executor, known, way.steps)
        passes += found.passes
        values = np.linalg.norm(np.asarray(found.scores), axis=0)
        count = wanted.enough(values, found.total, smallest)
        if count is not None:
            return replace(found.leading(count), passes=passes)
        if rank == wanted.most(smallest):
            raise ArrayError(
                f"the first {rank} singular values, down to {values[-1]:.4g}, explain "
                f"{float(values @ values) / found.total:.1%} of the variance: not enough, and no more are sought",
                hint="method='gram', workers with more memory, a higher threshold, or rank=",
            )
        rank = min(4 * rank, wanted.most(smallest))
        known = found.vectors
        del found  # its scores take as much as all that is wanted


def _choose(
    seen: View, wanted: Wanted, standardize: Mode, method: Method, executor: Executor
) -> tuple[Plan, _Way]:
    """Return the first plan that fits, of the ways to go about it; if none does, the last."""
    n, p = len(seen.taking_part), seen.labels.count
    methods = [method] if method != "auto" else _methods(wanted, min(n, p))
    plans = []
    for name in methods:
        for side in _sides(seen, name, any_size=method != "auto"):
            plan, way = _plan(seen, wanted, standardize, _Way(name, side), executor)
            if plan.fits(executor):
                return plan, way
            plans.append((plan, way))
    return plans[-1]


def _sides(seen: View, method: str, *, any_size: bool) -> list[Literal["neuron", "image"]]:
    """Return the sides from which to go about it, best first.

    Krylov steps need as much on either side, so that the chunks say which. A square matrix, or a triangle, is that of
    the smaller side: where this cuts across the chunks, one task reads the array in one piece, if it is small enough.
    The larger side's is made where it is small too, or where the user insists on the method.
    """
    n, p = len(seen.taking_part), seen.labels.count
    own: Literal["neuron", "image"] = "image" if has_panels(seen) else "neuron"
    other: Literal["neuron", "image"] = "neuron" if own == "image" else "image"
    in_chunks = seen.xs[0].chunks is not None
    if method == "krylov":
        return [own] if own == "neuron" and in_chunks else [own, other]
    here, there = (p, n) if own == "neuron" else (n, p)
    smaller = own if here <= 1.1 * there else other  # a little larger is dearer by less than one piece costs
    sides = [smaller] if smaller == own or not in_chunks or seen.xs[0].nbytes <= ONE_PIECE else []
    if smaller != own and (any_size or max(n, p) <= GRAM_NEURONS):
        sides.append(own)
    return sides


def _methods(wanted: Wanted, smallest: int) -> list[str]:
    """Return the methods for `auto`, best first."""
    if smallest <= TSQR_NEURONS or ((wanted.rank is None or wanted.rank == "all") and smallest <= SPECTRUM_NEURONS):
        return ["tsqr", "gram", "krylov"]
    if smallest <= GRAM_NEURONS or 8 * wanted.first(smallest) > smallest:
        return ["gram", "krylov"]
    return ["krylov"]


def _plan(seen: View, wanted: Wanted, standardize: Mode, way: _Way, executor: Executor) -> tuple[Plan, _Way]:
    """Return the plan of one way, and this way with as many steps as there is room for."""
    n, p = len(seen.taking_part), seen.labels.count
    rank, stand_in = wanted.most(min(n, p)), Standardise(standardize)
    view, rows, features = seen, n, p
    if way.side == "image":
        view, rows, features = turned(seen), p, n
        stand_in = Standardise("center")
    columns = columns_of(rank, rows, features)
    before = int(way.side == "image" and standardize == "image")
    if way.side == "neuron" and standardize in ("neuron", "center"):
        before = seen.plan("svd", {"moments": Moments()}, executor).passes
    kernel: Kernel
    if way.method == "krylov":
        single = seen.xs[0].dtype.itemsize <= 4
        kernel, steps = Step(stand_in, np.broadcast_to(0.0, (features, columns)), single), MAX_STEPS
        looks = 1 + max(0, math.ceil(math.log(rank / wanted.first(min(n, p)), 4)))
        held = [space_bytes(count, rows, features, columns, rank, 4 if single else 8) for count in range(steps + 1)]
        driver = [max(size, _result_bytes(rank, rows, features)) for size in held]
    else:
        kernel = Energy(stand_in) if way.method == "gram" else Triangle(stand_in)
        size = gram_bytes(features) if way.method == "gram" else tsqr_bytes(rows, features)
        steps, looks = 1, 1
        driver = [size + 16 * rank * features + _result_bytes(rank, rows, features)] * 2
    plan = view.plan(
        "svd",
        {"kernel": kernel},
        executor,
        passes=looks * (steps + 1) + before,
        result_bytes=8 * rank * (n + p + 3),
        driver_bytes=driver[steps],
        method=way.method if way.side == "neuron" else f"{way.method} on the side of the images",
    )
    besides = plan.driver_bytes - driver[steps]  # what tasks take there
    while way.method == "krylov" and steps > FEWEST_STEPS and plan.asking_bytes(executor) > executor.driver_memory:
        steps -= 1
        passes = looks * (steps + 1) + before
        plan = replace(
            plan, passes=passes, read_bytes=plan.read_bytes // plan.passes * passes,
            driver_bytes=besides + driver[steps],
        )  # fmt: skip
    way = replace(way, steps=steps)
    if way.side == "image" and seen.rows is not None:  # chunks are read whole, whoever takes part
        one = seen.plan("svd", {"scores": Scores(Standardise(None), np.broadcast_to(0.0, (p, 1)))}, executor)
        plan = replace(plan, read_bytes=plan.passes * one.read_bytes // max(1, one.passes))
    if way.method == "krylov":
        return plan, way
    last = view.plan("svd", {"scores": Scores(stand_in, np.broadcast_to(0.0, (features, rank)))}, executor)
    return plan.at_least(last), way


def _setup(
    x: xr.DataArray, wanted: Wanted, standardize: Mode, method: Method, tolerance: float, seed: int, persist: Persist
) -> View:
    seen = view(x, per="neuron", own=OWN)
    wanted.check(len(seen.taking_part), seen.labels.count)
    choose("standardize", standardize, ("image", "neuron", "center", None))
    choose("method", method, ("auto", "tsqr", "gram", "krylov"))
    check_number("tolerance", tolerance, above=0, below=1, hint=f"tolerance={TOLERANCE}")
    check_seed(seed)
    check_persist(persist)
    return seen


def _flip(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return U and V, turned in place so that the largest entry of each column of U is positive."""
    signs = np.array([-1.0 if column[np.argmax(np.abs(column))] < 0 else 1.0 for column in u.T])
    u *= signs
    v *= signs
    return u, v
