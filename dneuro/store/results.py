"""Results of analyses: written whole, marked, and redone only when what they were computed from has changed."""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dneuro.store.creating import add_group, adopt_group
from dneuro.store.files import Location, opened_by_zarr, remove
from dneuro.store.metadata import remember
from dneuro.store.units import Unit, units_folder


def checksums(store: Location, group: str, names: Iterable[str] | None = None) -> dict[str, int]:
    """Return the CRC-32 of the content of arrays of a group, all or those named, as they lie in the store."""
    opened = zarr.open_group(opened_by_zarr(store), path=group, mode="r")
    wanted = sorted(opened.array_keys()) if names is None else sorted(names)
    return {name: _checksum(opened[name]) for name in wanted}  # type: ignore[arg-type]


def _checksum(array: zarr.Array[Any]) -> int:
    found = 0
    step = max(1, array.chunks[0]) if array.ndim else 1
    for start in range(0, array.shape[0] if array.ndim else 1, step):
        values = np.asarray(array[start : start + step] if array.ndim else array[()])
        if values.dtype.kind in "OUT":
            data = "\0".join(map(str, values.ravel().tolist())).encode("utf-8", "surrogatepass")
        else:
            data = np.ascontiguousarray(values).tobytes()
        found = zlib.crc32(data, found)
    return found


def unit(store: Location, step: str, layer: str) -> Unit:
    """Return the unit that one step's result for one layer is."""
    return Unit(units_folder(store) / "results" / step, layer)


@contextlib.contextmanager
def state(store: Location, step: str, part: str, fingerprint: str) -> Iterator[Location]:
    """Give the file in which an iterative analysis keeps its state until its result is written.

    It carries the fingerprint in its name: the state of something else is not gone on from. When the result is
    there, the states of this part are removed; on an error they stay.
    """
    folder = units_folder(store) / "results" / step / f"{part}.state"
    yield folder / f"{fingerprint[:16]}.npz"
    remove(folder)


def workplace(store: Location, step: str, layer: str) -> Path | None:
    """Return where a result that is too large for memory is written before it is adopted; None if no disk is near."""
    folder = units_folder(store)
    return folder.absolute() / "results" / step / f"{layer}.partial" if isinstance(folder, Path) else None


def clear(workplace: Path) -> None:
    """Make room in a workplace: what a killed run has left there is removed."""
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.parent.mkdir(parents=True, exist_ok=True)


def adopt(store: Path, step: str, layer: str, written: Path, fingerprint: str, attrs: dict[str, Any]) -> None:
    """Take a group that was written in the `workplace` as ``/results/<step>/<layer>``, and mark it done."""
    unit(store, step, layer).begin(0)
    adopt_group(store, f"results/{step}/{layer}", written, {**attrs, "fingerprint": fingerprint})
    _mark(store, step, layer, fingerprint)


def write(store: Location, step: str, layer: str, result: xr.Dataset, fingerprint: str, attrs: dict[str, Any]) -> None:
    """Write a result into ``/results/<step>/<layer>`` and mark it done.

    Parameters
    ----------
    store : Path or RemotePath
        The store.
    step, layer : str
        Where it goes.
    result : Dataset
        A result; if its images are fewer than the store's, give it all of them first.
    fingerprint : str
        Of what it was computed from.
    attrs : dict
        More attributes, JSON-able.
    """
    unit(store, step, layer).begin(0)
    add_group(store, f"results/{step}/{layer}", result.assign_attrs({**attrs, "fingerprint": fingerprint}), [])
    _mark(store, step, layer, fingerprint)


def _mark(store: Location, step: str, layer: str, fingerprint: str) -> None:
    """Say that a result is there, and what it is."""
    group = f"results/{step}/{layer}"
    remember(store, group)
    unit(store, step, layer).publish({"fingerprint": fingerprint, "checksums": checksums(store, group)})
