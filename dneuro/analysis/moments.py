"""How active is each neuron, and how much does it vary?"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Labels, Pool, View, choose, view
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.kernels import ImageMoments, Kernel, Moments

OWN = ("count", "mean", "std", "variance", "min", "max", "fraction_active")
TOO_LARGE = "a smaller chunk along image, or workers with more memory"
MUCH_TO_ANSWER = "per='channel', or more memory for the process that asks"


@says_selection
def moments(
    x: xr.DataArray, *, per: Literal["channel", "neuron", "image"] = "channel", pool: Pool = "max", client: Any = None
) -> xr.Dataset:
    """Count, mean, standard deviation, variance, minimum, maximum and fraction active.

    Parameters
    ----------
    x : DataArray, dims (image N, channel C[, y, x])
        Activations; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    per : {"channel", "neuron", "image"}
        Over the images, one row per channel (all positions made one number by `pool`) or one per neuron (each
        position its own); or over all neurons, one row per image.
    pool : {"max", "mean"}
        How ``per="channel"`` makes one number of all positions; the mean is rounded to float32.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        count (int64), mean, std, variance (float64; divided by the count), min, max (float64), fraction_active
        (share of values > 0), over the features, or over image.

    Raises
    ------
    ArrayError
        If `x` is not such an array.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: one pass; state 48 bytes per feature; exact (float64, pairwise).

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[0.0, 2.0], [4.0, 2.0]]), dims=("image", "channel"))
    >>> dn.moments(x)["mean"].values.tolist()
    [2.0, 2.0]
    """
    executor = get_executor(client)
    seen, kernel = _setup(x, per, pool)
    plan_moments(x, per=per, pool=pool, client=executor).check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    found = seen.reduce({"moments": kernel}, executor, "moments")["moments"]
    if per == "image":
        order = found.pop("image")
        data = {name: ("image", values) for name, values in found.items()}
        result = xr.Dataset(data, coords={"image": seen.images[order]})
    else:
        result = label_moments(found, seen.labels)
    result.attrs = {"analysis": "moments", "layer": seen.layer, "parameters": {"per": per, "pool": pool}}
    return result


def label_moments(found: dict[str, NDArray[Any]], labels: Labels) -> xr.Dataset:
    """Return the kernel's results as a dataset over the features."""
    data = {name: (labels.dims, np.reshape(values, labels.sizes)) for name, values in found.items()}
    return xr.Dataset(data, coords=labels.coords)


def plan_moments(
    x: xr.DataArray, *, per: Literal["channel", "neuron", "image"] = "channel", pool: Pool = "max", client: Any = None
) -> Plan:
    """Return the passes and the memory of `moments`; reads no data."""
    seen, kernel = _setup(x, per, pool)
    rows = len(seen.images) if per == "image" else seen.labels.count
    return seen.plan("moments", {"moments": kernel}, get_executor(client), result_bytes=56 * rows)


def _setup(x: xr.DataArray, per: str, pool: Pool) -> tuple[View, Kernel]:
    choose("per", per, ("channel", "neuron", "image"))
    if per == "image":
        return view(x, per="neuron", pool=pool), ImageMoments()
    return view(x, per=per, pool=pool, own=OWN), Moments()  # type: ignore[arg-type]
