"""Which classes do a neuron's top images belong to?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Per, Pool, View, check_labelled, told_apart
from dneuro.analysis.images import class_labels, taking_part
from dneuro.analysis.quantiles import beyond, passes, select
from dneuro.analysis.selection import says_selection
from dneuro.analysis.top_images import MUCH_TO_ANSWER, TOO_LARGE, plan_top_images, top_images, view_for_order
from dneuro.engine.executors import Executor, Sizes, get_executor
from dneuro.engine.plan import Plan, in_driver
from dneuro.engine.residence import Persist, check_persist, kept_bytes, residents
from dneuro.errors import ArrayError
from dneuro.kernels.quantile import VALUES, CountAbove, Digits

OWN = ("count", "threshold", "class_size")
TOP = 100
"""Top images counted where nothing is said."""
BY_TOP, BY_DIGITS = "by top images", "digit by digit"
LONGEST = 1024
"""A quantile with more images beyond it is found digit by digit, not by keeping these images."""


@says_selection
def cooccurrence(
    x: xr.DataArray,
    *,
    k: int | None = None,
    quantile: float | None = None,
    per: Per = "channel",
    pool: Pool = "max",
    persist: Persist = "auto",
    client: Any = None,
) -> xr.Dataset:
    """Co-occurrence frequencies (CoF): of the images that a neuron answers to most, how many belong to each class.

    Parameters
    ----------
    x : DataArray, dims (image N, channel C[, y, x]), coordinate label (image,)
        Activations; ``label`` holds class indices, −1 where unknown. ``attrs["class_names"]`` names them.
    k : int, optional
        Top images counted; 100 if no quantile is given either.
    quantile : float, optional
        Instead of the top `k`, every image above this quantile of the neuron's own activations is counted: the
        ⌈q·N⌉-th smallest value, as ``numpy.quantile(…, method="inverted_cdf")``. Images equal to it are not above it.
    per, pool : str
        As in `top_images`.
    persist : {"auto", True, False}
        Whether an array that has to be read several times, digit by digit, is read once and kept in the workers'
        memory; with ``"auto"`` if it takes with the passes no more than 60 % of it.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        count (features…, class) int64. A row sums to `k`, or to the images above the quantile, less the images that do
        not count: those whose activation is not above 0 and those without a class. Under `quantile` also threshold
        (features…) float32. Coordinate class_size (class) int64: images of each class.

    Raises
    ------
    ArrayError
        If `x` is not such an array or has no labels; if `k` and `quantile` are both given, or no image can lie above
        the quantile.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: that of `top_images`. Under `quantile`, with k = the number of images beyond it, plus one, if that is at
    most 1,024 and fits; else digit by digit: 5 passes (float16: 3), state 1,024 bytes, then 8 bytes per class, per
    feature, whatever the number of images; a kept array is read once. Exact either way, the same bit for bit under any
    chunking.

    Source: Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks", co-occurrence frequency: of the top
    100 training images of a neuron (a filter), how many belong to each class. That its activation on an image is the
    maximum over positions, and that only activations above 0 count (otherwise a dead filter collects ties), are
    dneuro's. With fewer images per class than are counted no row can be of one class alone; `selectivity` says how flat
    it is at least.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[1.0], [4.0], [2.0]], "f4"), dims=("image", "channel"),
    ...                  coords={"label": ("image", [0, 1, 1])})
    >>> dn.cooccurrence(x, k=2)["count"].values.tolist()
    [[0, 2]]
    >>> dn.cooccurrence(x, quantile=0.5)["threshold"].values.tolist()
    [2.0]
    """
    check_labelled(x)
    x, k = told_apart(x, OWN), top_k(k, quantile)
    labels, names = class_labels(x)
    executor = get_executor(client)
    plan = plan_cooccurrence(x, k=k, quantile=quantile, per=per, pool=pool, persist=persist, client=executor)
    plan.check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    if quantile is None:
        assert k is not None
        top = top_images(x, k=k, per=per, pool=pool, client=executor)
        result = count_classes(top, _of_those(labels, x), names, k=k)
        layer = top.attrs["layer"]
    else:
        ask = _above(x, quantile, per, pool)
        events.emit("note", "cooccurrence", f"{ask.seen.layer or 'array'}: the quantile {plan.method}")
        if plan.method == BY_TOP:
            result = _count_top(ask, _of_those(labels, x), names, executor)
        else:
            streamed = _plan_digits(ask, names, executor)
            with residents(
                ask.seen.xs, executor, passes=streamed.passes, worker_bytes=streamed.process_bytes(executor),
                persist=persist, step="cooccurrence",
            ) as xs:  # fmt: skip
                result = _count_digits(replace(ask.seen, xs=tuple(xs)), ask, _of_those(labels, x), names, executor)
        layer = ask.seen.layer
    result.attrs = {"analysis": "cooccurrence", "layer": layer,
                    "parameters": {"k": k, "quantile": quantile, "per": per, "pool": pool}}  # fmt: skip
    return result


def top_k(k: int | None, quantile: float | None) -> int | None:
    """Return how many top images count; None where a quantile says it."""
    if quantile is None:
        return TOP if k is None else k
    if k is not None:
        raise ArrayError(f"k={k!r} and quantile={quantile!r}: only one can say what counts", hint="leave one out")
    return None


def count_classes(top: xr.Dataset, labels: NDArray[np.int64], names: list[str], *, k: int) -> xr.Dataset:
    """Return the counts per class of a dataset with top_value and top_label (features…, rank).

    Parameters
    ----------
    top : Dataset
        As `top_images` gives it; its first `k` ranks are counted, or all if there were fewer images.
    labels : array (images,) of int64
        Class of every image that takes part (−1 unknown), for the size of each class.
    names : list of str
        Names of the classes.
    k : int
        Ranks that count.
    """
    if top.sizes["rank"] < min(k, top.attrs.get("images", 0)):
        raise ArrayError(f"these top images hold {top.sizes['rank']} ranks, k={k} needs more")
    first = top.isel(rank=slice(k))
    sizes = {str(dim): size for dim, size in first["top_label"].sizes.items() if dim != "rank"}
    classes = first["top_label"].transpose(..., "rank").values.reshape(-1, first.sizes["rank"])
    values = first["top_value"].transpose(..., "rank").values.reshape(classes.shape)
    counts = (values > 0) & (classes >= 0)
    neuron = np.broadcast_to(np.arange(len(classes))[:, None], classes.shape)
    bins = np.bincount(neuron[counts] * len(names) + classes[counts], minlength=len(classes) * len(names))
    coords = {dim: first.coords[dim] for dim in sizes if dim in first.coords}
    return _labelled(bins.reshape(*sizes.values(), len(names)), tuple(sizes), coords, labels, names, k)


def plan_cooccurrence(
    x: xr.DataArray,
    *,
    k: int | None = None,
    quantile: float | None = None,
    per: Per = "channel",
    pool: Pool = "max",
    persist: Persist = "auto",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `cooccurrence`; reads no data."""
    check_labelled(x)
    check_persist(persist)
    x, k, executor = told_apart(x, OWN), top_k(k, quantile), get_executor(client)
    if quantile is None:
        assert k is not None
        plan = plan_top_images(x, k=k, per=per, pool=pool, client=executor)
        return _counting(plan, view_for_order(x, per, pool), k, executor)
    ask = _above(x, quantile, per, pool)
    if ask.images < LONGEST:
        plan = plan_top_images(x, k=ask.images + 1, per=per, pool=pool, client=executor)
        plan = replace(_counting(plan, ask.seen, ask.images + 1, executor), method=BY_TOP)
        if plan.fits(executor):
            return plan
    plan = _plan_digits(ask, class_labels(x)[1], executor)
    kept = kept_bytes(
        ask.seen.xs, executor, passes=plan.passes, worker_bytes=plan.process_bytes(executor), persist=persist
    )
    return replace(plan, worker_bytes=plan.worker_bytes + kept)


