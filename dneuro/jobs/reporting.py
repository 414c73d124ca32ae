"""The report step: what the store holds, as pages."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dneuro import events
from dneuro.jobs.study import Study
from dneuro.spec.steps import ReportStep
from dneuro.store.files import read_json
from dneuro.store.opening import open_store
from dneuro.store.units import Unit, fingerprint, units_folder


def report_folder(store: str | Path) -> Path:
    """Return the folder of the report that belongs to a store."""
    return Path(f"{str(store).rstrip('/')}.report")


def report(
    store: str | Path,
    *,
    out: str | Path | None = None,
    neurons: int = 12,
    images: int = 9,
    index: bool = True,
    job: dict[str, Any] | None = None,
) -> Path:
    """Write pages and pictures of everything a store holds.

    Parameters
    ----------
    store : str or Path
        The store.
    out : str or Path, optional
        The folder; the default is ``<store>.report``. An older report there is replaced at the end.
    neurons : int
        Channels shown per layer.
    images : int
        Images shown per channel and per component, at either end.
    index : bool
        Whether every channel of every layer gets a place on a page, and an index that finds and sorts them.
    job : dict, optional
        The job, as its file says it, to be shown.

    Returns
    -------
    Path
        Of ``index.html``; opens offline in any browser.
    """
    from dneuro.report.write import write_report

    opened = open_store(store)
    opened.tree.attrs["dneuro"] = {**opened.attrs, "store": str(store)}
    out = Path(out) if out is not None else report_folder(store)
    return write_report(
        opened.tree, out, pictures=_pictures(opened.path), job=job, neurons=neurons, images=images,
        index=index,
    )  # fmt: skip


def write_step(study: Study, step: ReportStep) -> Path:
    """Run a report step, unless nothing that it shows has changed."""
    units = units_folder(study.store)
    shown = {str(path.relative_to(units)): read_json(path) for path in sorted((units / "results").glob("*/*.done"))}
    job = study.job.model_dump(mode="json")
    wanted = fingerprint({"parts": study.fingerprints, "results": shown, "step": step.model_dump(), "job": job})
    unit = Unit(units / "report", step.id)
    index = report_folder(study.store) / "index.html"
    if unit.marker(wanted) is not None and index.is_file():
        events.emit("finished", step.id, f"{index} is up to date", done=1, total=1, what="reports")
        return index
    unit.begin(0)
    events.emit("started", step.id, total=1, what="reports")
    index = report(study.store, neurons=step.neurons, images=step.images, index=step.index, job=job)
    unit.publish({"fingerprint": wanted})
    events.emit("finished", step.id, str(index), done=1, total=1, what="reports")
    return index


def _pictures(store: Path) -> Any:
    """Return a function that gives image i as the network saw it, reduced; None if no pictures were kept."""
    try:
        array = zarr.open_array(store, path="pictures/picture", mode="r")
    except FileNotFoundError:
        return None
    length = array.chunks[0]

    @lru_cache(maxsize=8)  # the pages ask for pictures in the order of the store; a chunk is 4 MiB
    def chunk(number: int) -> NDArray[np.uint8]:
        return np.asarray(array[number * length : (number + 1) * length])

    return lambda image: chunk(image // length)[image % length]
