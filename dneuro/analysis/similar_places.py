"""Where the neurons lie that say nearly the same: in which channel, and how far away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import choose, in_parts, view
from dneuro.analysis.checks import check_count
from dneuro.analysis.selection import says_selection
from dneuro.analysis.similarity import plan_similarity, similarity
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError

Metric = Literal["pearson", "cosine", "euclidean"]
NAME = "similar_places"


@says_selection
def similar_places(
    x: xr.DataArray, *, neighbours: int = 5, metric: Metric = "pearson", client: Any = None
) -> xr.Dataset:
    """How far apart, and in which channels, a neuron and the neurons most similar to it lie.

    Parameters
    ----------
    x : DataArray, dims (image N, channel C, y Y, x X)
        Activations of a layer with positions; float16, float32 or float64, backed by dask or NumPy.
    neighbours : int
        The M most similar others of each neuron that are looked at.
    metric : {"pearson", "cosine", "euclidean"}
        What similar means; a neuron that does not vary has no neighbours under ``"pearson"``.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        own, other (dy 2Y − 1, dx 2X − 1) int64: pairs of a neuron and one of its neighbours by offset, the neighbour in
        the neuron's own channel, or in another; own_chance, other_chance: the pairs there would be if neighbours were
        drawn at random from all other neurons; value (dy, dx): mean similarity of the pairs, NaN of none; own_share
        (channel): share of a channel's pairs that stay in the channel, NaN of none; channel_pairs (channel,
        other_channel) int64: pairs between channels; neighbour, neighbour_value (channel, y, x, neighbour): as
        `similarity` gives them, −1 = none. ``attrs`` has pairs, own_share, same_place_share (offset 0, 0) and
        mean_distance (in positions), with what chance would give: own_share_chance, same_place_share_chance,
        mean_distance_chance.

    Raises
    ------
    ArrayError
        If `x` has no positions, or a parameter cannot be.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: that of `similarity` with ``per="neuron"`` and `neighbours`: P² products, whose matrix never exists. For
    layers of many positions that is the dearest step of all; ``dn.plan`` says how often the layer is read.

    Source: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", future work: similar
    neurons may lie close to each other in the layer. The paper says nothing of how to measure it; neighbours by
    correlation, counted by offset against a random draw, are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> a, b = np.sin(np.arange(20.0)), np.cos(np.arange(20.0))
    >>> layer = np.stack([[[a, 2 * a]], [[b, 3 * b]]]).transpose(3, 0, 1, 2)  # two channels, alike along x
    >>> found = dn.similar_places(xr.DataArray(layer, dims=("image", "channel", "y", "x")), neighbours=1)
    >>> found.attrs["own_share"], found["own"].values.tolist()
    (1.0, [[2, 0, 2]])
    """
    executor = get_executor(client)
    plan_similar_places(x, neighbours=neighbours, metric=metric, client=executor).check(
        executor, hint="workers with more memory", driver_hint="fewer neighbours, or more memory in this process"
    )
    x = in_parts(x, "image").transpose("image", "channel", "y", "x")
    found = similarity(x, metric=metric, per="neuron", neighbours=neighbours, client=executor)
    shape = (x.sizes["channel"], x.sizes["y"], x.sizes["x"])
    near = np.asarray(found[f"{metric}_neighbour"].values).reshape(-1, found.sizes["neighbour"])
    value = np.asarray(found[f"{metric}_value"].values, dtype=np.float64).reshape(near.shape)
    counts = _counts(near, value, shape)
    own_chance, other_chance = _chance(int(counts["pairs"]), shape)
    offsets = {"dy": np.arange(-shape[1] + 1, shape[1]), "dx": np.arange(-shape[2] + 1, shape[2])}
    plane = ("dy", "dx")
    result = xr.Dataset(
        {
            "own": (plane, counts["own"]),
            "other": (plane, counts["other"]),
            "own_chance": (plane, own_chance),
            "other_chance": (plane, other_chance),
            "value": (plane, counts["value"]),
            "own_share": ("channel", counts["own_share"]),
            "channel_pairs": (("channel", "other_channel"), counts["channels"]),
            "neighbour": found[f"{metric}_neighbour"].variable,
            "neighbour_value": found[f"{metric}_value"].variable,
        },
        coords={**offsets, **{dim: found.coords[dim].values for dim in ("channel", "y", "x") if dim in found.coords}},
    )
    both, chance = counts["own"] + counts["other"], own_chance + other_chance
    far = np.hypot(offsets["dy"][:, None], offsets["dx"])
    pairs = int(counts["pairs"])
    summary: dict[str, Any] = {"pairs": pairs}
    for name, observed, expected in (
        ("own_share", counts["own"].sum(), own_chance.sum()),
        ("same_place_share", both[far == 0].sum(), chance[far == 0].sum()),
        ("mean_distance", (both * far).sum(), (chance * far).sum()),
    ):
        summary[name] = float(observed) / pairs if pairs else float("nan")
        summary[f"{name}_chance"] = float(expected) / pairs if pairs else float("nan")
    result.attrs = {"analysis": NAME, "layer": found.attrs["layer"], "images": found.attrs["images"], **summary,
                    "parameters": {"neighbours": neighbours, "metric": metric}}  # fmt: skip
    return result


def plan_similar_places(
    x: xr.DataArray, *, neighbours: int = 5, metric: Metric = "pearson", client: Any = None
) -> Plan:
    """Return the passes and the memory of `similar_places`; reads no data."""
    choose("metric", metric, ("pearson", "cosine", "euclidean"))
    view(x, per="neuron")
    if set(x.dims) != {"image", "channel", "y", "x"}:
        raise ArrayError(
            f"the array has dims {tuple(map(str, x.dims))}: where neurons lie is about a layer (channel, y, x)",
            hint="a layer with positions, kept in full",
        )
    check_count("neighbours", neighbours, hint="neighbours=5")
    plan = plan_similarity(x, metric=metric, per="neuron", neighbours=neighbours, client=client)
    plane = (2 * x.sizes["y"] - 1) * (2 * x.sizes["x"] - 1)
    size = plan.result_bytes + 40 * plane + 8 * x.sizes["channel"] * (x.sizes["channel"] + 1)
    return replace(plan, operation=NAME, result_bytes=size, driver_bytes=plan.driver_bytes + 4 * plan.result_bytes)


def _counts(near: NDArray[np.int64], value: NDArray[np.float64], shape: tuple[int, int, int]) -> dict[str, Any]:
    """Count pairs by offset and by channels; `near` (neurons, neighbours) numbers neurons, −1 = none."""
    channels, height, width = shape
    first = np.broadcast_to(np.arange(len(near))[:, None], near.shape)[near >= 0]
    second, alike = near[near >= 0], value[near >= 0]
    (c, y, x), (d, v, u) = np.unravel_index(first, shape), np.unravel_index(second, shape)
    plane = (2 * height - 1, 2 * width - 1)
    place = np.ravel_multi_index((v - y + height - 1, u - x + width - 1), plane)
    same = c == d
    size = plane[0] * plane[1]
    own, other = (np.bincount(place[some], minlength=size).reshape(plane) for some in (same, ~same))
    sums, total = np.bincount(place, weights=alike, minlength=size).reshape(plane), own + other
    of_channel = np.bincount(c, minlength=channels)
    with np.errstate(invalid="ignore"):
        mean = np.where(total > 0, sums / np.maximum(total, 1), np.nan)
        share = np.where(of_channel > 0, np.bincount(c[same], minlength=channels) / np.maximum(of_channel, 1), np.nan)
    pairs = np.bincount(c * channels + d, minlength=channels**2).reshape(channels, channels)
    return {"own": own, "other": other, "value": mean, "own_share": share, "channels": pairs, "pairs": len(second)}


def _chance(pairs: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pairs by offset, in the own channel and in another, if neighbours were drawn from all others."""
    channels, height, width = shape
    down, along = (length - np.abs(np.arange(-length + 1, length)) for length in (height, width))
    ordered = np.outer(down, along).astype(np.float64)  # pairs of places with this offset
    own = channels * ordered
    own[height - 1, width - 1] = 0.0  # a neuron is no neighbour of its own
    other = channels * (channels - 1) * ordered
    every = own.sum() + other.sum()
    return (own * pairs / every, other * pairs / every) if every else (own, other)
