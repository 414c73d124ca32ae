"""Which images look alike to a layer: k-means over images × features, by dask-ml or by passes over blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Per, Pool, View, choose, is_count, view
from dneuro.analysis.checks import check_count, check_number, check_seed
from dneuro.analysis.images import class_labels, label_numbers
from dneuro.analysis.selection import says_selection
from dneuro.analysis.standardisation import standardisation
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.engine.device import chosen, process_bytes
from dneuro.engine.executors import Executor, Sizes, get_executor
from dneuro.engine.plan import Plan
from dneuro.engine.rechunked import by_tasks
from dneuro.engine.residence import Persist, check_persist, in_chunks, kept_bytes, residents, say, share_of
from dneuro.errors import ArrayError
from dneuro.kernels import Kernel, Moments, Standardise
from dneuro.kernels.nearest import Gather, Lloyd, Nearest
from dneuro.kernels.standardise import Standardised
from dneuro.quantities import MiB

Scale = Literal["image", "neuron"] | None
TOO_LARGE = "per='channel', smaller chunks along image, fewer clusters, or workers with more memory"
MUCH_TO_ANSWER = "per='channel', fewer clusters, or more memory for the process that asks"
PER_CLUSTER, LEAST = 50, 500
"""Images per cluster, and in all, among which the first centres are chosen."""
CHUNK_BYTES = 8 * MiB
"""Wished size of a chunk of Z."""
STILL = float(np.finfo(np.float32).tiny)
"""Centres that move by less (squared) do not move, where nothing else says so."""
IMPORTS = 130 * MiB
"""What a worker needs more once dask-ml, pandas and scikit-learn are imported."""
READS = 2
"""Times that dask-ml reads Z besides its iterations: to check it, and to say which cluster is nearest."""
DASK_ML, PASSES = "dask-ml", "passes over blocks, in float64"


@says_selection
def kmeans(
    x: xr.DataArray,
    *,
    count: int,
    per: Per = "channel",
    pool: Pool = "max",
    standardize: Scale = None,
    max_iter: int = 100,
    tol: float = 1e-4,
    k: int = 10,
    seed: int = 0,
    persist: Persist = "auto",
    client: Any = None,
) -> xr.Dataset:
    """Clusters of images by k-means (Lloyd's iterations, of `dask_ml.cluster.KMeans` where its chunks fit).

    Parameters
    ----------
    x : DataArray, dims (image N, channel C[, y, x])
        Activations; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    count : int
        Number of clusters K, at most N.
    per, pool : str
        The features of an image: its channels (all positions made one number by `pool`), or all its neurons.
    standardize : {"image", "neuron", None}
        Each image to mean 0 and variance 1 over its features, or each feature over the images.
    max_iter : int
        Most iterations.
    tol : float
        Iterations stop when the centres move by less than this share of the mean variance of a feature (squared);
        with 0, and where nothing varies, when they stay.
    k : int
        Images listed of each cluster, the nearest to its centre first.
    seed : int
        Seed of the first centres.
    persist : {"auto", True, False}
        Whether what iterations read is kept in the workers' memory: images × features, or, where iterations are passes
        over blocks, the array; with ``"auto"`` if it takes with the iterations no more than 60 % of it, or is small.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        Of each image that takes part: cluster (image) int64, 0 is the largest; distance (image) float64, from the
        centre. Of each cluster (dim group): size (group) int64, centre (group, features…) float64, member (group, rank)
        int64: images, as the array's ``image`` coordinate numbers them, −1 = none; where `x` has a coordinate
        ``label``, class_count (group, class) int64. ``attrs`` has inertia (sum of the squared distances), iterations,
        converged, method.

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
    The first centres are chosen by k-means++ among a seeded sample of 50·K images (at least 500), so that they depend
    on the seed and the images, not on the chunking. Where fewer images of the sample differ, there are fewer clusters,
    and a warning says so. A cluster that loses all its images has size 0.

    **Cost**: one pass for the sample (``"neuron"``: two), one at the end, and between them one pass if images ×
    features are kept, else one to check, one per iteration, and one more at most; then memory is by chunk, flat in N
    but for 40 bytes per image. A note says which. Iterations in float32 (float64 for such an array), the last
    assignment and its distances in float64. dask-ml takes whole rows of all images of a chunk at once; where they do
    not fit into a worker, and on a device (`dneuro.on_device`), iterations are passes of dneuro's own in float64, each
    of which reads the array, or what is kept of it: the same clusters, but for rounding.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[0.0], [9.0], [9.5], [9.0]], "f4"), dims=("image", "channel"))
    >>> dn.kmeans(x, count=2)["cluster"].values.tolist()
    [1, 0, 0, 0]
    """
    executor = get_executor(client)
    parameters: dict[str, Any] = {"count": count, "per": per, "pool": pool, "standardize": standardize,
                                  "max_iter": max_iter, "tol": tol, "k": k, "seed": seed}  # fmt: skip
    plan, seen, keep = _planned(x, **parameters, persist=persist, executor=executor)
    plan.check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    by_passes = plan.method == PASSES
    with residents(
        seen.xs if by_passes else (), executor, passes=plan.passes, worker_bytes=keep.worker_bytes,
        persist=keep.persist, step="kmeans",
    ) as xs:  # fmt: skip
        read = replace(seen, xs=tuple(xs) or seen.xs)
        standardise, _ = standardisation(read, standardize, executor, "kmeans")
        first, spread = _first_centres(read, standardise, count, seed, executor)
        asked = max_iter, tol * spread or STILL, executor
        if by_passes:
            centres, iterations = _iterate_by_passes(read, standardise, first, *asked)
        else:
            centres, iterations = _iterate(read, standardise, first, *asked, held=keep.persist is True)
        found = read.reduce({"nearest": Nearest(standardise, centres)}, executor, "kmeans")["nearest"]
        del read, xs
    size = np.bincount(found["nearest"], minlength=len(centres))
    ranked = np.argsort(-size, kind="stable")
    place = np.argsort(ranked, kind="stable")
    cluster, distance = np.full(len(seen.images), -1), np.full(len(seen.images), np.nan)
    cluster[found["image"]] = place[found["nearest"]]
    distance[found["image"]] = np.sqrt(found["squared"])
    result = xr.Dataset(
        {
            "cluster": ("image", cluster),
            "distance": ("image", distance),
            "size": ("group", size[ranked]),
            "centre": (("group", *seen.labels.dims), centres[ranked].reshape(-1, *seen.labels.sizes)),
            "member": (("group", "rank"), _members(cluster, distance, len(centres), k, seen)),
            **class_counts(x, cluster, len(centres)),
        },
        coords={**seen.labels.coords, "image": seen.images},
    )
    result = result.isel(image=np.flatnonzero(cluster >= 0))
    if "label" in x.coords and "class_count" in result:
        result = result.assign_coords({"class": class_labels(x)[1]})
    result.attrs = {
        "analysis": "kmeans",
        "layer": seen.layer,
        "standardize": standardize or "none",
        "parameters": parameters,
        "inertia": float(found["squared"].sum()),
        "method": plan.method,
        "iterations": iterations,
        "converged": iterations < max_iter,
    }
    return result


def plan_kmeans(
    x: xr.DataArray,
    *,
    count: int,
    per: Per = "channel",
    pool: Pool = "max",
    standardize: Scale = None,
    max_iter: int = 100,
    tol: float = 1e-4,
    k: int = 10,
    seed: int = 0,
    persist: Persist = "auto",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `kmeans`; reads no data."""
    return _planned(x, count, per, pool, standardize, max_iter, tol, k, seed, persist, get_executor(client))[0]


