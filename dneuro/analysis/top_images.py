"""Which images excite a neuron most, which least, and where in the image?"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Labels, Per, Pool, View, of_ends, view
from dneuro.analysis.checks import check_count
from dneuro.analysis.images import label_numbers
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError
from dneuro.kernels import Kernel, TopK

TOO_LARGE = "a smaller k, per='channel', or workers with more memory"
MUCH_TO_ANSWER = "a smaller k, per='channel', or more memory for the process that asks"


@says_selection
def top_images(
    x: xr.DataArray, *, k: int = 100, per: Per = "channel", pool: Pool = "max", client: Any = None
) -> xr.Dataset:
    """The `k` images with the highest and the `k` with the lowest activation of each channel or neuron.

    Parameters
    ----------
    x : DataArray, dims (image N, channel C[, y, x])
        Activations; float16 or float32, backed by dask or NumPy, chunked in any way.
    k : int
        Images at either end; with fewer images than `k`, all of them.
    per : {"channel", "neuron"}
        One list per channel (all positions made one number by `pool`) or one per neuron.
    pool : {"max", "mean"}
        How ``per="channel"`` makes one number of all positions. With ``"max"`` the position where the maximum is
        first reached is given too.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        top_value, bottom_value (float32), top_image, bottom_image (int64, as the array's ``image`` coordinate
        numbers them; where it holds names, their places), over features × rank (min(k, N)), best first; top_y, top_x,
        bottom_y, bottom_x (int32) where positions were pooled; top_label, bottom_label where `x` has a coordinate
        ``label``.

    Raises
    ------
    ArrayError
        If `x` is not such an array, holds float64, or `k` is less than 1.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: one pass; state 24·k bytes per feature; exact. Of equal values the image that comes first in the array
    is first, so the result is the same bit for bit under any chunking.

    Sources: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", images of highest and
    lowest activation (of ``per="neuron"``; `single_neurons` standardises first, as the paper does). Sadeghi,
    "Conceptual Content in Deep Convolutional Neural Networks", top patches: a neuron is a filter there; that its
    activation on an image is the maximum over positions is dneuro's reading.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[0.0], [4.0], [2.0]], "f4"), dims=("image", "channel"))
    >>> dn.top_images(x, k=2)["top_image"].values.tolist()
    [[1, 2]]
    """
    executor = get_executor(client)
    seen, kernels = _setup(x, k, per, pool)
    plan = plan_top_images(x, k=k, per=per, pool=pool, client=executor)
    plan.check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    found = seen.reduce(kernels, executor, "top_images")
    classes = label_numbers(x) if "label" in x.coords else None
    result = label_top_images(found, seen.labels, seen.images, classes)
    result.attrs = {"analysis": "top_images", "layer": seen.layer, "images": len(seen.taking_part),
                    "parameters": {"k": k, "per": per, "pool": pool}}  # fmt: skip
    return result


def label_top_images(
    found: dict[str, dict[str, NDArray[Any]]],
    labels: Labels,
    images: NDArray[np.int64],
    classes: NDArray[Any] | None = None,
) -> xr.Dataset:
    """Return the kernels' results (rank, features…) as a dataset features… × rank."""
    data: dict[str, Any] = {}
    dims = (*labels.dims, "rank")
    for end, results in found.items():
        tables = {name: np.moveaxis(values, 0, -1) for name, values in results.items()}
        rows = tables["image"].reshape(*labels.sizes, -1)
        data[f"{end}_value"] = (dims, tables["value"].reshape(rows.shape))
        data[f"{end}_image"] = (dims, images[rows])
        if classes is not None:
            data[f"{end}_label"] = (dims, np.asarray(classes, dtype=np.int64)[rows])
        if "position" in tables and labels.positions:
            places = np.unravel_index(tables["position"].reshape(rows.shape), tuple(labels.positions.values()))
            for name, place in zip(labels.positions, places, strict=True):
                data[f"{end}_{name}"] = (dims, place.astype(np.int32))
    return xr.Dataset(data, coords=labels.coords)


def plan_top_images(
    x: xr.DataArray, *, k: int = 100, per: Per = "channel", pool: Pool = "max", client: Any = None
) -> Plan:
    """Return the passes and the memory of `top_images`; reads no data."""
    seen, kernels = _setup(x, k, per, pool)
    one = 4 + 8 + 4 * len(seen.labels.positions) + (8 if "label" in x.coords else 0)
    size = 2 * one * min(int(k), len(seen.taking_part)) * seen.labels.count
    return seen.plan("top_images", kernels, get_executor(client), result_bytes=size)


def view_for_order(x: xr.DataArray, per: Per, pool: Pool, *, places: bool = False) -> View:
    """Return the view of an array whose values are to be ordered; see `dneuro.analysis.arrays.view`.

    Raises
    ------
    ArrayError
        If its values do not fit into float32.
    """
    seen = view(x, per=per, pool=pool, places=places, own=("rank", "class", *of_ends(x)))
    if x.dtype.itemsize > 4 and not (seen.pooled and pool == "mean"):
        raise ArrayError(
            f"top_images orders float32 exactly, the array holds {x.dtype}", hint="x.astype('float32')"
        )
    return seen


def _setup(x: xr.DataArray, k: int, per: Per, pool: Pool) -> tuple[View, dict[str, Kernel]]:
    check_count("k", k, hint="k=100")
    seen = view_for_order(x, per, pool, places=True)
    if "label" in x.coords:
        label_numbers(x)
    return seen, {"top": TopK(int(k)), "bottom": TopK(int(k), largest=False)}  # a narrow integer would overflow
