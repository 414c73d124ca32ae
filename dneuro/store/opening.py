"""Opening a store: layers as labelled, dask-backed arrays, results as datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.errors import StoreError, suggest
from dneuro.store.files import Location, disk_error, locate, opened_by_zarr
from dneuro.store.remote import RemotePath
from dneuro.store.units import NOT_YET, Unit, units_folder

ACTIVATIONS = ("activation", "activation_max", "activation_mean")
PLACES = ("activation_y", "activation_x")


class Store(Mapping[str, xr.DataArray]):
    """A store that was opened for reading: a mapping of layer names to arrays.

    Parameters
    ----------
    path : str, Path or RemotePath
        A store made by dneuro: a folder, or a URL such as ``s3://bucket/acts.zarr``.

    Notes
    -----
    ``store[layer]`` is the activation as a dask-backed DataArray (image, channel[, y, x]) with the coordinates
    image, filename, label, where the network classifies prediction and correct, and status where some image is
    masked or not extracted yet. A layer of which maxima or means were kept gives those (image, channel), with the
    positions as coordinates. A layer of which only statistics were kept has no array: see `statistics`.

    A store that a job is at work on, or that it left unfinished, can be opened too: what is not there yet is NaN.
    """

    def __init__(self, path: str | Location) -> None:
        self.path = locate(path)
        if not _has_metadata(self.path):
            raise StoreError(
                f"there is no store at {self.path}", hint="dneuro run JOB makes one; dn.extract(…, out=…) too"
            )
        try:
            tree = xr.open_datatree(opened_by_zarr(self.path), engine="zarr", chunks={}, consolidated=False)
        except Exception as error:  # an array, broken JSON: there is no common error for what is no group
            raise StoreError(
                f"{self.path} is no Zarr group that can be opened: {error}",
                hint=f"dneuro verify {self.path} says what is damaged in it, and what does not belong there",
            ) from error
        self.tree: xr.DataTree = tree
        """All of it, as `xarray.open_datatree` opens it, layers and results in the order of network and job."""
        if "dneuro" not in self.tree.attrs:
            raise StoreError(f"{self.path} is a Zarr group, but not a store made by dneuro")
        results = self.tree.children.get("results")
        for branch in (self.tree.children.get("layers"), results, *_children(results)):
            if branch is not None:
                branch.children = dict(sorted(branch.children.items(), key=lambda item: _order(item[1])))

    @property
    def attrs(self) -> dict[str, Any]:
        """Provenance: network, weights, preprocessing, images, versions, fingerprints."""
        return dict(self.tree.attrs["dneuro"])

    @property
    def images(self) -> xr.Dataset:
        """What is known of each image: filename, label, status, prediction, correct."""
        return self.tree.to_dataset()

    @property
    def masked(self) -> dict[int, str]:
        """Number of each image that could not be read, or of which a number could not be stored, and the cause.

        Such a number is NaN or infinity, or beyond what the layer's dtype holds.

        Causes lie in the markers beside the store; without those (moved, or pruned) they are empty.
        """
        status = self._status
        numbers = np.flatnonzero((status != 0) & (status != NOT_YET))
        unit = self.attrs.get("identity", {}).get("images_per_unit")
        folder = units_folder(self.path) / "extract" / "images"
        causes: dict[str, str] = {}
        for number in sorted({int(image) // unit for image in numbers} if unit else ()):
            causes |= dict((Unit(folder, f"{number:05d}").read() or {}).get("masked", []))
        names = self.images["filename"].values
        return {int(image): causes.get(str(names[image]), "") for image in numbers}

    @property
    def not_extracted(self) -> NDArray[np.intp]:
        """Numbers of the images that are not extracted yet, or whose units failed and were left out.

        Stores that were begun before this was recorded have none.
        """
        return np.flatnonzero(self._status == NOT_YET)

    @property
    def _status(self) -> NDArray[np.uint8]:
        root = self.images
        none = np.zeros(root.sizes.get("image", 0), np.uint8)
        return np.asarray(root["status"].values) if "status" in root else none

    @property
    def layers(self) -> list[str]:
        """Names of all layers, also of those without activations."""
        return list(self.tree["layers"].children) if "layers" in self.tree.children else []

    @property
    def results(self) -> dict[str, dict[str, xr.Dataset]]:
        """Results of analyses, by step and layer."""
        if "results" not in self.tree.children:
            return {}
        return {
            step: {layer: _with_own_coords(node) for layer, node in group.children.items()}
            for step, group in self.tree["results"].children.items()
        }

    def statistics(self, layer: str) -> xr.Dataset:
        """Return the statistics that were taken of a layer while it was extracted."""
        dataset = self._layer(layer)
        return dataset.drop_vars([v for v in dataset.variables if "image" in dataset[v].dims])

    def __getitem__(self, layer: str) -> xr.DataArray:
        dataset = self._layer(layer)
        name = next((name for name in ACTIVATIONS if name in dataset), None)
        if name is None:
            raise StoreError(
                f"of layer {layer!r} only statistics were kept, no activations",
                hint=f"store.statistics({layer!r}), or extract again with keep: full",
            )
        array: xr.DataArray = dataset[name].assign_attrs(dataset.attrs)
        root = self.images
        attached = ["filename", "label", "prediction", "correct"]
        if self._status.any():
            attached.append("status")
        coords: dict[str, Any] = {v: ("image", root[v].values) for v in attached if v in root.variables}
        if name == "activation_max":
            coords |= {v: (dataset[v].dims, dataset[v].data) for v in PLACES if v in dataset}
        array = array.assign_coords({"image": root["image"].values, **coords})
        if "class" in root:
            array.attrs["class_names"] = [str(c) for c in root["class"].values]
        return array

    def _layer(self, layer: str) -> xr.Dataset:
        if layer not in self.layers:
            raise StoreError(f"{self.path} has no layer {layer!r}", hint=suggest(layer, self.layers))
        return self.tree["layers"].children[layer].to_dataset(inherit=False)

    def __iter__(self) -> Iterator[str]:
        return (layer for layer in self.layers if any(a in self._layer(layer) for a in ACTIVATIONS))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        left, masked = len(self.not_extracted), int((self._status != 0).sum())
        without = f", {masked - left} masked" if masked > left else ""
        without += f", {left} not extracted yet" if left else ""
        lines = [f"<dneuro store {self.path}: {self.images.sizes['image']} images{without}>"]
        for layer in self.layers:
            attrs = self._layer(layer).attrs
            lines.append(f"  {layer:24} {'×'.join(map(str, attrs.get('shape', ())))}, {attrs.get('keep', '')}")
        lines += [f"  results: {step} ({', '.join(found)})" for step, found in self.results.items()]
        return "\n".join(lines)


def _has_metadata(path: Location) -> bool:
    try:
        found = (path / "zarr.json").is_file()
    except PermissionError as error:
        raise disk_error(error, path) or error from error
    if not found and isinstance(path, RemotePath):
        path.check_bucket()
    return found


def _children(node: xr.DataTree | None) -> list[xr.DataTree]:
    return [] if node is None else list(node.children.values())


def _order(node: xr.DataTree) -> int:
    """Return where a layer or result belongs; a step belongs where its first result does."""
    own = node.attrs.get("order")
    return int(own) if own is not None else min(map(_order, node.children.values()), default=0)


def _with_own_coords(node: xr.DataTree) -> xr.Dataset:
    """Return a dataset with those of the root's coordinates that its dims have."""
    dataset = node.to_dataset(inherit=True)
    used = {dim for variable in dataset.data_vars.values() for dim in variable.dims}
    return dataset.drop_vars([name for name in dataset.coords if not set(dataset[name].dims) <= used])


def open_store(path: str | Location) -> Store:
    """Open a store; see `Store`. Reads metadata only.

    Raises
    ------
    StoreError
        If there is none at `path`.
    """
    return Store(path)
