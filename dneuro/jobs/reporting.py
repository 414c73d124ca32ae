"""The report step: what the store holds, as pages."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dneuro import events
from dneuro.errors import UsageError
from dneuro.extract.work import Attempt
from dneuro.jobs.study import Study
from dneuro.spec.steps import ReportStep
from dneuro.store.files import Location, locate, opened_by_zarr, put, read_json, remove, sizes
from dneuro.store.opening import open_store
from dneuro.store.units import Unit, fingerprint, units_folder


def report_folder(store: str | Location) -> Location:
    """Return the folder of the report that belongs to a store."""
    return locate(f"{str(store).rstrip('/')}.report")


def report(
    store: str | Location,
    *,
    out: str | Location | None = None,
    neurons: int = 12,
    images: int = 9,
    index: bool = True,
    job: dict[str, Any] | None = None,
) -> Location:
    """Write pages and pictures of everything a store holds.

    Parameters
    ----------
    store : str or Path
        The store, or its URL.
    out : str or Path, optional
        The folder, or a URL; the default is ``<store>.report``. An older report there is replaced at the end.
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
    Path or RemotePath
        Of ``index.html``; opens offline in any browser.
    """
    from dneuro.report.write import write_report

    opened = open_store(store)
    opened.tree.attrs["dneuro"] = {**opened.attrs, "store": str(store)}
    place = locate(out) if out is not None else report_folder(store)
    shown: dict[str, Any] = {
        "pictures": _pictures(opened.path), "job": job, "causes": opened.masked, "neurons": neurons, "images": images,
        "index": index,
    }  # fmt: skip
    if isinstance(place, Path):
        return write_report(opened.tree, place, **shown)
    if place.exists() and not (place / "index.html").is_file():
        raise UsageError(f"{place} exists and is not a report of dneuro, so it is not replaced", hint="another --out")
    with tempfile.TemporaryDirectory(prefix="dneuro-") as folder:
        made = Path(folder) / "report"
        write_report(opened.tree, made, **shown)
        remove(place)
        put(made, place, last="index.html")
    return place / "index.html"


def write_step(study: Study, step: ReportStep, attempt: Attempt) -> Location:
    """Run a report step, unless nothing that it shows has changed, or a later run has taken over."""
    unit, wanted = Unit(units_folder(study.store) / "report", step.id), _wanted(study, step)
    index = report_folder(study.store) / "index.html"
    if unit.marker(wanted) is not None and index.is_file():
        events.emit("finished", step.id, f"{index} is up to date", done=1, total=1, what="reports")
        return index
    attempt.refuse_if_overtaken("the report")
    unit.begin(0)
    events.emit("started", step.id, total=1, what="reports")
    job = study.job.model_dump(mode="json")
    index = report(study.store, neurons=step.neurons, images=step.images, index=step.index, job=job)
    attempt.refuse_if_overtaken("the report")
    unit.publish({"fingerprint": wanted})
    events.emit("finished", step.id, str(index), done=1, total=1, what="reports")
    return index


def is_up_to_date(study: Study, step: ReportStep) -> bool:
    """Return whether the report shows what is in the store."""
    unit = Unit(units_folder(study.store) / "report", step.id)
    return unit.marker(_wanted(study, step)) is not None and (report_folder(study.store) / "index.html").is_file()


def _wanted(study: Study, step: ReportStep) -> str:
    """Return the fingerprint of all that a report shows."""
    folder = units_folder(study.store) / "results"
    found = sorted(name for name in sizes(folder) if name.endswith(".done"))
    shown = {f"results/{name}": read_json(folder / name) for name in found}
    job = study.job.model_dump(mode="json")
    return fingerprint({"parts": study.fingerprints, "results": shown, "step": step.model_dump(), "job": job})


def _pictures(store: Location) -> Any:
    """Return a function that gives image i as the network saw it, reduced; None if no pictures were kept."""
    try:
        array = zarr.open_array(opened_by_zarr(store), path="pictures/picture", mode="r")
    except FileNotFoundError:
        return None
    length = array.chunks[0]

    @lru_cache(maxsize=8)  # the pages ask for pictures in the order of the store; a chunk is 4 MiB
    def chunk(number: int) -> NDArray[np.uint8]:
        return np.asarray(array[number * length : (number + 1) * length])

    return lambda image: chunk(image // length)[image % length]
