"""Write the report of a store: a folder of pages that opens offline."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.errors import UsageError
from dneuro.report import beside, contents, pages, sections
from dneuro.report.blocks import Plate, Studio
from dneuro.report.grids import Gallery
from dneuro.report.neurons import pages as neuron_pages
from dneuro.report.rendering import GENERATOR, copy


def write_report(
    tree: xr.DataTree,
    out: Path,
    *,
    pictures: Callable[[int], NDArray[np.uint8]] | None,
    job: dict[str, Any] | None = None,
    causes: Mapping[int, str] | None = None,
    neurons: int = 12,
    images: int = 9,
    index: bool = True,
) -> Path:
    """Write pages and figures of everything a store holds, and return the path of ``index.html``.

    The folder needs no network and no server. It is written beside `out` and takes its place when it is
    complete, so that an older report there survives a failure.

    Parameters
    ----------
    tree : DataTree
        A store, opened with ``xarray.open_datatree``; any part of it may be missing. Values are read as they
        are shown: of lists of top images only the rows shown, of activations nothing.
    out : Path
        Folder of the report; replaced if it is one, refused if it holds anything else.
    pictures : callable, optional
        ``pictures(i)`` is image i as the network saw it: uint8 (height, width, channel), channel 1 or 3. An
        image for which it raises a DneuroError is shown by name only. None: a report without pictures.
    job : dict, optional
        The job as its file says it; shown on the first page, and its order is that of layers and steps.
    causes : mapping of int to str, optional
        Why images could not be read, by their numbers.
    neurons : int
        Channels (or neurons) per list of top images, those of largest variance, and components per SVD.
    images : int
        Images shown at either end of a list.
    index : bool
        Whether every channel of every layer gets a place on a page of its own, and an index that finds it by
        layer and number, filters and sorts (the only page that needs JavaScript).

    Raises
    ------
    UsageError
        If `out` exists and is not a report, or `neurons` or `images` is not positive.
    ArrayError
        If ``pictures(i)`` returns something that is not a picture.

    Notes
    -----
    **Cost**: two reads of the lists of top images, a thousand channels at a time, and one of the other results
    shown. Every picture shown is read and written once, in the order of the store, whatever number of channels
    show it (some 4 kB per photograph). With an index, some 10 kB of HTML and 0.1 kB of index per channel; no
    page or file of the index grows beyond 300 kB with the number of channels or images: they become more. A
    similarity or co-occurrence map of more than 20 million values is thinned out evenly before it is read, and
    says so.
    """
    for name, count in (("neurons", neurons), ("images", images)):
        if count < 1:
            raise UsageError(f"a report with {name}={count} shows nothing", hint=f"{name}=1 or more")
    out = Path(out)
    check_replaceable(out)
    with swapped_in(out) as folder:
        found = contents.read(tree, job, causes)
        rosters = neuron_pages.rosters(found) if index else {}
        paging = {name: neuron_pages.paging(roster, images) for name, roster in rosters.items()}
        studio = Studio(folder, found, Gallery(folder, pictures), neurons, images, paging)
        neuron_pages.write_pictures(studio, rosters)
        pages.write(studio, job)
        if rosters:
            neuron_pages.write(studio, rosters, pages.shared(studio, job))
        copy(folder, "style.css")
    return out / "index.html"


def write_figures(tree: xr.DataTree, folder: Path) -> list[Plate]:
    """Draw the figures of all results of a store, as PNG and SVG, into ``figures/`` of a folder.

    Parameters
    ----------
    tree : DataTree
        A store, as `write_report` takes it.
    folder : Path
        Where ``figures`` goes.

    Returns
    -------
    list of Plate
        Each with the path of its PNG, relative to `folder`, and its caption; the SVG has the same name.
    """
    found = contents.read(tree)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    studio = Studio(folder, found, Gallery(folder, None), neurons=1, shown=1, vector=True)
    plates = [plate for table in beside.tables(studio) for plate in table.plates]
    for layer in found.layers:
        for section in sections.build(layer, studio):
            plates += [plate for block in section.blocks for plate in block.plates]
    return plates


def check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that is not a report: its contents would be gone."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    index = out / "index.html"
    if not (index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise UsageError(
            f"{out} exists and is not a report of dneuro, so it is not replaced",
            hint=f"write to another folder, for example {out.with_name(out.name + '.report')}",
        )


@contextmanager
def swapped_in(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out` that takes its place at the end, or goes away on a failure."""
    token = uuid.uuid4().hex[:8]
    fresh, old = (out.with_name(f".{out.name}.{token}.{state}") for state in ("new", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh.mkdir()
    try:
        yield fresh
        replaced = out.exists()
        if replaced:
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if replaced:
                old.rename(out)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
