"""Writing the statistics that the extraction took along into the layers they are about."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Labels
from dneuro.analysis.moments import label_moments
from dneuro.analysis.top_images import label_top_images
from dneuro.engine.executors import Executor
from dneuro.extract.run import keys_of_units, merge_feeds
from dneuro.extract.work import ExtractWork
from dneuro.jobs.study import Study
from dneuro.kernels import Moments, TopK
from dneuro.kernels.feeds import Feed, channel_look
from dneuro.store.creating import add_variables
from dneuro.store.layout import LayerPlan
from dneuro.store.results import checksums
from dneuro.store.units import Unit, doubt_statistics, fingerprint, units_folder


def record(study: Study, work: ExtractWork, executor: Executor) -> None:
    """Merge the partial statistics per channel of all units and write them, unless that was done before."""
    wanted = {plan.name: _feeds(work, plan) for plan in study.plan.layers}
    mark = fingerprint({"parts": work.fingerprints, "kernels": {k: [f.key for f in v] for k, v in wanted.items()}})
    unit = Unit(units_folder(study.store) / "extract", "statistics")
    if not any(wanted.values()) or unit.marker(mark) is not None:
        return
    work.attempt.refuse_if_overtaken("the statistics")
    numbers = np.arange(study.plan.images)
    classes = study.source.manifest.labels
    merged = merge_feeds(work, [(layer, feed) for layer, feeds in wanted.items() for feed in feeds], executor)
    made: dict[LayerPlan, xr.Dataset] = {}
    for plan in study.plan.layers:
        labels = Labels(
            dims=("channel",),
            sizes=plan.shape[:1],
            positions=dict(zip(("y", "x"), plan.shape[1:], strict=False)),
        )
        parts: list[xr.Dataset] = []
        ends: dict[str, dict[str, NDArray[Any]]] = {}
        for feed in wanted[plan.name]:
            found = merged.get((plan.name, feed.key))
            if found is None:
                continue
            if isinstance(feed.kernel, TopK):
                ends["top" if feed.kernel.largest else "bottom"] = found
            else:
                parts.append(label_moments(found, labels))
        if ends:
            parts.append(label_top_images(ends, labels, numbers, classes))
        if parts:
            made[plan] = xr.merge(parts)
    work.attempt.refuse_if_overtaken("the statistics")  # before the marker says less: it may be the later run's
    written = doubt_statistics(study.store, {plan.name: _names(taken) for plan, taken in made.items()})
    for plan, taken in made.items():
        add_variables(study.store, plan.group, taken)
        written[plan.name] |= checksums(study.store, plan.group, _names(taken))
    unit.publish({"fingerprint": mark, "checksums": written})  # also those of the layers of other jobs


def _names(taken: xr.Dataset) -> list[str]:
    return list(map(str, taken.variables))


def _feeds(work: ExtractWork, plan: LayerPlan) -> list[Feed]:
    """Return the statistics per channel that were fed; a list as long as all units have it, where runs differed."""
    feeds: list[Feed | None] = []
    units: list[tuple[tuple[str, ...], int]] | None = None
    for feed in work.feeds.get(plan.name, ()):
        if feed.look != channel_look(plan.shape):
            continue
        if isinstance(feed.kernel, TopK):
            units = keys_of_units(work, plan.name) if units is None else units
            feeds.append(_longest(feed, feed.kernel, units))
        elif isinstance(feed.kernel, Moments):
            feeds.append(feed)
    return [feed for feed in feeds if feed is not None]


def _longest(feed: Feed, kernel: TopK, units: list[tuple[tuple[str, ...], int]]) -> Feed | None:
    own = [key.removeprefix(f"{feed.look}/") for keys, _ in units for key in keys if key.startswith(f"{feed.look}/")]
    for k in sorted({kernel.k, *kernel.lengths(own)}, reverse=True):  # an earlier job's may be longer, and is not cut
        shorter = Feed(feed.look, TopK(k, largest=kernel.largest))
        if all(shorter.found_in(keys, images) for keys, images in units):
            return shorter
    return None
