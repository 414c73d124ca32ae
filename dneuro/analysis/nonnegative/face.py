"""`nmf` and `coupled_nmf`: arrays and arguments in, labelled factors out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dneuro.analysis.across import cannot_name_a_part
from dneuro.analysis.arrays import choose, view
from dneuro.analysis.checks import is_number
from dneuro.analysis.nonnegative.arrays import Arrays
from dneuro.analysis.nonnegative.asked import Asked, Init, Update, earlier, same_images
from dneuro.analysis.nonnegative.labels import errors, label
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.engine.residence import Persist
from dneuro.errors import ArrayError

Xs = Sequence[xr.DataArray] | Mapping[str, xr.DataArray]
OWN = ("component", "iteration", "image_weight", "neuron_weight", "size", "loss")
"""Dims of the results, and what they hold."""
AT_ROOT = (*OWN, "image")
"""Names that no part of a coupled result can have."""

Weights = Sequence[float] | str | None


@says_selection
def nmf(
    x: xr.DataArray,
    *,
    rank: int,
    update: Update = "hals",
    init: Init | xr.Dataset | None = None,
    sweeps: int | None = None,
    max_iter: int = 200,
    tol: float = 1e-5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    persist: Persist = "auto",
    client: Any = None,
) -> xr.Dataset:
    """Non-negative matrix factorisation X ≈ F Oᵀ of images × neurons.

    Parameters
    ----------
    x : DataArray, dims (image N, features… P)
        Activations of 0 or more; float16, float32 or float64, backed by dask or NumPy, chunked in any way.
    rank : int
        Number of components K, at most min(N, P).
    update : {"hals", "mu"}
        ``"hals"``: hierarchical alternating least squares; ``"mu"``: multiplicative updates, as Saini & Papalexakis
        write them (F first, then O).
    init : {"compressed", "nndsvda", "random"} or Dataset, optional
        Start: iterated from several starts on the leading directions, without reading; from the singular vectors, zeros
        filled with the mean; drawn from (0, 1), as in the paper; or an earlier result, to go on from. The default is
        ``"compressed"`` for ``"hals"``, and for ``"mu"``, which cannot leave zero, ``"nndsvda"``.
    sweeps : int, optional
        Updates of each factor per iteration; the default is 10 for ``"hals"`` and 1, the paper's, for ``"mu"``. They
        cost no reading.
    max_iter : int
        Iterations, at most.
    tol : float
        It has converged when an iteration lowers ‖X − F Oᵀ‖ by no more than this share of ‖X‖; 0 never stops early.
    seed : int
        Of the start.
    checkpoint : path or URL, optional
        File that keeps the state (``.npz``), written after an iteration if the last time is 2 s ago, so a killed run
        loses no more than that and the iteration it was at; if it is there, the run goes on from it, after
        one read that looks whether the state is of these images and activations. A state of more than `max_iter`
        iterations is given as it is: no iteration is undone.
    persist : {"auto", True, False}
        Whether the array is kept in the workers' memory for all passes: with ``"auto"`` if it takes with the passes no
        more than 60 % of it.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        image_weight (image, component): F, columns of length 1; neuron_weight (component, features…): Oᵀ, in the unit
        of the activations; size (component): the norm of F_k O_kᵀ, in descending order; loss (iteration):
        ‖X − F Oᵀ‖²_F after each iteration. Weights are float32, or float64 where `x` is. ``attrs`` has
        reconstruction_error (‖X − F Oᵀ‖_F), relative_error (its share of ‖X‖_F), rmse (per entry), total_squares
        (‖X‖²_F), iterations, converged, method, passes.

    Raises
    ------
    ArrayError
        If `x` is no such array, holds a negative number (names layer, image and neuron), or `rank` does not lie in
        1…min(N, P); if float32 cannot hold the weights.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.
    FingerprintError
        If `checkpoint` is the state of something else.
    StoreError
        If it cannot be read or written.

    Notes
    -----
    **Cost**: one pass per iteration, and 3 for a start that is not drawn; state 8·P·K bytes per task plus 4·N·K. An
    array whose chunks hold all images is read by panels of neurons: one pass more, state 8·N·K plus 4·P·K. The sequence
    of updates is the same. Large products in float32 (float64 for such an array), sums of them in float64: the loss is
    exact to about 1e-6 of ‖X‖². Activations whose root mean square lies
    beyond 2^±10 are multiplied by a power of two as they are read, after the first read, which is then done again, and
    weights are given back in the unit of the activations. A neuron that is dead has weight 0 in every component.

    References
    ----------
    Saini & Papalexakis, "A Peek Into the Hidden Layers of a Convolutional Neural Network Through a Factorization
    Lens"; Cichocki & Phan, "Fast local algorithms for large scale nonnegative matrix and tensor factorizations" (2009).
    """
    asked = _of_one(x, rank, update, init, sweeps, max_iter, tol, seed, checkpoint, persist)
    found, arrays, said = asked.run(get_executor(client))
    name = arrays.views[0].layer
    shared, parts = label(found, arrays, [name])
    result = shared.merge(parts[name].drop_vars("loss"))
    about = {key: value for key, value in parts[name].attrs.items() if key != "weight"}
    result.attrs = {"analysis": "nmf", **about, **said, "parameters": _parameters(asked)}
    return result


def coupled_nmf(
    xs: Xs,
    *,
    rank: int,
    weights: Weights = None,
    update: Update = "hals",
    init: Init | xr.DataTree | None = None,
    sweeps: int | None = None,
    max_iter: int = 200,
    tol: float = 1e-5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    persist: Persist = "auto",
    client: Any = None,
) -> xr.DataTree:
    """Factorise several arrays over the same images together: Xⱼ ≈ F Oⱼᵀ with one F, minimising Σ wⱼ ‖Xⱼ − F Oⱼᵀ‖².

    Parameters
    ----------
    xs : sequence of DataArray, or mapping of str to DataArray; dims (image N, features… Pⱼ)
        Layers of one network or of several, the pictures themselves (dims image, color, row, column, say): numbers of
        0 or more over the same images. Each takes its name from the mapping, else from its attribute ``layer``.
    weights : sequence of float, "equal" or None
        wⱼ; None takes 1 for each, as the paper does; ``"equal"`` takes 1 / ‖Xⱼ‖², so that a small layer counts as
        much as a large one.
    rank, update, init, sweeps, max_iter, tol, seed, checkpoint, persist, client
        As in `nmf`; `rank` is at most min(N, Σ Pⱼ).

    Returns
    -------
    DataTree
        At the root image_weight (image, component), size (component) and loss (iteration), of the weighted sum; below
        it one dataset for each array, by its name: neuron_weight (component, features…), loss (iteration) of that
        array alone, unweighted, and in ``attrs`` its weight, reconstruction_error, relative_error, rmse and
        total_squares.

    Raises
    ------
    ArrayError
        As in `nmf`; if the arrays are not about the same images or two have the same name.
    NonFiniteError, MemoryLimitError, FingerprintError, StoreError
        As in `nmf`.

    Notes
    -----
    **Cost**: as `nmf`, of all arrays together: one read of each per iteration; ``weights="equal"`` takes one read more.

    References
    ----------
    Saini & Papalexakis, "A Peek Into the Hidden Layers of a Convolutional Neural Network Through a Factorization
    Lens", coupled non-negative matrix factorisation.
    """
    asked, names = _of_several(xs, rank, weights, update, init, sweeps, max_iter, tol, seed, checkpoint, persist)
    found, arrays, said = asked.run(get_executor(client))
    shared, parts = label(found, arrays, names)
    entries = arrays.images * sum(arrays.neurons)
    whole = errors(float(shared["loss"][-1]), float(found.totals[:, 1] @ np.asarray(arrays.weights)), entries)
    shared.attrs = {"analysis": "coupled_nmf", "layers": names, "weights": list(map(float, arrays.weights))}
    shared.attrs |= {**whole, **said, "parameters": {**_parameters(asked), "weights": _plain(weights)}}
    return xr.DataTree.from_dict({"/": shared, **{f"/{name}": part for name, part in parts.items()}})


def plan_nmf(
    x: xr.DataArray,
    *,
    rank: int,
    update: Update = "hals",
    init: Init | xr.Dataset | None = None,
    sweeps: int | None = None,
    max_iter: int = 200,
    tol: float = 1e-5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    persist: Persist = "auto",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `nmf`; reads no data."""
    return _of_one(x, rank, update, init, sweeps, max_iter, tol, seed, checkpoint, persist).plan(get_executor(client))