def _plan_digits(ask: _Above, names: list[str], executor: Sizes) -> Plan:
    """Return the plan of finding a quantile digit by digit, where every pass goes to the disk."""
    shape = ask.seen.labels.sizes
    labels = np.broadcast_to(np.int64(0), len(ask.seen.images))
    kernels = (
        Digits(np.broadcast_to(np.int64(0), shape), 0),
        CountAbove(np.broadcast_to(np.float32(0), shape), labels, len(names)),
    )
    size = (8 * len(names) + 4) * ask.seen.labels.count
    digits, last = (
        ask.seen.plan(
            "cooccurrence", {"count": kernel}, executor, passes=passes(ask.bits) + 1, result_bytes=size,
            driver_bytes=2 * size + 24 * VALUES * ask.seen.labels.count, method=BY_DIGITS,
        )
        for kernel in kernels
    )  # fmt: skip
    return digits.at_least(last)


def _counting(plan: Plan, seen: View, k: int, executor: Sizes) -> Plan:
    """Return the plan of top images whose classes are counted: of both ends, then of a table features × classes."""
    _, names = class_labels(seen.xs[0])
    size = (8 * len(names) + 4) * seen.labels.count
    # The lists of both ends stay; of the best, labels, which count, and place in the table; the table, and a copy.
    entries = min(k, len(seen.taking_part)) * seen.labels.count
    driver = max(plan.driver_bytes, in_driver(plan.result_bytes + 40 * entries + 2 * size, executor))
    return replace(plan, operation="cooccurrence", result_bytes=size, driver_bytes=driver)


