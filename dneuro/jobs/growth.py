"""Making a job's store, or opening it again and adding what is new."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr

from dneuro import events
from dneuro.errors import FingerprintError, StoreError
from dneuro.extract.work import IMAGES
from dneuro.images.manifest import Manifest
from dneuro.jobs.study import Study
from dneuro.store import metadata
from dneuro.store.codecs import FIRST_CODEC
from dneuro.store.creating import add_group, create, create_arrays, exists, require_group, root_coords
from dneuro.store.files import Location, opened_by_zarr, remove, sweep, to_disk
from dneuro.store.layout import ArrayPlan, LayerPlan
from dneuro.store.units import Unit, any_marker, units_folder, withdraw_statistics

VERSIONS = ("dneuro", "torch", "torchvision", "numpy", "zarr", "xarray", "dask")


def check_store(study: Study) -> bool:
    """Return whether the job's store exists already; refuse one that was made from something else.

    Raises
    ------
    FingerprintError
        With what differs.
    StoreError
        If something that is not a store is in the way, or a group that is no layer of it; or metadata were replaced.
    """
    if not exists(study.store):
        return False
    before, now = _identity(study.store), study.identity
    if study.weights_sha256 is None:  # still to be trained; compared once they are
        before, now = ({**both, "weights": None} for both in (before, now))
    differing = [
        f"{key}: {_short(before.get(key))} → {_short(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if before.get("images") != now["images"]:
        differing = [f"images: {_other_images(study)}", *(text for text in differing if not text.startswith("images:"))]
    for plan in study.plan.layers:
        kept = _layer_attrs(study.store, plan.name)
        if kept and (kept["keep"], kept["dtype"]) != (plan.keep, plan.dtype):
            differing.append(f"layer {plan.name}: {kept['keep']} {kept['dtype']} → {plan.keep} {plan.dtype}")
        packed = kept.get("codec", FIRST_CODEC) if kept else plan.codec
        if study.job.extract.codec not in (None, packed):
            differing.append(f"layer {plan.name}: codec {packed} → {plan.codec}")
    if differing:
        raise FingerprintError(
            f"{study.store} was made from something else than the job asks for: " + "; ".join(differing),
            hint="give the job another store:, or move the old one and its .units folder away",
        )
    return True


def _other_images(study: Study) -> str:
    """Return what is other about the images than when the store was made."""
    place, now = units_folder(study.store) / "manifest.npz", study.source.manifest
    try:
        before = Manifest.from_bytes(place.read_bytes(), str(place))
    except (FileNotFoundError, StoreError):
        return "another list"
    if len(before) != len(now):
        first = next((i for i, (a, b) in enumerate(zip(before.names, now.names, strict=False)) if a != b), None)
        where = "" if first is None else f", the first other one is {first}: {before.names[first]} → {now.names[first]}"
        return f"{len(before)} → {len(now)}{where}"
    for what, a, b in (
        ("name", before.names, now.names),
        ("content", before.identity, now.identity),
        ("label", before.labels, now.labels),
    ):
        other = np.flatnonzero(a != b)
        if len(other):
            first = int(other[0])
            return f"{what} of {len(other)}, first {first} ({now.names[first]}): {a[first]} → {b[first]}"
    return "other names of classes"


def open_or_create(study: Study) -> None:
    """Make the store, or grow the one there is by what it does not have: layers that are new, or that somebody removed.

    What is removed from a store is made again where the job wants it: its markers are withdrawn first.
    """
    path, manifest = study.store, study.source.manifest
    stray = sweep(path, units_folder(path))
    if stray:
        events.emit("note", "", f"removed {stray} files that an earlier run had left half written")
    if not check_store(study):
        for stale in ("extract", "results", "metadata", "quarantine"):  # of a store that is no longer there
            remove(units_folder(path) / stale)
        coords = root_coords(manifest.names, manifest.labels, study.class_names, manifest.wnids)
        create(path, coords, study.plan.root, _provenance(study), _described(study))
    else:
        metadata.remember_older(path)
    for holder in dict.fromkeys(("layers", "results", *(array.group for array in study.plan.root if array.group))):
        if not (path / holder / "zarr.json").is_file():
            require_group(path, holder)
    lost = missing_nodes(study)
    for part, nodes in lost.items():
        _withdraw(study, part, nodes)
    _add_image_arrays(study, [array for array in study.plan.root if array.path in lost.get(IMAGES, ())])
    for plan in study.plan.layers:
        if plan.name in lost:
            add_group(path, plan.group, _layer_coords(study, plan), plan.arrays(study.plan.images, study.plan.unit))
            metadata.remember(path, plan.group)
    for part in study.fingerprints:
        if not metadata.is_known(path, _group(part)) and not _is_marked(path, part):  # later they may be damaged
            metadata.remember(path, _group(part))


def missing_nodes(study: Study) -> dict[str, list[str]]:
    """Return which groups and arrays of the extraction are not in its store, by part; a new layer lacks them all.

    Arrays of the images count that were written once: not all that are written now were in older stores.
    """
    marker = any_marker(units_folder(study.store) / "extract" / IMAGES)
    written = [array for array in study.plan.root if marker is None or array.name in marker.get("checksums", {})]
    wanted = {IMAGES: [array.path for array in written]}
    for plan in study.plan.layers:
        arrays = plan.arrays(study.plan.images, study.plan.unit)
        wanted[plan.name] = [plan.group, *(array.path for array in arrays)]
    missing = {
        part: [node for node in nodes if not (study.store / node / "zarr.json").is_file()]
        for part, nodes in wanted.items()
    }
    return {part: nodes for part, nodes in missing.items() if nodes}


def began_with(store: Location) -> int | None:
    """Return how many bytes a worker had for pictures when a store was begun; None if no unit of it is done yet."""
    folder = units_folder(store) / "extract"
    known = Unit(folder, "pictures").read()
    if known is None or not any(True for _ in folder.glob("*/*.done")):
        return None
    return int(known["picture_bytes"])


def _withdraw(study: Study, part: str, nodes: list[str]) -> None:
    """Take away the markers of a part that is not whole any more: what is created now is empty."""
    if not _is_marked(study.store, part):
        return
    units = units_folder(study.store) / "extract"
    partials_answer = any(plan.name == part and plan.keep == "stats" for plan in study.plan.layers)
    if part != IMAGES:
        withdraw_statistics(study.store, part)
    if not partials_answer:
        remove(units / part)
    again = "its statistics are written again" if partials_answer else "its units are extracted again"
    events.emit("note", "extract", f"{', '.join(nodes)} of the store is not there any more: {again}")


def _add_image_arrays(study: Study, arrays: list[ArrayPlan]) -> None:
    """Create arrays of the root that are not there."""
    if not arrays:
        return
    for array in arrays:
        remove(study.store / array.path)
    group = zarr.open_group(opened_by_zarr(study.store), mode="r+")
    create_arrays(group, arrays)
    for name, said in _described(study).items():
        group[name].attrs.update(said)
    if isinstance(study.store, Path):
        to_disk(*(study.store / array.path / "zarr.json" for array in arrays))
    if metadata.is_known(study.store, ""):
        metadata.remember(study.store, "", [array.path for array in arrays])


def _group(part: str) -> str:
    return "" if part == IMAGES else f"layers/{part}"


def _is_marked(path: Location, part: str) -> bool:
    """Return whether a marker says that some unit of a part is done."""
    return any_marker(units_folder(path) / "extract" / part) is not None


def _described(study: Study) -> dict[str, dict[str, Any]]:
    """Return what an array says of itself besides its meaning: the network's classes need not be the images'."""
    named = study.predictions and study.predicted_names is not None
    return {"prediction": {"class_names": study.predicted_names}} if named else {}


def _identity(path: Location) -> dict[str, Any]:
    """Return what a store says that it was made from."""
    said = zarr.open_group(opened_by_zarr(path), mode="r").attrs.asdict()["dneuro"]
    found = said.get("identity", {}) if isinstance(said, dict) else None
    if not isinstance(found, dict):
        raise StoreError(
            f"the attributes of {path} do not say what it was made from: {_short(said)[:80]}",
            hint=f"dneuro verify {path} --repair"
            if metadata.is_known(path, "")
            else "give the job another store:, or move this one and its .units folder away",
        )
    return cast("dict[str, Any]", found)


def _layer_attrs(path: Location, layer: str) -> dict[str, Any] | None:
    """Return what a store says of a layer, and so what was kept of it; None if there is none."""
    try:
        found = dict(zarr.open_group(opened_by_zarr(path), path=f"layers/{layer}", mode="r").attrs)
    except FileNotFoundError:
        return None
    except Exception as error:  # broken JSON, an array: zarr has no common error for what is no group
        raise StoreError(
            f"the metadata of layers/{layer} in {path} cannot be read: {error}",
            hint=f"dneuro verify {path} --repair, then run the job again",
        ) from error
    if {"keep", "dtype"} <= found.keys():
        return found
    lost = _is_marked(path, layer) or metadata.is_known(path, f"layers/{layer}")
    raise StoreError(
        f"the attributes of layers/{layer} in {path} do not say what was kept of the layer: "
        + ("they were replaced" if lost else "the job did not put it there"),
        hint=f"dneuro verify {path} --repair, then run the job again"
        if lost
        else f"move {path}/layers/{layer} away, or give the job another store:",
    )


def _layer_coords(study: Study, plan: LayerPlan) -> xr.Dataset:
    """Return what each layer repeats of the root, for readers without dneuro, and what is known of it."""
    manifest, layer = study.source.manifest, study.layers[plan.name]
    field = layer.field
    coords = root_coords(manifest.names, manifest.labels, []) if plan.keep != "stats" else xr.Dataset()
    return coords.assign_attrs(
        layer=plan.name,
        order=list(study.layers).index(plan.name),
        kind=layer.kind,
        network_dims=list(layer.dims or ()),
        keep=plan.keep,
        dtype=plan.dtype,
        codec=plan.codec,
        shape=list(plan.shape),
        receptive_field=None
        if field is None
        else {"size": list(field.size), "stride": list(field.stride), "start": list(field.start)},
        input_size=list(study.input_shape[1:]),
    )


def _provenance(study: Study) -> dict[str, Any]:
    job, manifest = study.job, study.source.manifest
    return {
        "job": job.name,
        "network": job.network.name,
        "weights": job.network.weights if job.train is None else "trained by the job",
        "device": job.network.device,
        "memory_format": study.memory_format,
        "precision": job.network.precision,
        "compile": job.network.compile,
        "notes": study.notes,
        "weights_sha256": study.weights_sha256,
        "trained": None if job.train is None else job.train.model_dump(mode="json", exclude={"name", "workers"}),
        "preprocessing": study.preprocessing.model_dump(mode="json"),
        "input_shape": list(study.input_shape),
        "images": {**job.images.model_dump(mode="json"), "fingerprint": manifest.fingerprint()},
        "identity": study.identity,
        "fingerprint": study.fingerprints["images"],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
    }  # fmt: skip


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