@dataclass(frozen=True)
class _Keep:
    """What `residents` is told of that which iterations read; of dask-ml's, `persist` says whether it is kept."""

    worker_bytes: int
    persist: Persist


def _planned(
    x: xr.DataArray, count: int, per: Per, pool: Pool, standardize: Scale, max_iter: int, tol: float, k: int, seed: int,
    persist: Persist, executor: Executor,
) -> tuple[Plan, View, _Keep]:  # fmt: skip
    """Check what was asked; return the plan, the view, and what is kept."""
    choose("standardize", standardize, ("image", "neuron", None))
    for name, number in (("max_iter", max_iter), ("k", k)):
        check_count(name, number, hint=f"{name}=100")
    check_number("tol", tol, least=0, hint="tol=1e-4")
    check_seed(seed)
    check_persist(persist)
    seen = view(x, per=per, pool=pool, own=_own(x))
    check_classes(x)
    n, p = len(seen.taking_part), seen.labels.count
    if not is_count(count) or count > n:
        raise ArrayError(f"count={count!r} of {n} images", hint=f"a whole number from 1 to {n}")
    size = 24 * n + 8 * count * (p + k + 1)
    stand_in = Standardise(None)
    centres = np.broadcast_to(0.0, (count, p))
    kernels: tuple[dict[str, Kernel], ...] = (
        _survey(stand_in, np.broadcast_to(np.int64(0), _sampled(count, n))),
        {"nearest": Nearest(stand_in, centres)},
    )
    last = seen.plan("kmeans", kernels[1], executor)

    def planned(passes: int, method: str) -> Plan:
        return seen.plan(
            "kmeans", kernels[0], executor, passes=passes + (standardize == "neuron"), result_bytes=size,
            driver_bytes=2 * size + 32 * n + 24 * p * _sampled(count, n), method=method,
        ).at_least(last)  # fmt: skip

    if chosen() is None:
        lloyd = process_bytes(executor) + IMPORTS + executor.slots_per_process * _lloyd_bytes(seen, count)
        plan = planned(max_iter + READS + 2, DASK_ML)
        streamed = replace(plan, worker_bytes=max(plan.worker_bytes + IMPORTS, lloyd))
        if streamed.fits(executor):
            besides = replace(plan, worker_bytes=lloyd).process_bytes(executor)
            kept = _kept(seen, executor, persist, max_iter, besides)
            if kept:
                held = replace(planned(3, DASK_ML), worker_bytes=max(streamed.worker_bytes, lloyd + kept))
                if persist is True or held.fits(executor):
                    return held, seen, _Keep(besides, True)
            return streamed, seen, _Keep(besides, False)
    between = seen.plan("kmeans", {"lloyd": Lloyd(stand_in, centres)}, executor)
    plan = planned(max_iter + 2, PASSES).at_least(between)
    besides = plan.process_bytes(executor)
    kept = kept_bytes(seen.xs, executor, passes=plan.passes, worker_bytes=besides, persist=persist)
    return replace(plan, worker_bytes=plan.worker_bytes + kept), seen, _Keep(besides, persist)


