"""Tables of a store's results: a row per channel, neuron, component or image, a column per number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dneuro.store.opening import Store

if TYPE_CHECKING:
    import pandas as pd

FEATURES = (("channel",), ("channel", "y", "x"), ("neuron",), ("channel", "y"))
"""Dims of what a neuron table has a row for."""

_PLURALS = {"chosen": "chosen", "leaf": "leaves"}
"""Of dims, for the names of tables, where it is not an s."""


@dataclass
class Table:
    """A table in the making: arrays over the same dims, by the name of their column."""

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    coords: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """Return the table, one row per element, its place along each dim first."""
        import pandas as pd

        places = np.meshgrid(*(np.arange(size) for size in self.sizes), indexing="ij")
        said = {
            dim: np.asarray(self.coords[dim])[place.ravel()] if dim in self.coords else place.ravel()
            for dim, place in zip(self.dims, places, strict=True)
        }
        flat = {name: np.asarray(values).reshape(-1) for name, values in self.columns.items()}
        return pd.DataFrame({**said, **flat})


def tables(store: Store) -> Iterator[tuple[str, Table]]:
    """Yield the name and content of every table of a store, layer by layer, then that of the images.

    Per layer one table of its channels and one of its neurons, which bring together what all steps found out of each:
    columns are called ``<step>.<variable>``, and what the extraction recorded ``<variable>``. Of what has another dim
    (component, direction, group, …) one table per step; of a step over several layers one with a row for each. What has
    two such dims is no table: it is in the netCDF files.
    """
    results = store.results
    for layer in dict.fromkeys([*store.layers, *(name for step in results.values() for name in step)]):
        neurons: dict[tuple[str, ...], Table] = {}
        own: dict[str, Table] = {}
        parts: dict[str, xr.Dataset] = {"": store.statistics(layer)} if layer in store.layers else {}
        parts |= {f"{step}.": found[layer] for step, found in results.items() if layer in found}
        for lead, data in parts.items():
            for name in sorted(map(str, data.data_vars)):  # a store lists them in any order
                array = data[name]
                dims = tuple(map(str, array.dims))
                if dims in FEATURES:
                    _add(neurons, dims, f"{lead}{name}", array)
                elif len(dims) == 1 and dims[0] not in ("image", "class") and lead:
                    _add(own, f"{lead}{dims[0]}", name, array)
        for dims, table in neurons.items():
            yield f"{layer}-{'channels' if dims == ('channel',) else 'neurons'}", table
        lead = "" if all(data.attrs.get("layer") == "" for data in parts.values()) else f"{layer}-"
        for key, table in own.items():
            step, _, dim = key.rpartition(".")
            yield f"{lead}{step.replace('.', '-')}-{_PLURALS.get(dim, f'{dim}s')}", table
    yield "images", _images(store)


def _add(tables: dict[Any, Table], key: Any, column: str, array: xr.DataArray) -> None:
    dims = tuple(map(str, array.dims))
    table = tables.setdefault(key, Table(dims, array.shape))
    if table.sizes == array.shape:
        table.columns[column] = array.values
        table.coords |= {dim: array.coords[dim].values for dim in dims if dim in array.coords}


def _images(store: Store) -> Table:
    root = store.images
    columns: Mapping[str, Any] = {
        str(name): root[name].values for name in root.variables if root[name].dims == ("image",) and name != "image"
    }
    names = [str(name) for name in root["class"].values] if "class" in root else []
    found = Table(("image",), (root.sizes["image"],), {"image": root["image"].values}, dict(columns))
    if names and "label" in root:
        known = root["label"].values
        found.columns["class"] = np.array([names[i] if 0 <= i < len(names) else "" for i in known], dtype=object)
    return found
