"""Which neurons are single-faceted, which multi-faceted, and how does that go with depth?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.across import check_results, over_layers
from dneuro.analysis.arrays import choose, told_apart
from dneuro.analysis.checks import check_count, check_number
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan

NAME = "facets"
NEEDS = ("mf", "gini", "flatness", "p_low", "p_high")
"""Variables of `selectivity` that are set beside each other."""
LEAST_FLATNESS = 1e-3
"""A flatness that no neuron can fall below is worth a warning from here on; a row of one class has some 1e-5."""
OWN = ("layer", "rank", "mf", "mf_raw", "facet", "p", "significant", "lowest", "highest")
"""Dims of the results, and what they hold."""
AT_ROOT = (
    "layer", "neurons", "without_mf", "threshold", "single_share", "multi_share", "single_significant",
    "multi_significant", "mf_mean", "mf_std", "mf_min", "mf_max", "gini_mean", "gini_std", "flatness_mean",
    "flatness_std", "mf_chance", "mf_chance_std", "flatness_least",
)  # fmt: skip
"""Names that no layer can have in the result."""
SINGLE, MULTI, NEITHER = 0, 1, -1
_BYTES = 26
"""Of the result, per neuron."""


def facets(
    results: Mapping[str, xr.Dataset], *, per_layer: bool = False, cutoff: float = 0.05, k: int = 10, client: Any = None
) -> xr.DataTree:
    """Single- and multi-faceted neurons of several layers, and how facets, sparsity and flatness go with depth.

    Parameters
    ----------
    results : mapping of str to Dataset
        What `selectivity` found out about each layer, the first layer first: of the counts of `cooccurrence`, as in the
        paper, or of mean activations per class.
    per_layer : bool
        What divides single- from multi-faceted: the mean of each layer's own neurons, or of all neurons of all layers
        (the paper's one threshold, 0.53).
    cutoff : float
        A neuron is significant if its p-value is below this.
    k : int
        Extreme neurons named of each layer, at either end.
    client : ignored
        Nothing is distributed.

    Returns
    -------
    DataTree
        At its root a dataset over layer (coordinate: the names), float64 where nothing is said: neurons, without_mf
        (int64: rows of zeros, which have none); threshold; single_share and multi_share, of the neurons that have an
        MF; single_significant and multi_significant (int64); mean, std, smallest and largest of mf (mf_mean, mf_std,
        mf_min, mf_max), gini_mean, gini_std, flatness_mean, flatness_std: a fitted normal has just these means and
        standard deviations. Of counts also mf_chance and mf_chance_std, and flatness_least. ``attrs["largest"]`` is
        the MF that all are divided by, ``attrs["layer_of_largest"]`` where it lies.

        Below it, by layer, over the layer's features: mf (divided by the largest), mf_raw; facet int8 (0
        single-faceted, 1 multi-faceted, −1 neither, for it has no MF or lies on the threshold); p, one-sided on the
        neuron's own side of the threshold, and significant (bool). lowest and highest (rank) int64: the neurons of
        smallest and of largest MF, the most extreme first, numbered along the flattened features; −1 = none.

    Raises
    ------
    ArrayError
        If `results` are not such, or a number cannot be.
    MemoryLimitError
        If tables of all neurons do not fit into this process.

    Notes
    -----
    MF = flatness ÷ Gini index. p-values are those of `selectivity`: within the layer, under a normal fitted to the
    layer's other neurons. An infinite MF (a row of equal entries) is multi-faceted, and left out of means and of the
    largest.

    Labels by chance over 1,000 classes give a raw MF of 0.635 ± 0.007 with k = 100 images: about the paper's largest,
    0.63. A class with fewer images than are counted cannot take them all, so that no flatness lies below
    flatness_least; a warning says so where that matters.

    **Cost**: none of reading; some 100 bytes per neuron in this process. Exact.

    Source: Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks": degree of multi-facetedness, single-
    and multi-faceted neurons, their fractions per layer. That the largest is the largest *over all layers* is inferred
    from its numbers; that each neuron counts alike in the threshold, whatever the width of its layer, and that the
    normal is fitted to the other neurons, are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> early = xr.DataArray(np.array([[2, 2, 2, 2], [4, 2, 1, 1], [3, 2, 2, 1]]), dims=("channel", "class"))
    >>> late = xr.DataArray(np.array([[8, 0, 0, 0], [0, 6, 2, 0], [3, 3, 2, 0]]), dims=("channel", "class"))
    >>> found = dn.facets({name: dn.selectivity(rows, chance=0) for name, rows in (("early", early), ("late", late))})
    >>> found["multi_share"].values.round(2).tolist(), found["late"]["facet"].values.tolist()
    ([1.0, 0.33], [0, 0, 1])
    """
    plan_facets(results, per_layer=per_layer, cutoff=cutoff, k=k, client=client).check(
        get_executor(client), hint="", driver_hint="per: channel of the steps before, or fewer layers"
    )
    layers = [_Layer.of(name, result) for name, result in results.items()]
    peaks = [float(np.max(layer.raw, initial=-np.inf, where=np.isfinite(layer.raw))) for layer in layers]
    largest = max(peaks)
    scale = largest if np.isfinite(largest) and largest > 0 else 1.0
    together = _mean(np.concatenate([layer.raw for layer in layers])) / scale
    lies = {"largest": scale, "layer_of_largest": layers[int(np.argmax(peaks))].name if np.isfinite(largest) else ""}
    rows: list[dict[str, Any]] = []
    tree: dict[str, xr.Dataset] = {}
    parameters = {"per_layer": per_layer, "cutoff": cutoff, "k": k}
    for layer in layers:
        threshold = _mean(layer.raw) / scale if per_layer else together
        judged = _judge(layer, scale, threshold, cutoff)
        rows.append(_summary(layer, judged, scale, threshold))
        tree[layer.name] = _labelled(layer, judged, k).assign_attrs(
            analysis=NAME, layer=layer.name, parameters=parameters, threshold=threshold, **lies
        )
    root = over_layers(tree, rows).assign_attrs(analysis=NAME, layer="", parameters=parameters, **lies)
    _warn(root)
    return xr.DataTree.from_dict({"/": root, **tree})


def plan_facets(
    results: Mapping[str, xr.Dataset], *, per_layer: bool = False, cutoff: float = 0.05, k: int = 10, client: Any = None
) -> Plan:
    """Return the memory of `facets`, which reads no activations; reads no data."""
    check_results(results, NEEDS, hint="dn.selectivity(dn.cooccurrence(x)['count'])", own=AT_ROOT)
    choose("per_layer", per_layer, (True, False))
    check_number("cutoff", cutoff, above=0, below=1, hint="cutoff=0.05")
    check_count("k", k, hint="k=10")
    neurons = sum(int(result["mf"].size) for result in results.values())
    size = _BYTES * neurons + 16 * k * len(results)
    return Plan(NAME, 0, 0, 0, 0, 8 * (len(NEEDS) + 4) * neurons + 2 * size, size, "from the results of another step")


@dataclass(frozen=True)
class _Layer:
    """What is known of the neurons of a layer, flattened."""

    name: str
    result: xr.Dataset
    raw: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, result: xr.Dataset) -> _Layer:
        return cls(name, result, np.asarray(result["mf"].values, dtype=np.float64).ravel())

    def values(self, variable: str) -> NDArray[np.float64]:
        """Return a variable (neurons,); empty if it is not there."""
        if variable not in self.result:
            return np.empty(0)
        return np.asarray(self.result[variable].values, dtype=np.float64).ravel()


@dataclass(frozen=True)
class _Judged:
    """What became of the neurons of a layer, each array (neurons,)."""

    mf: NDArray[np.float64]
    facet: NDArray[np.int8]
    p: NDArray[np.float64]
    significant: NDArray[np.bool_]


def _judge(layer: _Layer, scale: float, threshold: float, cutoff: float) -> _Judged:
    mf = layer.raw / scale
    facet = np.full(len(mf), NEITHER, dtype=np.int8)
    facet[mf < threshold], facet[mf > threshold] = SINGLE, MULTI  # neither is true of NaN
    low, high = layer.values("p_low"), layer.values("p_high")
    p = np.where(facet == SINGLE, low, np.where(facet == MULTI, high, np.nan))
    return _Judged(mf, facet, p, p < cutoff)


def _summary(layer: _Layer, judged: _Judged, scale: float, threshold: float) -> dict[str, Any]:
    """Return what the dataset over layers says of one."""
    mf, single, multi = judged.mf, judged.facet == SINGLE, judged.facet == MULTI
    having = max(1, int((~np.isnan(mf)).sum()))
    finite = mf[np.isfinite(mf)]
    found: dict[str, Any] = {
        "neurons": len(mf),
        "without_mf": int(np.isnan(mf).sum()),
        "threshold": threshold,
        "single_share": float(single.sum()) / having,
        "multi_share": float(multi.sum()) / having,
        "single_significant": int((single & judged.significant).sum()),
        "multi_significant": int((multi & judged.significant).sum()),
        "mf_mean": _mean(mf),
        "mf_std": _std(mf),
        "mf_min": float(finite.min()) if finite.size else np.nan,
        "mf_max": float(finite.max()) if finite.size else np.nan,
    }
    for name in ("gini", "flatness"):
        values = layer.values(name)
        defined = values[values >= 0]  # a row of zeros has a flatness of −1
        found |= {f"{name}_mean": _mean(defined), f"{name}_std": _std(defined)}
    if "mf_chance" in layer.result:
        found["mf_chance"] = _mean(layer.values("mf_chance")) / scale
        found["mf_chance_std"] = _mean(layer.values("mf_chance_std")) / scale
    if "flatness_least" in layer.result:
        found["flatness_least"] = max(0.0, float(layer.values("flatness_least").max(initial=0.0)))
    return found


def _labelled(layer: _Layer, judged: _Judged, k: int) -> xr.Dataset:
    array = told_apart(layer.result["mf"], OWN)
    dims, shape = array.dims, array.shape
    described = {"flag_values": [SINGLE, MULTI, NEITHER], "flag_meanings": "single multi neither"}
    return xr.Dataset(
        {
            "mf": (dims, judged.mf.reshape(shape)),
            "mf_raw": (dims, layer.raw.reshape(shape)),
            "facet": (dims, judged.facet.reshape(shape), described),
            "p": (dims, judged.p.reshape(shape)),
            "significant": (dims, judged.significant.reshape(shape)),
            "lowest": ("rank", _ends(judged.mf, k)),
            "highest": ("rank", _ends(-judged.mf, k)),
        },
        coords={dim: array.coords[dim].values for dim in dims if dim in array.coords},
    )


def _ends(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the places of the `k` smallest values, of equal ones the first; −1 where there are fewer."""
    order = np.argsort(values, kind="stable")[: min(k, len(values))]  # NaN comes last
    return np.where(np.isnan(values[order]), -1, order)


def _warn(root: xr.Dataset) -> None:
    if bool((root["without_mf"] == root["neurons"]).all()):
        events.emit("warning", NAME, "no neuron has an MF: nothing was counted, or all images are of one class")
    least = float(root["flatness_least"].max()) if "flatness_least" in root else 0.0
    if least > LEAST_FLATNESS:
        events.emit(
            "warning",
            NAME,
            f"no class has as many images as are counted for a neuron: flatness cannot fall below {least:.3f}, nor MF "
            f"below {least / float(root.attrs['largest']):.3f}, not even of a neuron that answers to one class; count "
            "fewer (k of cooccurrence), or take more images per class",
        )


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _std(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.std()) if finite.size else float("nan")
