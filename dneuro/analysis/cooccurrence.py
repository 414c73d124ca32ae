"""Which classes do a neuron's top images belong to?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Per, Pool, check_labelled, class_labels
from dneuro.analysis.top_images import TOO_LARGE, plan_top_images, top_images
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError


def cooccurrence(
    x: xr.DataArray, *, k: int = 100, per: Per = "channel", pool: Pool = "max", client: Any = None
) -> xr.Dataset:
    """Co-occurrence frequencies (CoF): of the top `k` images of a neuron, how many belong to each class.

    Parameters
    ----------
    x : DataArray, dims (image N, channel C[, y, x]), coordinate label (image,)
        Activations; ``label`` holds class indices, −1 where unknown. ``attrs["class_names"]`` names them.
    k : int
        Top images counted.
    per, pool : str
        As in `top_images`.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        count (features…, class) int64. A row sums to `k` less the images that do not count: those whose
        activation is not above 0 and those without a class.

    Raises
    ------
    ArrayError
        If `x` is not such an array or has no labels.

    Notes
    -----
    **Cost**: that of `top_images`. Source: Sadeghi, co-occurrence frequency; that only activations above 0 count is
    dneuro's choice, otherwise a dead filter collects ties.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[1.0], [4.0], [2.0]], "f4"), dims=("image", "channel"),
    ...                  coords={"label": ("image", [0, 1, 1])})
    >>> dn.cooccurrence(x, k=2)["count"].values.tolist()
    [[0, 2]]
    """
    check_labelled(x)
    labels, names = class_labels(x)
    executor = get_executor(client)
    plan_cooccurrence(x, k=k, per=per, pool=pool, client=executor).check(executor.memory, hint=TOO_LARGE)
    top = top_images(x, k=k, per=per, pool=pool, client=executor)
    result = count_classes(top, labels, names, k=k)
    result.attrs = {"analysis": "cooccurrence", "layer": top.attrs["layer"],
                    "parameters": {"k": k, "per": per, "pool": pool}}  # fmt: skip
    return result


def count_classes(top: xr.Dataset, labels: NDArray[np.int64], names: list[str], *, k: int) -> xr.Dataset:
    """Return the counts per class of a dataset with top_value and top_label (features…, rank).

    Parameters
    ----------
    top : Dataset
        As `top_images` gives it; its first `k` ranks are counted, or all if there were fewer images.
    labels : array (images,) of int64
        Class of every image, to warn when a class has fewer images than `k`.
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
    per_class = np.bincount(labels[labels >= 0], minlength=len(names))
    if 0 < per_class[per_class > 0].min() < k:
        events.emit(
            "note",
            "cooccurrence",
            f"the smallest class has {per_class[per_class > 0].min()} images, fewer than k={k}: no neuron can reach "
            "a count of k in one class there",
        )
    return xr.Dataset(
        {"count": ((*sizes, "class"), bins.reshape(*sizes.values(), len(names)))},
        coords={**{dim: first.coords[dim] for dim in sizes if dim in first.coords}, "class": names},
    )


def plan_cooccurrence(
    x: xr.DataArray, *, k: int = 100, per: Per = "channel", pool: Pool = "max", client: Any = None
) -> Plan:
    """Return the passes and the memory of `cooccurrence`; reads no data."""
    return replace(plan_top_images(x, k=k, per=per, pool=pool, client=client), operation="cooccurrence")
