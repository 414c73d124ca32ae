"""Making the hierarchy, and growing it, so that it is never seen half made."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from dneuro.errors import NotAStoreError
from dneuro.store.codecs import CODECS
from dneuro.store.files import Location, in_the_making, opened_by_zarr, put, remove, to_disk
from dneuro.store.layout import REGISTRY, ArrayPlan
from dneuro.store.metadata import release, remember
from dneuro.store.remote import RemotePath


def exists(path: Location) -> bool:
    """Return whether there is a dneuro store at `path`.

    Raises
    ------
    NotAStoreError
        If something else is there.
    StoreError
        If the bucket of a URL is not there, or may not be used.
    """
    if isinstance(path, RemotePath):
        path.check_bucket()
    if not path.exists() or _is_half(path):
        return False
    if (path / "zarr.json").is_file():
        try:
            if "dneuro" in zarr.open_group(opened_by_zarr(path), mode="r").attrs:
                return True
        except Exception as error:  # an array, broken JSON: zarr has no common error for what is no group
            raise NotAStoreError(
                f"{path} is no Zarr group that can be opened, so no store made by dneuro: {error}",
                hint="give another path as store:, or move this one and its .units folder away",
            ) from error
    raise NotAStoreError(
        f"{path} exists and is not a store made by dneuro; it is left as it is", hint="give another path as store:"
    )


def create(
    path: Location,
    coords: xr.Dataset,
    arrays: Iterable[ArrayPlan],
    attrs: Mapping[str, Any],
    described: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Create a store with its coordinates and its arrays, all at once.

    Parameters
    ----------
    path : Path or RemotePath
        Where; must not exist.
    coords : Dataset
        The coordinates of the root.
    arrays : iterable of ArrayPlan
        Arrays of the root and of its groups, created empty.
    attrs : mapping
        Provenance, JSON-able; becomes ``attrs["dneuro"]``.
    described : mapping, optional
        Of some arrays, by path, more attributes than unit and meaning.
    """
    with in_the_making(path) as temporary:
        write_dataset(temporary, "", coords.assign_attrs(dneuro=dict(attrs)))
        group = zarr.open_group(temporary, mode="r+")
        group.require_group("layers")
        group.require_group("results")
        create_arrays(group, arrays)
        for name, said in (described or {}).items():
            group[name].attrs.update(dict(said))
        if isinstance(path, RemotePath):
            _note(path).write_bytes(b"")
            put(temporary, path)
            _note(path).unlink(missing_ok=True)
        else:
            to_disk(temporary)
            temporary.rename(path)


def add_group(path: Location, name: str, coords: xr.Dataset, arrays: Iterable[ArrayPlan]) -> None:
    """Add a group with its coordinates and empty arrays, all at once; an older one of this name is replaced."""
    arrays = list(arrays)
    with in_the_making(path) as temporary:
        write_dataset(temporary, name, coords)
        create_arrays(zarr.open_group(temporary, mode="r+"), arrays)
        require_group(path, name.rpartition("/")[0])
        target = path / name
        if isinstance(target, RemotePath):
            remove_group(path, name)
            put(temporary / name, target)
            return
        to_disk(temporary / name)
        if target.exists():  # moved away first: a kill while files are being removed leaves no half of a group
            target.rename(temporary / "replaced")
        (temporary / name).rename(target)


def require_group(path: Location, name: str) -> None:
    """Have a group in a store, on the disk when this returns."""
    zarr.open_group(opened_by_zarr(path), mode="r+").require_group(name)
    if isinstance(path, Path):
        to_disk(path / name / "zarr.json")


def remove_group(path: Location, name: str) -> None:
    """Remove a group with all that is in it; its metadata first, so that it is never seen half there."""
    (path / name / "zarr.json").unlink(missing_ok=True)
    remove(path / name)


def _note(path: RemotePath) -> RemotePath:
    """Return the object that is there while a store is being created: what lies there is a half of ours."""
    return RemotePath(f"{path}.units/creating")


def _is_half(path: Location) -> bool:
    return isinstance(path, RemotePath) and _note(path).is_file()


def adopt_group(path: Path, name: str, written: Path, attrs: Mapping[str, Any]) -> None:
    """Move a group that lies on the same file system into the store; an older one of this name is replaced."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        zarr.open_group(written, mode="r+").attrs.update(dict(attrs))
        to_disk(written)
        target = path / name
        require_group(path, name.rpartition("/")[0])
        if target.exists():
            target.rename(temporary)
        written.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def create_arrays(group: zarr.Group, arrays: Iterable[ArrayPlan]) -> None:
    """Create arrays below `group`, each with its dims, unit and meaning, and `ArrayPlan.blank` in all of it."""
    for plan in arrays:
        meaning = REGISTRY[plan.name]
        group.require_group(plan.group) if plan.group else None
        group.create_array(
            plan.path,
            shape=plan.shape,
            chunks=plan.chunks,
            dtype=plan.dtype,
            dimension_names=plan.dims,
            compressors=CODECS[plan.codec],
            fill_value=plan.blank,
            attributes={"units": meaning.unit, "long_name": meaning.text},
        )


def write_dataset(path: Path, group: str, dataset: xr.Dataset) -> None:
    """Write a small dataset as a group; text becomes variable-length UTF-8, which Zarr v3 specifies."""
    renewed = _with_text(dataset)
    renewed.to_zarr(path, group=group or None, mode="a" if path.exists() else "w", zarr_format=3, consolidated=False)


def _with_text(dataset: xr.Dataset) -> xr.Dataset:
    renewed = dataset.copy()
    for name, variable in renewed.variables.items():
        if variable.dtype.kind in "UO":
            text = np.asarray(variable.values, dtype=np.dtypes.StringDType())
            renewed[name] = (variable.dims, text, variable.attrs)
    return renewed


def root_coords(
    filenames: NDArray[Any], labels: NDArray[np.int64], class_names: Iterable[str], wnids: Iterable[str] = ()
) -> xr.Dataset:
    """Return the coordinates of the root; `wnids`, if there are any, are one per class."""
    names = list(class_names)
    coords: dict[str, Any] = {
        "image": np.arange(len(filenames)),
        "filename": ("image", np.asarray(filenames)),
        "label": ("image", labels),
    }
    ids = list(wnids)
    if names:
        coords["class"] = np.asarray(names, dtype=object)
    if ids:
        coords["wnid"] = ("class", np.asarray(ids, dtype=object))
    described = xr.Dataset(coords=coords)
    for name in coords:
        described[name].attrs = {"units": REGISTRY[name].unit, "long_name": REGISTRY[name].text}
    return described


def add_variables(path: Location, group: str, dataset: xr.Dataset) -> None:
    """Write variables into a group that exists; older ones of these names are replaced."""
    store, names = opened_by_zarr(path), list(map(str, dataset.variables))
    release(path, group, names)
    target = zarr.open_group(store, path=group, mode="r+")
    for name in names:
        if name in target:
            del target[name]
    kept = _with_text(dataset.drop_attrs(deep=False)).assign_attrs(target.attrs.asdict())  # else they are replaced
    kept.to_zarr(store, group=group or None, mode="a", zarr_format=3, consolidated=False)
    if isinstance(path, Path):
        to_disk(path / group / "zarr.json", *(path / group / name for name in names))
    remember(path, group, names)