def _own(x: object) -> tuple[str, ...]:
    """Return the names that the result has of its own."""
    classes = ("class", "class_count") if "label" in getattr(x, "coords", ()) else ()
    return ("group", "rank", "cluster", "distance", "size", "centre", "member", *classes)


def _sampled(count: int, images: int) -> int:
    return min(images, max(LEAST, PER_CLUSTER * count))


def _survey(standardise: Standardise, chosen: NDArray[np.int64]) -> dict[str, Kernel]:
    return {"sample": Gather(standardise, chosen), "moments": Standardised(Moments(), standardise)}


def _first_centres(
    seen: View, standardise: Standardise, count: int, seed: int, executor: Executor
) -> tuple[NDArray[np.float64], float]:
    """Return centres among the images of a sample, and the mean variance of a feature."""
    from sklearn.cluster import kmeans_plusplus  # not at the top: workers load this file too, and it is large

    rows = np.arange(len(seen.images)) if seen.rows is None else np.flatnonzero(seen.rows)
    chosen = np.random.default_rng(seed).choice(rows, _sampled(count, len(rows)), replace=False)
    found = seen.reduce(_survey(standardise, np.sort(chosen)), executor, "kmeans")
    sample = found["sample"]["z"]
    different = len(np.unique(sample, axis=0))
    if different < count:
        events.emit("warning", "kmeans", f"only {different} of {len(sample)} sampled images differ: as many clusters")
    centres, _ = kmeans_plusplus(sample, min(count, different), random_state=seed)
    return centres, float(found["moments"]["variance"].mean())


def _iterate(
    seen: View,
    standardise: Standardise,
    centres: NDArray[np.float64],
    max_iter: int,
    tol: float,
    executor: Executor,
    *,
    held: bool,
) -> tuple[NDArray[np.float64], int]:
    """Return the centres that dask-ml arrives at, and after how many iterations."""
    from dask_ml.cluster import KMeans

    table = _table(seen, standardise)
    say(table, executor, passes=max_iter + READS, step="kmeans", persisted=held)
    model = KMeans(len(centres), init=centres.astype(table.dtype), max_iter=max_iter, tol=tol, random_state=0)
    with executor.computing():
        model.fit(table.data.persist() if held else table.data)
    return np.asarray(model.cluster_centers_, dtype=np.float64), int(model.n_iter_)


def _iterate_by_passes(
    seen: View, standardise: Standardise, centres: NDArray[np.float64], max_iter: int, tol: float, executor: Executor
) -> tuple[NDArray[np.float64], int]:
    """Return what `_iterate` does, by passes of our own in float64: dask-ml takes large chunks, and NumPy's alone."""
    why = "" if chosen() is not None else f": whole rows of {_rows(seen)} images at once, as dask-ml takes them, are "\
        "more than a worker has room for"  # fmt: skip
    events.emit("note", "kmeans", f"{seen.layer or 'array'}: {len(seen.taking_part)} images × {seen.labels.count} "
                f"features, in blocks{why}")  # fmt: skip
    for number in range(max_iter):
        found = seen.reduce({"lloyd": Lloyd(standardise, centres)}, executor, "kmeans")["lloyd"]
        new = found["sum"] / np.maximum(found["count"], 1)[:, None]
        if float(np.sum((centres - new) ** 2)) < tol:
            return centres, number + 1
        centres = new
    return centres, max_iter


