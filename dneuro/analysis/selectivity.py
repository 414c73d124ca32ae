"""How selective is each neuron for classes?"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Per, Pool, View, check_labelled, told_apart, view
from dneuro.analysis.chance import facets_by_chance, least_flatness, p_values
from dneuro.analysis.checks import check_count, check_seed
from dneuro.analysis.images import class_labels
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError
from dneuro.kernels import indices
from dneuro.kernels.class_sums import ClassSums

TOO_LARGE = "per='channel', fewer classes, or workers with more memory"
MUCH_TO_ANSWER = "per='channel', fewer classes, or more memory for the process that asks"
OWN = ("class_selectivity", "gini", "flatness", "entropy", "mf", "p_low", "p_high", "preferred_class", "counted",
       "flatness_least", "mf_chance", "mf_chance_std", "p_chance")  # fmt: skip
_INDICES = 14
"""Variables of the result, at most, 8 bytes each."""


@says_selection
def selectivity(
    x: xr.DataArray, *, per: Per = "channel", pool: Pool = "mean", chance: int = 100, seed: int = 0, client: Any = None
) -> xr.Dataset:
    """Class selectivity, Gini index, flatness and multi-facetedness of each neuron.

    Parameters
    ----------
    x : DataArray, dims (image N, channel P[, y, x]) with coordinate label (image,), or (channel P[, …], class)
        Activations, of which the mean over the images of each class is taken; or one row per neuron already:
        the counts of `cooccurrence`, or mean activations per class (NaN: no images).
    per : {"channel", "neuron"}
        Of activations: one row per channel (all positions made one number by `pool`), or one per neuron.
    pool : {"mean", "max"}
        How ``per="channel"`` makes one number of all positions.
    chance : int
        Draws of labels by chance that counts are compared with; 0 for none.
    seed : int
        Seed of these draws.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        Over the features, float64: class_selectivity, gini, flatness, entropy (bits), mf (flatness ÷ gini: high for
        multi-faceted neurons), p_low and p_high (one-sided, of mf under a normal fitted to the layer's other
        neurons); preferred_class (int64, the first with the largest entry; −1 for a row of zeros, and where no entry is
        finite). Of counts also counted (int64, their sum), flatness_least (what the flatness of so many images is at
        least, given the sizes of the classes: 0.072 for 100 images of 1,000 classes with 50 each) and, unless
        ``chance=0``, mf_chance, mf_chance_std and p_chance (the share of draws, the neuron itself among them, whose mf
        is not above its own).

    Raises
    ------
    ArrayError
        If `x` is neither of the two, or its images have no classes.
    NonFiniteError
        If activations hold NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task would not fit; before anything is read.

    Notes
    -----
    Classes without images (``class_size`` 0, or NaN) are left out, and a note says so. A row of zeros has flatness −1
    and nothing else (NaN), and is left out of the fits; a row with a negative entry has no gini, flatness, entropy and
    mf (NaN), and no class selectivity where the mean of the others is negative. A row of equal entries has an infinite
    mf; it is left out of the fits too. Draws are without replacement from the images of each class if the counts carry
    ``class_size`` (those of `cooccurrence` do), else from equal classes.

    **Cost**: of activations one pass, state 16 bytes per feature and class; exact to rounding. Of rows none.

    Sources: Chen et al., class selectivity of mean activations per class (a filter's is its spatial mean). Sadeghi,
    "Conceptual Content in Deep Convolutional Neural Networks": sparsity (`gini`), flatness (`spectral_flatness`) and
    their quotient, the degree of multi-facetedness MF, of the rows of co-occurrence frequencies; p-values within the
    layer, which are one-sided under a normal fitted to the *other* neurons here, as one that is far out would widen its
    own. That choice, and labels by chance beside them (over 1,000 classes an MF of 0.635 ± 0.007), are dneuro's.
    `facets` divides by the largest MF, and sets layers beside each other.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> counts = xr.DataArray(np.array([[8, 0, 0, 0], [2, 2, 2, 2]]), dims=("channel", "class"))
    >>> found = dn.selectivity(counts)
    >>> found["gini"].values.tolist(), found["preferred_class"].values.tolist()
    ([0.75, 0.0], [0, 0])
    """
    _check(chance, seed)
    check_labelled(x)
    parameters: dict[str, Any] = {"chance": chance, "seed": seed}
    if "class" not in x.dims:
        parameters = {"per": per, "pool": pool, **parameters}
        rows = _class_means(x, per, pool, client)
    else:
        rows = _check_rows(x)
    result = _indices(rows, chance, seed)
    result.attrs = {"analysis": "selectivity", "layer": str(rows.attrs.get("layer", "")), "parameters": parameters}
    return result


def plan_selectivity(
    x: xr.DataArray, *, per: Per = "channel", pool: Pool = "mean", chance: int = 100, seed: int = 0, client: Any = None
) -> Plan:
    """Return the passes and the memory of `selectivity`; reads no data."""
    _check(chance, seed)
    check_labelled(x)
    if "class" in x.dims:
        rows = _check_rows(x)
        size = 8 * _INDICES * (rows.size // rows.sizes["class"])
        return Plan("selectivity", 0, 0, 0, 0, 2 * size + 16 * rows.size, size, "in the driver")
    seen, kernel, names = _setup(x, per, pool)
    size, table = 8 * _INDICES * seen.labels.count, 8 * seen.labels.count * len(names)
    return seen.plan(
        "selectivity", {"classes": kernel}, get_executor(client),
        result_bytes=size, driver_bytes=2 * size + 4 * table,
    )  # fmt: skip


def _class_means(x: xr.DataArray, per: Per, pool: Pool, client: Any) -> xr.DataArray:
    """Return the mean over the images of each class (features…, class); NaN where there are none."""
    executor = get_executor(client)
    seen, kernel, names = _setup(x, per, pool)
    plan = plan_selectivity(x, per=per, pool=pool, client=executor)
    plan.check(executor, hint=TOO_LARGE, driver_hint=MUCH_TO_ANSWER)
    found = seen.reduce({"classes": kernel}, executor, "selectivity")["classes"]
    count = found["count"].reshape(len(names), -1)
    with np.errstate(invalid="ignore"):
        means = (found["sum"].reshape(len(names), -1) / count).T
    return xr.DataArray(
        means.reshape(*seen.labels.sizes, len(names)), dims=(*seen.labels.dims, "class"),
        coords={**seen.labels.coords, "class": names}, attrs={"layer": seen.layer},
    )  # fmt: skip


def _setup(x: xr.DataArray, per: Per, pool: Pool) -> tuple[View, ClassSums, list[str]]:
    seen = view(x, per=per, pool=pool, own=OWN)
    labels, names = class_labels(x)
    if seen.rows is not None and not (labels[seen.rows] >= 0).any():
        raise ArrayError("this needs the class of every image, and none of the images that could be read has one")
    return seen, ClassSums(labels, len(names)), names


def _check(chance: int, seed: int) -> None:
    check_count("chance", chance, least=0, hint="chance=100")
    check_seed(seed)


def _check_rows(x: xr.DataArray) -> xr.DataArray:
    dims = tuple(map(str, x.dims))
    if "class" not in dims or len(dims) < 2 or 0 in x.shape:
        raise ArrayError(
            f"the array has shape {dict(x.sizes)}; needed is (image, channel, …) or (channel, …, class)",
            hint="dn.cooccurrence(x)['count']",
        )
    if x.dtype.kind not in "iuf":
        raise ArrayError(f"the array holds {x.dtype}, counts and means are numbers", hint="x.astype('float64')")
    return told_apart(x, OWN).transpose(..., "class")


def _indices(rows: xr.DataArray, chance: int, seed: int) -> xr.Dataset:
    """Return the indices of a table features… × class."""
    dims = tuple(map(str, rows.dims))[:-1]
    shape = tuple(rows.sizes[dim] for dim in dims)
    table = np.asarray(rows.values).reshape(-1, rows.sizes["class"])
    counts = table.dtype.kind in "iu"
    sizes = _sizes(rows, table) if counts else None
    known = sizes > 0 if sizes is not None else ~np.isnan(table).all(axis=0)
    if known.any() and not known.all():
        events.emit("note", "selectivity", f"{int((~known).sum())} of {len(known)} classes have no images: left out")
        table = table[:, known]
    flat, sparse = indices.flatness(table), indices.gini(table)
    facets = indices.multifacetedness(flat, sparse)
    low, high = p_values(facets)
    found: dict[str, NDArray[Any]] = {
        "class_selectivity": indices.class_selectivity(table),
        "gini": sparse,
        "flatness": flat,
        "entropy": indices.entropy(table),
        "mf": facets,
        "p_low": low,
        "p_high": high,
        "preferred_class": _preferred(table, np.flatnonzero(known)),
    }
    if sizes is not None:
        found["counted"] = table.sum(axis=1, dtype=np.int64)
        found["flatness_least"] = least_flatness(found["counted"], sizes[known])
        if chance and table.min() >= 0:
            by_chance = facets_by_chance(facets, found["counted"], sizes[known], draws=chance, seed=seed)
            found |= {"mf_chance": by_chance.mean, "mf_chance_std": by_chance.std, "p_chance": by_chance.p}
    coords = {dim: rows.coords[dim] for dim in dims if dim in rows.coords}
    return xr.Dataset({name: (dims, values.reshape(shape)) for name, values in found.items()}, coords=coords)


def _preferred(table: NDArray[Any], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(classes):
        return np.full(len(table), -1, dtype=np.int64)
    lacking = np.isnan(table)
    filled = np.where(lacking, -np.inf, table) if table.dtype.kind == "f" else table
    prefers = ((table != 0) & ~lacking).any(axis=1) & np.isfinite(table).any(axis=1)
    return np.where(prefers, classes[filled.argmax(axis=1)], -1).astype(np.int64)


def _sizes(rows: xr.DataArray, counts: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many images each class has to draw from: as the counts say, if they can be of such images."""
    if "class_size" in rows.coords and (counts.max(axis=0) <= (size := rows.coords["class_size"].values)).all():
        return np.asarray(size, dtype=np.int64)
    return np.full(counts.shape[1], max(1, int(counts.sum(axis=1).max())), dtype=np.int64)