def plan_coupled_nmf(
    xs: Xs,
    *,
    rank: int,
    weights: Weights = None,
    update: Update = "hals",
    init: Init | xr.DataTree | None = None,
    sweeps: int | None = None,
    max_iter: int = 200,
    tol: float = 1e-5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    persist: Persist = "auto",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `coupled_nmf`; reads no data."""
    asked, _ = _of_several(xs, rank, weights, update, init, sweeps, max_iter, tol, seed, checkpoint, persist)
    return asked.plan(get_executor(client))


def _of_one(x: xr.DataArray, rank: int, update: Update, init: Any, *rest: Any) -> Asked:
    seen = view(x, per="neuron", own=OWN)
    arrays = Arrays((seen,), (1.0,), seen.rows)
    start: Any = init if isinstance(init, str | None) else earlier(init, [init], arrays, rank)
    return Asked("nmf", arrays, rank, update, start, *rest)


def _of_several(
    xs: Xs, rank: int, weights: Weights, update: Update, init: Any, *rest: Any
) -> tuple[Asked, list[str]]:
    names, views = _named(xs)
    arrays = Arrays(tuple(views), _weights(weights, names), same_images(views, names))
    start: Any = init
    if not isinstance(init, str | None):
        parts = [init[name] for name in names if name in init] if isinstance(init, xr.DataTree) else []
        start = earlier(init, parts, arrays, rank)
    return Asked("coupled_nmf", arrays, rank, update, start, *rest), names


def _named(xs: Xs) -> tuple[list[str], list[Any]]:
    given: Any = xs
    if isinstance(given, str) or not isinstance(given, Mapping | Sequence | xr.DataArray | xr.Dataset):
        raise ArrayError(
            f"coupled_nmf takes a list of arrays, or a mapping of names to arrays, got {type(xs).__name__}",
            hint="dn.coupled_nmf([acts['relu1'], acts['relu2']], rank=…)",
        )
    if hasattr(xs, "dims") or not len(xs):
        raise ArrayError(
            f"coupled_nmf takes several arrays, not {'one' if len(xs) else 'none'}",
            hint="dn.coupled_nmf([acts['relu1'], acts['relu2']], rank=…), or dn.nmf for one",
        )
    items = list(xs.items()) if isinstance(xs, Mapping) else [("", x) for x in xs]
    views = [view(x if not name else _renamed(x, name), per="neuron", own=OWN) for name, x in items]
    names = [seen.layer or f"array-{j}" for j, seen in enumerate(views)]
    if len(set(names)) < len(names):
        said = f"arrays of the same name: {', '.join(names)}"
        raise ArrayError(said, hint="dn.coupled_nmf({'one': x, 'other': y}, …)")
    for name in names:
        if wrong := cannot_name_a_part(name, AT_ROOT):
            raise ArrayError(wrong, hint="dn.coupled_nmf({'one': x, 'other': y}, …)")
    return names, views


def _renamed(x: Any, name: str) -> Any:
    return x.assign_attrs(layer=name) if isinstance(x, xr.DataArray) else x


def _weights(weights: Weights, names: list[str]) -> tuple[float, ...]:
    """Return a number for each; NaN where they are still to be found."""
    if weights is None:
        return (1.0,) * len(names)
    if isinstance(weights, str):
        choose("weights", weights, ("equal", None))
        return (math.nan,) * len(names)
    asked: Any = weights
    given: list[Any] | None = list(asked) if isinstance(asked, Sequence | np.ndarray) else None
    if given is None or not all(map(is_number, given)):
        raise ArrayError(f"weights={weights!r}", hint="one number above 0 for each array, in a list, or 'equal'")
    numbers = tuple(float(weight) for weight in given)
    if len(numbers) != len(names) or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ArrayError(
            f"weights={list(numbers)} of {len(names)} arrays", hint="one number above 0 for each array, or 'equal'"
        )
    return numbers


def _plain(weights: Weights) -> Any:
    return weights if weights is None or isinstance(weights, str) else [float(weight) for weight in weights]


def _parameters(asked: Asked) -> dict[str, Any]:
    return {
        "rank": asked.rank,
        "update": asked.update,
        "init": asked.start,
        "sweeps": asked.rule.sweeps,
        "max_iter": asked.max_iter,
        "tol": asked.tol,
        "seed": asked.seed,
    }
