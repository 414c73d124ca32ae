"""One file per question: labelled array in, labelled dataset out.

Every analysis comes with its plan: passes over the array, memory and size of the result, known before it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import xarray as xr

from dneuro.analysis.clusters import clusters, plan_clusters
from dneuro.analysis.connections import connections, plan_connections
from dneuro.analysis.cooccurrence import cooccurrence, plan_cooccurrence
from dneuro.analysis.facets import facets, plan_facets
from dneuro.analysis.ica import ica, plan_ica
from dneuro.analysis.indices import (
    class_selectivity,
    gini,
    plan_class_selectivity,
    plan_gini,
    plan_spectral_flatness,
    spectral_flatness,
)
from dneuro.analysis.kmeans import kmeans, plan_kmeans
from dneuro.analysis.mean_similarity import mean_similarity, plan_mean_similarity
from dneuro.analysis.moments import moments, plan_moments
from dneuro.analysis.nonnegative import coupled_nmf, nmf, plan_coupled_nmf, plan_nmf
from dneuro.analysis.patching import patch_components, plan_patch_components
from dneuro.analysis.random_projections import plan_random_projections, random_projections
from dneuro.analysis.regressing import plan_regression, regression
from dneuro.analysis.selection import counts_selection, select
from dneuro.analysis.selectivity import plan_selectivity, selectivity
from dneuro.analysis.similar_places import plan_similar_places, similar_places
from dneuro.analysis.similarity import plan_similarity, similarity
from dneuro.analysis.single_neurons import plan_single_neurons, single_neurons
from dneuro.analysis.svd import plan_svd, svd
from dneuro.analysis.top_images import plan_top_images, top_images
from dneuro.engine.device import on_device
from dneuro.engine.plan import Plan
from dneuro.errors import UsageError, suggest

__all__ = [
    "ACROSS",
    "ANALYSES",
    "COUPLED",
    "PLANS",
    "class_selectivity",
    "clusters",
    "connections",
    "cooccurrence",
    "coupled_nmf",
    "facets",
    "gini",
    "ica",
    "kmeans",
    "mean_similarity",
    "moments",
    "nmf",
    "on_device",
    "patch_components",
    "plan",
    "random_projections",
    "regression",
    "select",
    "selectivity",
    "similar_places",
    "similarity",
    "single_neurons",
    "spectral_flatness",
    "svd",
    "top_images",
]

ANALYSES: dict[str, Callable[..., xr.Dataset]] = {
    "moments": moments,
    "top_images": top_images,
    "cooccurrence": cooccurrence,
    "selectivity": selectivity,
    "svd": svd,
    "random_projections": random_projections,
    "nmf": nmf,
    "single_neurons": single_neurons,
    "similarity": similarity,
    "similar_places": similar_places,
    "clusters": clusters,
    "kmeans": kmeans,
    "regression": regression,
    "connections": connections,
    "patch_components": patch_components,
}
"""Every analysis of one array, by the name it has in ``dn.`` and in a job file."""

COUPLED: dict[str, Callable[..., xr.DataTree]] = {"coupled_nmf": coupled_nmf}
"""Every analysis of several arrays over the same images: one result for all of them, and one for each."""

ACROSS: dict[str, Callable[..., xr.Dataset | xr.DataTree]] = {"facets": facets, "mean_similarity": mean_similarity}
"""Every analysis of what another one found out about several layers: a line for each layer, and what is its own."""

_PLANS: dict[str, Callable[..., Plan]] = {
    "moments": plan_moments,
    "top_images": plan_top_images,
    "cooccurrence": plan_cooccurrence,
    "selectivity": plan_selectivity,
    "facets": plan_facets,
    "svd": plan_svd,
    "random_projections": plan_random_projections,
    "nmf": plan_nmf,
    "coupled_nmf": plan_coupled_nmf,
    "ica": plan_ica,
    "single_neurons": plan_single_neurons,
    "similarity": plan_similarity,
    "mean_similarity": plan_mean_similarity,
    "similar_places": plan_similar_places,
    "clusters": plan_clusters,
    "kmeans": plan_kmeans,
    "regression": plan_regression,
    "connections": plan_connections,
    "patch_components": plan_patch_components,
    "gini": plan_gini,
    "spectral_flatness": plan_spectral_flatness,
    "class_selectivity": plan_class_selectivity,
}

PLANS = {name: counts_selection(plan) for name, plan in _PLANS.items()}
"""The plan of every analysis; of images that are selected it counts only what is read."""


def plan(analysis: str, x: Any, **parameters: Any) -> Plan:
    """Return the passes, bytes and peak memory of an analysis; computes nothing.

    Parameters
    ----------
    analysis : str
        Name of the function, such as ``"svd"``.
    x : DataArray, dims (image, features…)
        The array it would run on; several for ``"coupled_nmf"``, results for ``"facets"`` and ``"mean_similarity"``.
    **parameters
        Its keyword arguments.

    Raises
    ------
    UsageError
        If the analysis is unknown or does not take such arguments.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.zeros((100, 8), "f4"), dims=("image", "channel"))
    >>> dn.plan("svd", x, rank=2).passes
    2
    """
    if str(analysis) not in PLANS:
        raise UsageError(f"unknown analysis {analysis!r}", hint=suggest(str(analysis), PLANS))
    try:
        inspect.signature(PLANS[analysis]).bind(x, **parameters)
    except TypeError as error:
        raise UsageError(f"{analysis}: {error}", hint=f"help(dn.{analysis})") from None
    return PLANS[analysis](x, **parameters)
