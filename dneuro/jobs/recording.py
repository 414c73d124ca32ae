"""Writing the statistics that the extraction took along into the layers they are about."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dneuro.analysis.arrays import Labels
from dneuro.analysis.moments import label_moments
from dneuro.analysis.top_images import label_top_images
from dneuro.engine.executors import Executor
from dneuro.extract.run import merge_statistics
from dneuro.extract.work import ExtractWork
from dneuro.jobs.study import Study
from dneuro.store.creating import add_variables
from dneuro.store.units import Unit, fingerprint, units_folder


def record(study: Study, work: ExtractWork, executor: Executor) -> None:
    """Merge the partial statistics of all units and write them, unless that was done before."""
    wanted = fingerprint({"parts": work.fingerprints, "kernels": sorted(work.kernels)})
    unit = Unit(units_folder(study.store) / "extract", "statistics")
    if not work.kernels or unit.marker(wanted) is not None:
        return
    unit.begin(work.attempt.number)
    numbers = np.arange(study.plan.images)
    classes = study.source.manifest.labels
    merged = merge_statistics(work, executor)
    for plan in study.plan.layers:
        labels = Labels(
            dims=("channel",),
            sizes=plan.shape[:1],
            positions=dict(zip(("y", "x"), plan.shape[1:], strict=False)),
        )
        found = merged[plan.name]
        parts: list[xr.Dataset] = []
        if "moments" in found:
            parts.append(label_moments(found["moments"], labels))
        ends = {key.partition("-")[0]: found[key] for key in found if key != "moments"}
        if ends:
            parts.append(label_top_images(ends, labels, numbers, classes))
        if parts:
            add_variables(study.store, plan.group, xr.merge(parts))
    unit.publish({"fingerprint": wanted})
