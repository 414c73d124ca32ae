"""Of which independent pictures are the samples of each of many small problems made?"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import check_dims, choose, dims_of, in_parts, is_count, one_of, told_apart
from dneuro.analysis.checks import check_count, check_number, check_seed
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan, plan_pass
from dneuro.errors import ArrayError
from dneuro.kernels.ica import Fun, Unmix

OWN = ("component", "mixing", "mean", "source", "rank", "converged", "iterations")
COUNT = "count"
"""Coordinate (problem,) that says how many samples of each problem there are, the first ones."""


def ica(
    x: xr.DataArray,
    *,
    rank: int = 8,
    fun: Fun = "logcosh",
    max_iter: int = 200,
    tol: float = 1e-4,
    seed: int = 0,
    client: Any = None,
) -> xr.Dataset:
    """Independent component analysis of many small problems: the top patches of every neuron, say.

    Parameters
    ----------
    x : DataArray, dims (problem B, sample S, features…)
        Samples of each problem. One dim is named ``sample``; the first of the others, ``channel`` for instance, counts
        the problems; the rest are features, such as row, column and color. Any real dtype, backed by dask or NumPy. A
        coordinate ``count`` (problem), as `top_patches` has it, says how many samples there are, the first ones.
    rank : int
        Components K of each problem, at most min(S, P).
    fun : {"logcosh", "exp", "cube"}
        The contrast function.
    max_iter : int
        Iterations, at most.
    tol : float
        A problem has converged when an iteration changes no component by more: 1 − |cos| of the angle.
    seed : int
        With the number of a problem along its dim, the seed of that problem: it gives the same alone and among others.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        mixing (problem, component, features…): what a component adds to a sample, its picture; component (problem,
        component, features…): what turns centred samples into sources; mean (problem, features…); source (problem,
        sample, component), of variance 1; rank (problem): components that there are; converged (problem) and
        iterations (problem). A problem of rank less than K (few samples, or alike) has NaN beyond its rank, a constant
        one nothing else. The largest component comes first, and the largest entry of its picture is positive. Floats
        in float64 where `x` is, else float32.

    Raises
    ------
    ArrayError
        If `x` has no such dims, is complex or no number, or `rank` does not lie in 1…min(S, P).
    NonFiniteError
        If it holds NaN or infinity; names problem and sample.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    **Cost**: one pass; per problem 2·S²·P multiplications for whitening (S < P), S·K² per iteration. Whitened by SVD,
    then FastICA with symmetric decorrelation, in float64, the problems of a block together, on one BLAS thread a task.
    After 50 iterations only half of each step is taken: with few samples whole ones may go round in circles.

    References
    ----------
    Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks" (8 components of each neuron's top patches);
    Hyvärinen & Oja, "Independent component analysis: algorithms and applications" (2000).
    """
    executor = get_executor(client)
    arrays, kernel = _setup(x, rank, fun, max_iter, tol, seed)
    problems = arrays[0]  # named and ordered as the result is
    _plan(arrays, kernel, executor).check(
        executor, hint="fewer samples or features, chunks of fewer problems",
        driver_hint="a lower rank, some problems at a time, or more memory for the process that asks",
    )  # fmt: skip
    found = reduce(arrays, {"ica": kernel}, executor, step="ica")["ica"]
    dim, features = str(problems.dims[0]), problems.dims[2:]
    shape = problems.shape[2:]
    pictures = {
        "mixing": np.swapaxes(found["mixing"], 1, 2),
        "component": found["component"],
    }
    result = xr.Dataset(
        {
            **{
                name: ((dim, "component", *features), values.reshape(*values.shape[:2], *shape))
                for name, values in pictures.items()
            },
            "mean": ((dim, *features), found["mean"].reshape(-1, *shape)),
            "source": ((dim, "sample", "component"), found["source"]),
            "rank": (dim, found["rank"]),
            "converged": (dim, found["converged"]),
            "iterations": (dim, found["iterations"]),
        },
        coords={name: problems.coords[name] for name in (*problems.dims, COUNT) if name in problems.coords},
    )
    count, lacking = len(found["rank"]), int((found["rank"] < rank).sum())
    unfinished = int((~found["converged"] & (found["rank"] > 0)).sum())
    if unfinished:
        events.emit("warning", "ica", f"{unfinished} of {count} problems not converged (max_iter={max_iter})")
    if lacking:
        events.emit("note", "ica", f"{lacking} of {count} problems have fewer than {rank} components")
    parameters = {"rank": rank, "fun": fun, "max_iter": max_iter, "tol": tol, "seed": seed}
    result.attrs = {"analysis": "ica", "layer": str(x.attrs.get("layer", "")), "parameters": parameters}
    return result


def plan_ica(
    x: xr.DataArray,
    *,
    rank: int = 8,
    fun: Fun = "logcosh",
    max_iter: int = 200,
    tol: float = 1e-4,
    seed: int = 0,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `ica`; reads no data."""
    return _plan(*_setup(x, rank, fun, max_iter, tol, seed), get_executor(client))