def _table(seen: View, standardise: Standardise) -> xr.DataArray:
    """Return Z as images × features in chunks of dask, whole rows in each; in float32, or float64 if `x` is."""
    x = seen.xs[0]
    data = x.data if x.chunks is None else by_tasks(x.data)
    if x.chunks is None:
        per_image = max(1, x.nbytes // len(x))
        data = in_chunks(x.data, (max(1, BLOCK_BYTES // per_image), *x.shape[1:]))
    if seen.rows is not None:
        data = data[np.flatnonzero(seen.rows)]
    data = data.rechunk(dict.fromkeys(range(1, data.ndim), -1), method="tasks")
    dtype = np.float64 if x.dtype.itemsize > 4 else np.float32
    table = data.map_blocks(
        _prepared, seen.prepare.how, standardise, dtype, dtype=dtype,
        drop_axis=list(range(2, data.ndim)), chunks=(data.chunks[0], (seen.labels.count,)),
    )  # fmt: skip
    table = table.rechunk((_rows(seen), seen.labels.count), method="tasks")  # threads have no part in a shuffle
    return xr.DataArray(table, dims=("image", "feature"))


def _item(seen: View) -> int:
    """Return the bytes of one number of Z."""
    return 8 if seen.xs[0].dtype.itemsize > 4 else 4


def _rows(seen: View) -> int:
    """Return the images of one of dask-ml's chunks: small ones cost more to look after than to compute."""
    stored = max(seen.xs[0].chunks[0]) if seen.xs[0].chunks is not None else 1
    return min(len(seen.taking_part), max(stored, CHUNK_BYTES // (_item(seen) * seen.labels.count)))


def _kept(seen: View, executor: Sizes, persist: Persist, max_iter: int, besides: int) -> int:
    """Return the bytes of each process that Z takes if it is kept for the iterations, 0 if it is not.

    With ``"auto"`` also where it is small: if a quarter of what one worker may use has room for it.
    """
    import dask.array as da  # not at the top: workers load this package too, and it brings SciPy

    shape = len(seen.taking_part), seen.labels.count
    chunks = _rows(seen), seen.labels.count
    table = xr.DataArray(da.empty(shape, dtype=f"f{_item(seen)}", chunks=chunks), dims=("image", "feature"))
    if persist == "auto" and 4 * table.nbytes <= executor.memory:
        return share_of(table, executor)
    return kept_bytes([table], executor, passes=max_iter + READS, worker_bytes=besides, persist=persist)


def _prepared(block: NDArray[Any], how: Pool | None, standardise: Standardise, dtype: Any) -> NDArray[Any]:
    from dneuro.kernels.base import flat, pool

    table = pool(block, how)[0] if how is not None else flat(block)
    if standardise.mode is None:
        return np.asarray(table, dtype=dtype)
    return np.asarray(standardise.apply(table), dtype=dtype)


def _lloyd_bytes(seen: View, count: int) -> int:
    """Return the bytes of one task of dask-ml: a chunk, what is made of it, and its distances from the centres."""
    x, p, item = seen.xs[0], seen.labels.count, _item(seen)
    per_image = x.nbytes // len(x)
    stored = max(x.chunks[0]) if x.chunks is not None else max(1, BLOCK_BYTES // max(1, per_image))
    made = stored * (2 * per_image + p * (8 + item))
    return int(made + _rows(seen) * (4 * p * item + count * 16 + 32) + 4 * count * p * item)


def _members(
    cluster: NDArray[np.int64], distance: NDArray[np.float64], groups: int, k: int, seen: View
) -> NDArray[np.int64]:
    """Return the images nearest to each centre; of equal distances the image that comes first is first."""
    member = np.full((groups, k), -1)
    for group in range(groups):
        own = np.flatnonzero(cluster == group)
        nearest = own[np.argsort(distance[own], kind="stable")][:k]
        member[group, : len(nearest)] = seen.images[nearest]
    return member


def check_classes(x: xr.DataArray) -> None:
    """Refuse classes that cannot be counted, if the array has some."""
    if "label" in x.coords and int(label_numbers(x).max()) >= 0:
        class_labels(x)


def class_counts(x: xr.DataArray, cluster: NDArray[np.int64], groups: int) -> dict[str, Any]:
    """Return how many images of each cluster belong to each class; `cluster` (images,) is −1 for those in none."""
    if "label" not in x.coords or int(label_numbers(x).max()) < 0:
        return {}
    labels, names = class_labels(x)
    counts = (cluster >= 0) & (labels >= 0)
    bins = np.bincount(cluster[counts] * len(names) + labels[counts], minlength=groups * len(names))
    return {"class_count": (("group", "class"), bins.reshape(groups, len(names)))}
