"""Indices of how selective something is, of any labelled array."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dneuro.analysis.arrays import in_parts, one_of
from dneuro.analysis.images import taking_part
from dneuro.engine.device import process_bytes
from dneuro.engine.executors import Sizes, get_executor
from dneuro.engine.plan import Plan, in_driver
from dneuro.errors import ArrayError, suggest
from dneuro.kernels import indices
from dneuro.quantities import MiB

WORK_BYTES = 32 * MiB
"""What the slices of a table take while they are worked through, at most."""
TOO_LARGE = "smaller chunks along the other dims, fewer threads per worker, or workers with more memory"
MUCH_TO_ANSWER = "a selection of the array, or more memory for the process that asks"


def gini(x: xr.DataArray | ArrayLike, dim: str = "class") -> Any:
    """Gini index, the sparsity of a row: 0 if all entries are equal, 1 − 1/N if all but one of N are 0.

    Parameters
    ----------
    x : DataArray with a dim `dim`, or array (…, N)
        Not negative: counts or mean activations per class, or activations over neurons or images.
    dim : str
        What a row runs over; an array without labels has its rows along the last axis.

    Returns
    -------
    DataArray over the other dims, or array (…)
        Float64. NaN for a row of zeros, and for a row with a negative entry or NaN.

    Raises
    ------
    ArrayError
        If `x` has no such dim, or no entries along it.
    MemoryLimitError
        If `x` is backed by dask or a file and its rows do not fit into a worker, or the result into this process;
        before anything is read.

    Notes
    -----
    1 − 2 Σₖ (c₍ₖ₎ / ‖c‖₁)(N − k + ½) / N, entries ascending. With ``dim="image"``, masked images and those that
    `dneuro.select` leaves out take no part. Of an array that is backed by dask, or still lies in its file, it is an
    expression, which dask computes with what follows it: `dneuro.plan` says what it takes by itself on the active
    client, or on threads, and what does not fit there is refused when it is asked for. **Cost**: one read, with whole
    rows in memory: twice the chunks that hold the rows of one chunk, and 32 MiB.

    m equal entries of N, the others 0, have G = 1 − m / N. Source: Sadeghi, "Conceptual Content in Deep Convolutional
    Neural Networks", sparsity of a neuron's co-occurrence frequencies; the value of a row of zeros is dneuro's.

    Examples
    --------
    >>> import dneuro as dn
    >>> dn.gini([[1, 1, 1, 1], [0, 0, 0, 8]]).tolist()
    [0.0, 0.75]
    """
    return _along("gini", indices.gini, x, dim)


def spectral_flatness(x: xr.DataArray | ArrayLike, dim: str = "class") -> Any:
    """Flatness of a row: 2^(H / log₂ N) − 1, H being the entropy of its N shares; 0 one-sided, 1 flat.

    Parameters
    ----------
    x : DataArray with a dim `dim`, or array (…, N)
        Not negative; counts as a rule, for 1e-7 is added to each entry.
    dim : str
        What a row runs over; an array without labels has its rows along the last axis.

    Returns
    -------
    DataArray over the other dims, or array (…)
        Float64. −1 for a row of zeros; NaN for a row with a negative entry or NaN, and where N is 1.

    Raises
    ------
    ArrayError
        If `x` has no such dim, or no entries along it.
    MemoryLimitError
        As `gini`.

    Notes
    -----
    log₂(F + 1) = −(1 / log₂ N) Σ ṅ log₂ ṅ, ṅ the shares after 1e-7 was added to each entry; whether the row is zero is
    asked before. m equal entries of N have F = 2^(log m / log N) − 1. **Cost**: as `gini`.

    Source: Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks", flatness of a neuron's co-occurrence
    frequencies. N is the length of a row, the number of classes; the paper's text says the number of neurons, with
    which F would exceed 1.

    Examples
    --------
    >>> import dneuro as dn
    >>> dn.spectral_flatness([[5, 5, 5, 5], [0, 0, 0, 0]]).tolist()
    [1.0, -1.0]
    """
    return _along("spectral_flatness", indices.flatness, x, dim)


def class_selectivity(x: xr.DataArray | ArrayLike, dim: str = "class") -> Any:
    """Class selectivity: (largest − mean of the others) / (largest + mean of the others).

    Parameters
    ----------
    x : DataArray with a dim `dim`, or array (…, N)
        Mean activation per class; a class without images is NaN and left out.
    dim : str
        What a row runs over; an array without labels has its rows along the last axis.

    Returns
    -------
    DataArray over the other dims, or array (…)
        Float64, 0 (no class preferred) to 1 (active for one class only). NaN where fewer than two classes have
        images, where all are 0, and where the mean of the others is negative (activations before a ReLU).

    Raises
    ------
    ArrayError
        If `x` has no such dim, or no entries along it.
    MemoryLimitError
        As `gini`.

    Notes
    -----
    The mean of the others is the unweighted mean of their means. **Cost**: as `gini`. Source: Chen et al., class
    selectivity, after Morcos et al., "On the importance of single directions for generalization" (2018).

    Examples
    --------
    >>> import dneuro as dn
    >>> dn.class_selectivity([[0, 0, 2], [1, 3, 1], [1, 1, 1]]).tolist()
    [1.0, 0.5, 0.0]
    """
    return _along("class_selectivity", indices.class_selectivity, x, dim)


def plan_gini(x: xr.DataArray | ArrayLike, dim: str = "class", *, client: Any = None) -> Plan:
    """Return the reading and the memory of `gini`; reads no data."""
    return _plan("gini", _checked(x, dim), dim, get_executor(client))


def plan_spectral_flatness(x: xr.DataArray | ArrayLike, dim: str = "class", *, client: Any = None) -> Plan:
    """Return the reading and the memory of `spectral_flatness`; reads no data."""
    return _plan("spectral_flatness", _checked(x, dim), dim, get_executor(client))


def plan_class_selectivity(x: xr.DataArray | ArrayLike, dim: str = "class", *, client: Any = None) -> Plan:
    """Return the reading and the memory of `class_selectivity`; reads no data."""
    return _plan("class_selectivity", _checked(x, dim), dim, get_executor(client))


def _plan(name: str, rows: xr.DataArray | NDArray[Any], dim: str, executor: Sizes) -> Plan:
    along = rows.sizes[dim] if isinstance(rows, xr.DataArray) else rows.shape[-1]
    size = 8 * (rows.size // along)
    if not isinstance(rows, xr.DataArray) or rows.chunks is None:
        return Plan(name, 0, 0, 0, 0, size + 2 * rows.nbytes + WORK_BYTES, size, "in this process")
    others = [lengths for other, lengths in rows.chunksizes.items() if other != dim]
    block = math.prod(max(lengths) for lengths in others) * along * rows.dtype.itemsize
    task = 2 * block + max(WORK_BYTES, 64 * along)  # the chunks and what they are joined to, or that and the rows last
    return Plan(
        name, 1, rows.nbytes, math.prod(map(len, others)),
        process_bytes(executor) + executor.slots_per_process * task, in_driver(2 * size, executor), size,
        "when it is computed",
    )  # fmt: skip


def _along(name: str, index: Callable[[ArrayLike], Any], x: xr.DataArray | ArrayLike, dim: str) -> Any:
    rows = _checked(x, dim)
    if not isinstance(rows, xr.DataArray):
        return index(rows)
    if rows.chunks is not None:
        executor = get_executor()
        _plan(name, rows, dim, executor).check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    return xr.apply_ufunc(
        index, rows, input_core_dims=[[dim]], dask="parallelized", output_dtypes=[np.float64],
        dask_gufunc_kwargs={"allow_rechunk": True},
    )  # fmt: skip


def _checked(x: xr.DataArray | ArrayLike, dim: str) -> xr.DataArray | NDArray[Any]:
    """Return what can be asked, with the images that take part."""
    if isinstance(x, Mapping):
        raise ArrayError(f"an array is wanted, not a {type(x).__name__}", hint=one_of(x, "an array of numbers"))
    if not isinstance(x, xr.DataArray):
        try:
            table = np.asarray(x)
        except (TypeError, ValueError) as error:
            raise ArrayError(f"no array of numbers: {error}", hint="rows of one length") from None
        _check_numbers(table.dtype)
        if table.ndim == 0 or table.shape[-1] == 0:
            raise ArrayError(f"an array of shape {table.shape} has no rows", hint="one entry per class, last axis")
        return table
    _check_numbers(x.dtype)
    if dim not in x.dims:
        hint = suggest(str(dim), [str(name) for name in x.dims])
        raise ArrayError(f"the array has dims {tuple(map(str, x.dims))}, none is named {dim!r}", hint=f"dim=…; {hint}")
    if x.sizes[dim] == 0:
        raise ArrayError(f"the array has no entries along {dim!r}", hint="check the selection that made it")
    x = in_parts(x, next((str(other) for other in x.dims if other != dim), dim))
    if dim == "image" and (rows := taking_part(x)) is not None:
        x = x.isel(image=np.flatnonzero(rows))
    return x


def _check_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise ArrayError(f"an array of {dtype} has no shares", hint="counts, or activations: real numbers")