@dataclass(frozen=True)
class _Above:
    """What counts: so many images at most lie above the value of that rank."""

    x: xr.DataArray
    seen: View
    images: int
    per: Per
    pool: Pool

    @property
    def bits(self) -> int:
        """Bits of the values' order."""
        averaged = self.seen.pooled and self.pool == "mean"
        return 16 if self.x.dtype.itemsize == 2 and not averaged else 32


def _above(x: xr.DataArray, quantile: float, per: Per, pool: Pool) -> _Above:
    seen = view_for_order(x, per, pool)
    return _Above(x, seen, beyond(quantile, len(seen.taking_part)), per, pool)


def _count_top(ask: _Above, labels: NDArray[np.int64], names: list[str], executor: Executor) -> xr.Dataset:
    top = top_images(ask.x, k=ask.images + 1, per=ask.per, pool=ask.pool, client=executor)
    threshold = top["top_value"].isel(rank=ask.images)
    top["top_label"] = top["top_label"].where(top["top_value"] > threshold, -1)
    return count_classes(top, labels, names, k=ask.images).assign(threshold=threshold.reset_coords(drop=True))


def _count_digits(
    seen: View, ask: _Above, labels: NDArray[np.int64], names: list[str], executor: Executor
) -> xr.Dataset:
    threshold = select(seen, ask.images, ask.bits, executor, "cooccurrence")
    above = CountAbove(np.maximum(threshold, np.float32(0)), labels, len(names))
    count = seen.reduce({"count": above}, executor, "cooccurrence")["count"]["count"]
    where = seen.labels
    count = np.moveaxis(count.reshape(len(names), *where.sizes), 0, -1)
    result = _labelled(count, where.dims, where.coords, labels, names, ask.images)
    return result.assign(threshold=(where.dims, threshold))


def _of_those(labels: NDArray[np.int64], x: xr.DataArray) -> NDArray[np.int64]:
    """Return the class of each image, −1 for those that do not take part."""
    rows = taking_part(x)
    return labels if rows is None else np.where(rows, labels, -1)


def _labelled(
    count: NDArray[np.int64], dims: tuple[str, ...], coords: Any, labels: NDArray[np.int64], names: list[str], k: int
) -> xr.Dataset:
    """Return counts (features…, class) as a dataset, and say if a class is too small for them."""
    sizes = np.bincount(labels[labels >= 0], minlength=len(names))
    smallest = sizes[sizes > 0].min(initial=k)
    if smallest < k:
        events.emit(
            "note",
            "cooccurrence",
            f"the smallest class has {smallest} images, fewer than k={k}: no neuron can reach a count of k in one "
            "class there",
        )
    return xr.Dataset(
        {"count": ((*dims, "class"), count)},
        coords={**coords, "class": names, "class_size": ("class", sizes.astype(np.int64))},
    )
