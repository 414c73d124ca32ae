"""Which channels feed a channel, or a direction, most strongly? Read off the weights between two layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import check_labelled, told_apart
from dneuro.analysis.checks import check_count
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError, NonFiniteError

NAME = "connections"
OWN = ("source_channel", "rank", "strength", "signed", "strongest", "strongest_value", "strongest_signed", "share")


def connections(
    x: xr.DataArray, *, directions: xr.DataArray | None = None, k: int = 5, client: Any = None
) -> xr.Dataset:
    """Source channels that feed each channel, or each direction of a layer, most strongly by the weights.

    Parameters
    ----------
    x : DataArray, dims (channel Q, source_channel P, y, x)
        Weights between two layers, as `weights_between` gives them.
    directions : DataArray, dims (component K, channel Q[, y, x]), optional
        Directions of the later layer, such as the ``vector`` of its `svd`, that are followed back in place of its
        channels.
    k : int
        Sources listed of each, the strongest first.
    client : ignored
        Nothing is distributed.

    Returns
    -------
    Dataset
        strength (channel or component, source_channel) float64: the Euclidean norm of the weights over the kernel;
        signed: their sum, which says whether the source excites (> 0) or inhibits; strongest (channel or component,
        rank) int64: the `k` sources of largest strength, with strongest_value and strongest_signed; share (channel or
        component): part of the squared weights that these `k` hold. Of groups that are kept apart the weights are 0.

    Raises
    ------
    ArrayError
        If the arrays are not such, or do not fit each other.
    NonFiniteError
        If one holds NaN or infinity; names the place.

    Notes
    -----
    **Cost**: none of reading; 24·Q·P·y·x bytes in this process. Exact.

    The direction of a layer (channel, y, x) is averaged over its positions first: Σ_c v̄_c W[c, source, y, x]. Pooling
    and ReLU between the layers are passed by, so a strength is about what could flow, not what does for some image;
    `regression` says that.

    Source: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", future work, after Lee et
    al., "Convolutional deep belief networks for scalable unsupervised learning of hierarchical representations" (2009),
    who draw a unit by its most strongly connected units below. The norm over the kernel, and the average over
    positions, are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> w = xr.DataArray(np.array([[3.0, -4.0, 0.0]]).reshape(1, 3, 1, 1), dims=("channel", "source_channel", "y", "x"))
    >>> found = dn.connections(w, k=2)
    >>> found["strongest"].values.tolist(), found["strongest_signed"].values.tolist()
    ([[1, 0]], [[-4.0, 3.0]])
    """
    _check(x, directions, k)
    weights = _numbers(x.transpose("channel", "source_channel", "y", "x"), "the weights")
    dim, coords = "channel", {}
    if directions is not None:
        directions = told_apart(directions, OWN)
        dim = str(next(d for d in directions.dims if d not in ("channel", "y", "x")))
        flat = directions.mean([d for d in directions.dims if d in ("y", "x")]).transpose(dim, "channel")
        weights = np.tensordot(_numbers(flat, "the directions"), weights, axes=1)
        coords = {dim: directions.coords[dim].values} if dim in directions.coords else {}
    strength = np.sqrt(np.sum(weights * weights, axis=(2, 3)))
    signed = weights.sum(axis=(2, 3))
    order = np.argsort(-strength, axis=1, kind="stable")[:, :k]
    best: NDArray[np.float64] = np.take_along_axis(strength, order, axis=1)
    total = np.sum(strength**2, axis=1)
    share = np.divide(np.sum(best**2, axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    pair, ranked = (dim, "source_channel"), (dim, "rank")
    result = xr.Dataset(
        {
            "strength": (pair, strength),
            "signed": (pair, signed),
            "strongest": (ranked, order),
            "strongest_value": (ranked, best),
            "strongest_signed": (ranked, np.take_along_axis(signed, order, axis=1)),
            "share": (dim, share),
        },
        coords=coords,
    )
    about = {name: x.attrs[name] for name in ("layer", "source", "module", "groups") if name in x.attrs}
    result.attrs = {"analysis": NAME, "layer": "", **about, "parameters": {"k": k}}
    return result


def plan_connections(
    x: xr.DataArray, *, directions: xr.DataArray | None = None, k: int = 5, client: Any = None
) -> Plan:
    """Return the memory of `connections`, which reads no activations; reads no data."""
    _check(x, directions, k)
    rows = x.sizes["channel"]
    if directions is not None:
        rows = next(length for dim, length in directions.sizes.items() if dim not in ("channel", "y", "x"))
    size = 16 * rows * x.sizes["source_channel"] + 24 * rows * k
    return Plan(NAME, 0, 0, 0, 0, 24 * int(x.size) + 2 * size, size, "from the weights")


def _check(x: xr.DataArray, directions: xr.DataArray | None, k: int) -> None:
    check_labelled(x)
    if set(x.dims) != {"channel", "source_channel", "y", "x"}:
        dims = tuple(map(str, x.dims))
        raise ArrayError(
            f"expected weights (channel, source_channel, y, x), got {dims}",
            hint="dn.weights_between(network, source=…, target=…)",
        )
    for array in (x, directions):
        if isinstance(array, xr.DataArray) and array.dtype.kind not in "iuf":
            raise ArrayError(f"the array holds {array.dtype}, weights are numbers", hint="x.astype('float64')")
    check_count("k", k, hint="k=5")
    if directions is not None and not _fit(directions, x.sizes["channel"]):
        raise ArrayError(
            f"directions= ({_shown(directions)}) do not fit weights to {x.sizes['channel']} channels",
            hint="directions=dn.svd(layer, …)['vector'] of the later layer",
        )


def _numbers(x: xr.DataArray, what: str) -> NDArray[np.float64]:
    """Return the values in float64.

    Raises
    ------
    NonFiniteError
        Names the first that is no number.
    """
    values = np.asarray(x.values, dtype=np.float64)
    if not (finite := np.isfinite(values)).all():
        place = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), values.shape))
        said = f"{what}: {tuple(map(str, x.dims))} = {place} is {values[place]}"
        raise NonFiniteError(said, hint="x.where(np.isfinite(x), 0)")
    return values


def _fit(directions: object, channels: int) -> bool:
    if not isinstance(directions, xr.DataArray) or directions.sizes.get("channel") != channels:
        return False
    return len([dim for dim in directions.dims if dim not in ("channel", "y", "x")]) == 1


def _shown(directions: object) -> str:
    return str(dict(directions.sizes)) if isinstance(directions, xr.DataArray) else f"a {type(directions).__name__}"
