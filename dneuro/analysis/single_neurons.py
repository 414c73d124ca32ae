"""The neurons that vary most, a random choice beside them, and the images at the ends of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import View, choose, of_ends, view
from dneuro.analysis.checks import check_count, check_seed
from dneuro.analysis.images import label_numbers
from dneuro.analysis.selection import says_selection
from dneuro.analysis.standardisation import standardisation
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError
from dneuro.kernels import Kernel, Moments, Standardise
from dneuro.kernels.columns import Columns
from dneuro.kernels.standardise import Mode, Standardised

TOO_LARGE = "fewer neurons, a smaller chunk along image, or workers with more memory"
NAME = "single_neurons"
OWN = ("chosen", "other_chosen", "rank", "variance", "neuron", "random", "chosen_variance", "ties", "raw_ties",
       "raw_min", "overlap", "bottom_overlap")  # fmt: skip
"""Dims and variables of the result, besides those of both ends."""


@says_selection
def single_neurons(
    x: xr.DataArray,
    *,
    count: int = 16,
    baseline: int = 16,
    standardize: Mode = "image",
    k: int = 100,
    seed: int = 0,
    client: Any = None,
) -> xr.Dataset:
    """Neurons ranked by variance, and of those that vary most and of a random choice the images at both ends.

    Parameters
    ----------
    x : DataArray, dims (image N, features… P)
        Activations; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    count : int
        Neurons of largest variance that are looked at.
    baseline : int
        Neurons drawn at random from all that vary, the first ones among them or not, as the baseline.
    standardize : {"image", "center", None}
        ``"image"``: each image to mean 0 and variance 1 over its neurons, as Zhang does. ``"neuron"`` is refused: under
        it every neuron that varies has variance 1, and no order among them means anything.
    k : int
        Images at either end of each neuron; with fewer images than `k`, all of them.
    seed : int
        Seed of the random choice.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        variance (features…) float64: of every neuron, over the images, after standardising. Of the neurons looked at
        (dim chosen: first those of largest variance, then the random ones): neuron (chosen) int64, its number among the
        stacked features; <dim>_place (chosen) int64, its place along each dim; random (chosen) bool; chosen_variance;
        top_value, bottom_value (float64), top_image, bottom_image (int64) and, where `x` has a coordinate ``label``,
        top_label, bottom_label (chosen, rank), best first; ties and raw_ties (chosen) int64: images that share the
        lowest value, after and before standardising; raw_min (chosen); overlap (chosen, other_chosen): the share of the
        `k` top images that two neurons have in common, bottom_overlap the same of the lowest. ``attrs["chance"]`` is
        the share that two random sets of `k` of the images have in common, on average: k / N.

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
    **Cost**: two passes; state 48·P bytes, then 16·N·(count + baseline) bytes; exact to the rounding of float64. Of
    equal values the image that comes first is first.

    A ReLU's lowest value is 0, and many images share it (raw_ties). After standardising per image those zeros become
    −mean/std of the image, the same number for every silent neuron: the lowest images of such neurons coincide, which
    bottom_overlap shows, and says nothing about the neurons.

    Source: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", single neurons: neurons of
    highest variance, a histogram of all variances, and random neurons. The overlap of the top images, its expectation
    by chance, and the number of ties are dneuro's: the paper compares by eye.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[0.0, 1, 5], [2, 0, 9], [0, 3, 1]], "f4"), dims=("image", "channel"))
    >>> found = dn.single_neurons(x, count=1, baseline=1, standardize=None, k=2)
    >>> found["neuron"].values[0], found["top_image"].values[0].tolist()
    (np.int64(2), [1, 0])
    """
    executor = get_executor(client)
    parameters: dict[str, Any] = {"count": count, "baseline": baseline, "standardize": standardize, "k": k,
                                  "seed": seed}  # fmt: skip
    plan_single_neurons(x, **parameters, client=executor).check(
        executor, hint=TOO_LARGE, driver_hint="fewer neurons, or more memory in this process"
    )
    seen = view(x, per="neuron", own=_own(x))
    standardise, _ = standardisation(seen, standardize, executor, NAME)
    variance = _variances(seen, standardise, standardize, executor)
    neurons, random = _choose(variance, count, baseline, seed)
    found = seen.reduce({"columns": Columns(standardise, neurons)}, executor, NAME)["columns"]
    value, raw, rows = found["value"], found["raw"], found["image"]
    most = min(k, len(value))
    top, bottom = (np.argsort(sign * value, axis=0, kind="stable")[:most].T for sign in (-1.0, 1.0))
    places = np.unravel_index(neurons, seen.labels.sizes)
    one, two, ends = "chosen", ("chosen", "other_chosen"), ("chosen", "rank")
    data: dict[str, Any] = {
        "variance": (seen.labels.dims, variance.reshape(seen.labels.sizes)),
        "neuron": (one, neurons),
        **{f"{dim}_place": (one, place) for dim, place in zip(seen.labels.dims, places, strict=True)},
        "random": (one, random),
        "chosen_variance": (one, variance[neurons]),
        "ties": (one, (value == value.min(axis=0)).sum(axis=0)),
        "raw_ties": (one, (raw == raw.min(axis=0)).sum(axis=0)),
        "raw_min": (one, raw.min(axis=0)),
        "overlap": (two, _overlap(top)),
        "bottom_overlap": (two, _overlap(bottom)),
    }
    labels = label_numbers(x) if "label" in x.coords else None
    for end, order in (("top", top), ("bottom", bottom)):
        data[f"{end}_value"] = (ends, np.take_along_axis(value.T, order, axis=1))
        data[f"{end}_image"] = (ends, seen.images[rows[order]])
        if labels is not None:
            data[f"{end}_label"] = (ends, labels[rows[order]])
    result = xr.Dataset(data, coords=seen.labels.coords)
    result.attrs = {"analysis": NAME, "layer": seen.layer, "standardize": standardize or "none", "images": len(value),
                    "chance": most / len(value), "parameters": parameters}  # fmt: skip
    return result


def plan_single_neurons(
    x: xr.DataArray,
    *,
    count: int = 16,
    baseline: int = 16,
    standardize: Mode = "image",
    k: int = 100,
    seed: int = 0,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `single_neurons`; reads no data."""
    choose("standardize", standardize, ("image", "neuron", "center", None))
    if standardize == "neuron":
        raise ArrayError(
            "standardize='neuron' gives every neuron that varies variance 1: nothing is left to rank them by",
            hint="standardize='image', 'center' or None",
        )
    executor, seen = get_executor(client), view(x, per="neuron", own=_own(x))
    for name, number in (("count", count), ("baseline", baseline), ("k", k)):
        check_count(name, number, hint=f"{name}=16")
    check_seed(seed)
    n, p = len(seen.taking_part), seen.labels.count
    for name, number in (("count", count), ("baseline", baseline)):
        if number > p:
            raise ArrayError(f"{name}={number} of {p} neurons", hint=f"{name}={p}, or fewer")
    wide = count + baseline
    size = 8 * p + wide * (48 * min(k, n) + 16 * wide + 64)
    first = seen.plan(NAME, {"variance": _moments(standardize)}, executor).passes
    return seen.plan(
        NAME,
        {"columns": Columns(Standardise(None), np.zeros(wide, dtype=np.int64)),
         "variance": Standardised(Moments(), Standardise(None))},
        executor, passes=1 + first, result_bytes=size, driver_bytes=2 * size + 48 * wide * n + 56 * p,
    )  # fmt: skip


