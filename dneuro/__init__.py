"""dneuro: the activations of neural networks, out of core.

Run a network once over all images, keep the activations in one labelled, chunked store, and ask every question of
that store, on a laptop or on a cluster, within a memory limit that is known before the run::

    import dneuro as dn

    acts = dn.extract("torchvision:alexnet", images="photos/", layers=["features.12"], out="alexnet.zarr")
    dn.plan("svd", acts["features.12"], rank=50)          # passes, bytes, peak memory; computes nothing
    components = dn.svd(acts["features.12"], rank=50)     # an xarray.Dataset
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dneuro.analysis import on_device, plan
    from dneuro.analysis.clusters import clusters
    from dneuro.analysis.connections import connections
    from dneuro.analysis.cooccurrence import cooccurrence
    from dneuro.analysis.facets import facets
    from dneuro.analysis.ica import ica
    from dneuro.analysis.indices import class_selectivity, gini, spectral_flatness
    from dneuro.analysis.kmeans import kmeans
    from dneuro.analysis.mean_similarity import mean_similarity
    from dneuro.analysis.moments import moments
    from dneuro.analysis.nonnegative import coupled_nmf, nmf
    from dneuro.analysis.patching import patch_components
    from dneuro.analysis.random_projections import random_projections
    from dneuro.analysis.regressing import regression
    from dneuro.analysis.selection import select
    from dneuro.analysis.selectivity import selectivity
    from dneuro.analysis.similar_places import similar_places
    from dneuro.analysis.similarity import similarity
    from dneuro.analysis.single_neurons import single_neurons
    from dneuro.analysis.svd import svd
    from dneuro.analysis.top_images import top_images
    from dneuro.cluster.standing import connect
    from dneuro.errors import DneuroError
    from dneuro.events import listening
    from dneuro.extract.patches import top_patches
    from dneuro.jobs.exporting import export
    from dneuro.jobs.face import extract, open_cluster, run
    from dneuro.jobs.handle import Job, jobs, submit
    from dneuro.jobs.reporting import report
    from dneuro.jobs.verifying import verify
    from dneuro.jobs.wiring import weights_between
    from dneuro.store.opening import Store
    from dneuro.store.opening import open_store as open  # noqa: A004

_WHERE = {
    "DneuroError": "dneuro.errors",
    "Job": "dneuro.jobs.handle",
    "Store": "dneuro.store.opening",
    "class_selectivity": "dneuro.analysis",
    "clusters": "dneuro.analysis",
    "connect": "dneuro.cluster.standing",
    "connections": "dneuro.analysis",
    "cooccurrence": "dneuro.analysis",
    "coupled_nmf": "dneuro.analysis",
    "export": "dneuro.jobs.exporting",
    "extract": "dneuro.jobs.face",
    "facets": "dneuro.analysis",
    "gini": "dneuro.analysis",
    "ica": "dneuro.analysis",
    "jobs": "dneuro.jobs.handle",
    "kmeans": "dneuro.analysis",
    "listening": "dneuro.events",
    "mean_similarity": "dneuro.analysis",
    "moments": "dneuro.analysis",
    "nmf": "dneuro.analysis",
    "on_device": "dneuro.analysis",
    "open": "dneuro.store.opening:open_store",
    "open_cluster": "dneuro.jobs.face",
    "patch_components": "dneuro.analysis",
    "plan": "dneuro.analysis",
    "random_projections": "dneuro.analysis",
    "regression": "dneuro.analysis",
    "report": "dneuro.jobs.reporting",
    "run": "dneuro.jobs.face",
    "select": "dneuro.analysis",
    "selectivity": "dneuro.analysis",
    "similar_places": "dneuro.analysis",
    "similarity": "dneuro.analysis",
    "single_neurons": "dneuro.analysis",
    "spectral_flatness": "dneuro.analysis",
    "submit": "dneuro.jobs.handle",
    "svd": "dneuro.analysis",
    "top_images": "dneuro.analysis",
    "top_patches": "dneuro.extract.patches",
    "verify": "dneuro.jobs.verifying",
    "weights_between": "dneuro.jobs.wiring",
}

__all__ = [
    "DneuroError",
    "Job",
    "Store",
    "class_selectivity",
    "clusters",
    "connect",
    "connections",
    "cooccurrence",
    "coupled_nmf",
    "export",
    "extract",
    "facets",
    "gini",
    "ica",
    "jobs",
    "kmeans",
    "listening",
    "mean_similarity",
    "moments",
    "nmf",
    "on_device",
    "open",
    "open_cluster",
    "patch_components",
    "plan",
    "random_projections",
    "regression",
    "report",
    "run",
    "select",
    "selectivity",
    "similar_places",
    "similarity",
    "single_neurons",
    "spectral_flatness",
    "submit",
    "svd",
    "top_images",
    "top_patches",
    "verify",
    "weights_between",
]


def __getattr__(name: str) -> Any:
    # Names are looked up when they are used: `dneuro --help` must not wait for numpy, xarray and torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'dneuro' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Face(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the package dneuro.extract would put it in the place of the function dn.extract.
        if not (name in _WHERE and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
