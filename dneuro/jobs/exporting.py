"""A store's results as files that other programs read: tables, netCDF, figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.errors import StoreError, UsageError
from dneuro.jobs.tabulating import tables
from dneuro.store.files import Location, locate
from dneuro.store.netcdf import write_netcdf
from dneuro.store.opening import Store, open_store

MARK = "dneuro-export.json"
"""What tells a folder of exported files from any other; only such a folder is replaced."""
TABLES, DATA, FIGURES = "tables", "netcdf", "figures"


def export(store: str | Location, *, to: str | Path | None = None, figures: bool = True) -> Path:
    """Write what a store's steps found out as files: tables as Parquet and CSV, datasets as netCDF, figures.

    Parameters
    ----------
    store : str or Path
        The store, or its URL.
    to : str or Path, optional
        The folder; the default is ``<store>.export`` here. An older export there is replaced at the end.
    figures : bool
        Whether the figures of the report are drawn, as PNG (200 per inch) and SVG.

    Returns
    -------
    Path
        The folder::

            tables/<layer>-channels.parquet, .csv     a row per channel: every number that some step has of it
            tables/<layer>-neurons.parquet, .csv      the same per neuron (channel, y, x)
            tables/<layer>-<step>-<dim>s.parquet …    a row per component, direction, cluster …
            tables/<step>-layers.parquet …            a row per layer, of steps that set layers beside each other
            tables/images.parquet, .csv               file, class, prediction
            netcdf/<step>-<layer>.nc                  each result whole, labelled: netCDF 3 with 64-bit offsets
            figures/<layer>-<step>-<what>.png, .svg   and figures/captions.csv, what each shows
            dneuro-export.json                        provenance, and what was left out

    Raises
    ------
    UsageError
        If `to` exists and is no export, or is no folder on this machine.
    StoreError
        If there is no such store.

    Notes
    -----
    **Cost**: reads every result once, none of the activations. A result that is too large for netCDF 3 (a variable of 2
    GiB) stays in the store, which is Zarr, and is named in ``dneuro-export.json``; a warning says so.
    """
    from dneuro.report.write import swapped_in

    opened = open_store(store)
    place = locate(to) if to is not None else Path(f"{str(store).rstrip('/').rpartition('://')[2]}.export")
    if not isinstance(place, Path):
        raise UsageError(f"{place} is no folder on this machine, where exports go", hint="to='results', then copy it")
    if place.exists() and any(place.iterdir()) and not (place / MARK).is_file():
        raise UsageError(f"{place} exists and is no export of dneuro, so it is not replaced", hint="another --to")
    if left := len(opened.not_extracted):
        said = f"{left} of {opened.images.sizes['image']} images are not extracted yet, and in no number"
        events.emit("warning", "export", f"{said}: dneuro verify {store} says what is missing")
    with swapped_in(place) as folder:
        left_out = _write_data(opened, folder / DATA)
        _write_tables(opened, folder / TABLES)
        if figures:
            _write_figures(opened, folder)
        about: dict[str, Any] = {"store": str(store), "left_out": left_out, **opened.attrs}
        text = json.dumps(about, indent=1, default=str, ensure_ascii=False) + "\n"
        (folder / MARK).write_text(text, encoding="utf-8")
    return place


def _write_data(store: Store, folder: Path) -> dict[str, str]:
    """Write every result; return which could not be, and why."""
    from dneuro.report.contents import file_names

    folder.mkdir()
    found = {(step, layer): data for step, layers in store.results.items() for layer, data in layers.items()}
    left_out = {}
    names = file_names([f"{step}-{layer}" for step, layer in found])
    for ((step, layer), data), name in zip(found.items(), names, strict=True):
        try:
            write_netcdf(data, folder / f"{name}.nc")
        except StoreError as error:
            left_out[f"{step}/{layer}"] = error.message
            events.emit("warning", "export", f"{step} of {layer} is left out: {error.message}")
    return left_out


def _write_tables(store: Store, folder: Path) -> None:
    from dneuro.report.contents import file_names

    folder.mkdir()
    found = dict(tables(store))
    for (_, table), name in zip(found.items(), file_names(found), strict=True):
        frame = table.frame()
        frame.to_parquet(folder / f"{name}.parquet", index=False)
        frame.to_csv(folder / f"{name}.csv", index=False)


def _write_figures(store: Store, folder: Path) -> None:
    from dneuro.report.write import write_figures

    plates = write_figures(store.tree, folder)
    with (folder / FIGURES / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(("file", "caption"))
        lines.writerows((Path(plate.src).name, plate.caption) for plate in plates)