def _own(x: object) -> tuple[str, ...]:
    """Return the names that the result has of its own."""
    places = (f"{dim}_place" for dim in getattr(x, "dims", ()))
    return (*OWN, *places, *of_ends(x))


def _moments(standardize: Mode) -> Kernel:
    """Return the kernel of the variances: centring changes none, so they may be known from the extraction."""
    return Standardised(Moments(), Standardise("image")) if standardize == "image" else Moments()


def _variances(seen: View, standardise: Standardise, standardize: Mode, executor: Executor) -> NDArray[np.float64]:
    found = seen.reduce({"variance": _moments(standardize)}, executor, NAME)["variance"]
    return np.asarray(found["variance"], dtype=np.float64).reshape(-1)


def _choose(
    variance: NDArray[np.float64], count: int, baseline: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the neurons of largest variance, then as many random ones as there are that vary; and which is which."""
    most = np.argsort(-variance, kind="stable")[:count]
    live = np.flatnonzero(variance > 0)
    pool = live if len(live) >= baseline else np.arange(len(variance))
    drawn = np.random.default_rng(seed).choice(pool, baseline, replace=False)
    return np.concatenate([most, drawn]).astype(np.int64), np.repeat([False, True], [len(most), len(drawn)])


def _overlap(images: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of images that every two lists (rows) have in common."""
    held = np.zeros((len(images), int(images.max()) + 1))
    np.put_along_axis(held, images, 1.0, axis=1)
    common: NDArray[np.float64] = held @ held.T / images.shape[1]
    return common