def _plan(arrays: list[xr.DataArray], kernel: Unmix, executor: Executor) -> Plan:
    state, _ = kernel.memory(len(arrays[0]), 1, arrays[0][0].size)
    return plan_pass("ica", arrays, {"ica": kernel}, executor, result_bytes=state, method="FastICA, symmetric")


def counts_of(x: xr.DataArray, dim: str) -> NDArray[np.int64] | None:
    """Return how many samples of each problem there are, as the coordinate ``count`` says it; None for all.

    Raises
    ------
    ArrayError
        If it is no number of samples per problem.
    """
    if COUNT not in x.coords:
        return None
    counts = x.coords[COUNT]
    most = x.sizes["sample"]
    if counts.dims != (dim,) or counts.dtype.kind not in "iu" or not ((counts >= 0) & (counts <= most)).all():
        raise ArrayError(
            f"the coordinate {COUNT!r} is {counts.dtype} over {tuple(map(str, counts.dims))}, it says how many of the "
            f"{most} samples of each {dim} there are",
            hint=f"x.drop_vars({COUNT!r})",
        )
    return np.asarray(counts.values, dtype=np.int64)


def _setup(
    x: xr.DataArray, rank: int, fun: Fun, max_iter: int, tol: float, seed: int
) -> tuple[list[xr.DataArray], Unmix]:
    """Return the array as (problem, sample, features…), the counts of samples where it has some, and the kernel."""
    dims = dims_of(x)
    if "sample" not in dims or len(dims) < 3:
        what = f"dims {dims}" if dims else f"a {type(x).__name__}"
        raise ArrayError(
            f"ica takes an xarray.DataArray (problem, sample, features…), not {what}",
            hint=one_of(x, "xr.DataArray(patches, dims=('channel', 'sample', 'pixel'))"),
        )
    check_dims(x, "the array")
    x = told_apart(in_parts(x, next(name for name in dims if name != "sample")), OWN)
    dim = next(name for name in x.dims if name != "sample")
    problems = x.transpose(dim, "sample", ...)
    if problems.dtype.kind not in "fiu" or 0 in problems.shape:
        raise ArrayError(f"ica of {dict(x.sizes)} {x.dtype}", hint="real numbers, and at least one of each")
    features = int(np.prod(problems.shape[2:]))
    smallest = min(x.sizes["sample"], features)
    if not is_count(rank) or rank > smallest:
        raise ArrayError(
            f"rank={rank!r} of {x.sizes['sample']} samples × {features} features",
            hint=f"a whole number from 1 to {smallest}",
        )
    check_search(fun, max_iter, tol, seed)
    counts = counts_of(x, str(dim))
    arrays = [problems, *([] if counts is None else [xr.DataArray(counts, dims=(dim,))])]
    dtype = "f8" if problems.dtype == np.float64 else "f4"
    return arrays, Unmix(rank, fun, max_iter, tol, seed, dtype, x.sizes["sample"])


def check_search(fun: object, max_iter: object, tol: object, seed: object) -> None:
    """Refuse what FastICA does not take.

    Raises
    ------
    ArrayError
        With the choices, or the range.
    """
    choose("fun", fun, ("logcosh", "exp", "cube"))
    check_count("max_iter", max_iter, hint="max_iter=200")
    check_number("tol", tol, above=0, hint="tol=1e-4")
    check_seed(seed)
