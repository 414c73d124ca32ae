"""Making a job's store, or opening it again and adding what is new."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr

from dneuro import events
from dneuro.errors import FingerprintError, StoreError
from dneuro.images.manifest import Manifest
from dneuro.jobs.study import Study
from dneuro.store.codecs import FIRST_CODEC
from dneuro.store.creating import add_group, create, exists, root_coords
from dneuro.store.files import Location, opened_by_zarr, remove, sweep
from dneuro.store.layout import LayerPlan
from dneuro.store.units import units_folder

VERSIONS = ("dneuro", "torch", "torchvision", "numpy", "zarr", "xarray", "dask")


def check_store(study: Study) -> bool:
    """Return whether the job's store exists already; refuse one that was made from something else.

    Raises
    ------
    FingerprintError
        With what differs.
    StoreError
        If something that is not a store is in the way.
    """
    if not exists(study.store):
        return False
    attrs = cast("dict[str, Any]", zarr.open_group(opened_by_zarr(study.store), mode="r").attrs.asdict()["dneuro"])
    before, now = attrs.get("identity", {}), study.identity
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
    """Make the store, or grow the one there is by the layers it does not have yet."""
    path, manifest = study.store, study.source.manifest
    stray = sweep(path, units_folder(path))
    if stray:
        events.emit("note", "", f"removed {stray} files that an earlier run had left half written")
    if not check_store(study):
        for stale in ("extract", "results"):  # markers of a store that is no longer there
            remove(units_folder(path) / stale)
        coords = root_coords(manifest.names, manifest.labels, study.class_names, manifest.wnids)
        create(path, coords, study.plan.root, _provenance(study), _described(study))
    for plan in study.plan.layers:
        if not _layer_attrs(path, plan.name):
            arrays = plan.arrays(study.plan.images, study.plan.unit)
            add_group(path, plan.group, _layer_coords(study, plan), arrays)


def _described(study: Study) -> dict[str, dict[str, Any]]:
    """Return what an array says of itself besides its meaning: the network's classes need not be the images'."""
    named = study.predictions and study.predicted_names is not None
    return {"prediction": {"class_names": study.predicted_names}} if named else {}


def _layer_attrs(path: Location, layer: str) -> dict[str, Any] | None:
    try:
        return dict(zarr.open_group(opened_by_zarr(path), path=f"layers/{layer}", mode="r").attrs)
    except FileNotFoundError:
        return None


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
