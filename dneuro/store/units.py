"""Units of work and the markers that say they are done.

A unit is a set of whole chunks. It is done when its marker is published: after the chunks were written and read back,
and its partial statistics too. That chunk files exist proves nothing: a killed writer leaves some. Everything here
lies beside the store, in ``<store>.units/``::

    <store>.units/<step>/<part>/<unit>.done       the marker, JSON
    <store>.units/<step>/<part>/<unit>.npz        partial statistics, if any
    <store>.units/<step>/<part>/<unit>.attempts   one line per attempt of the present run
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import StoreError
from dneuro.store.files import Location, append, locate, read_json, sizes, write_atomically, write_json

IMAGES = "images"
"""The part of the extraction with one entry per image; the others are layers."""

NOT_YET = 3
"""`status` of an image until its unit is done: it is not extracted yet."""

MAX_ATTEMPTS = 3
"""A unit that was begun this often in one run and never finished is not begun again."""


def units_folder(store: str | Location) -> Location:
    """Return the folder of markers that belongs to a store."""
    return locate(f"{str(store).rstrip('/')}.units")


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of what a result depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def layer_identity(identity: Mapping[str, Any], layer: str, keep: str, dtype: str) -> dict[str, Any]:
    """Return what the arrays of one layer depend on, of all that the store depends on."""
    of_layers = {key: value for key, value in identity.items() if key not in ("predictions", "thumbnails")}
    return {**of_layers, "layer": layer, "keep": keep, "dtype": dtype}


@dataclass(frozen=True)
class Unit:
    """One unit of one part (a layer, an analysis) of one step.

    Parameters
    ----------
    folder : Path or RemotePath
        ``<store>.units/<step>/<part>``.
    name : str
        Name of the unit within it, such as ``00017``.
    """

    folder: Location
    name: str

    def _file(self, suffix: str) -> Location:
        return self.folder / f"{self.name}.{suffix}"

    def marker(self, wanted: str) -> dict[str, Any] | None:
        """Return the marker if it is whole, of this unit, and carries the fingerprint `wanted`, else None.

        Partial statistics that the marker speaks of must be there, with the size it names.
        """
        found = self.read()
        if found is None or found.get("fingerprint") != wanted or self.named_instead(found):
            return None
        size = found.get("partial_bytes")
        if size is not None:
            path = self._file("npz")
            if not path.is_file() or path.stat().st_size != size:
                return None
        return found

    def read(self) -> dict[str, Any] | None:
        """Return the marker, whatever its fingerprint; None if there is none or it is not whole."""
        found = read_json(self._file("done"))
        return found if isinstance(found, dict) else None

    def named_instead(self, marker: Mapping[str, Any]) -> str:
        """Return which other unit a marker names that lies here; empty if it is this one's, or names none.

        Markers of older stores name none.
        """
        named = str(marker.get("unit", self.name))
        return "" if named == self.name else named

    def withdraw(self) -> None:
        """Take the marker away: the unit is not done."""
        self._file("done").unlink(missing_ok=True)

    def begin(self, attempt: int) -> int:
        """Withdraw the marker, count this attempt on disk and return how many the run `attempt` has made."""
        self.withdraw()
        return append(self._file("attempts"), str(attempt)).split().count(str(attempt))

    def save_partials(self, states: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        """Write mergeable states of kernels; return what the marker says of them."""
        flat = {f"{kernel}/{name}": array for kernel, state in states.items() for name, array in state.items()}
        path = self._file("npz")
        write_atomically(path, lambda file: np.savez(file, **flat))  # type: ignore[arg-type]
        data = path.read_bytes()
        return {"partial_bytes": len(data), "partial_crc32": zlib.crc32(data), "kernels": sorted(states)}

    def partials_are_whole(self, marker: Mapping[str, Any]) -> bool:
        """Return whether the partial statistics are those that the marker speaks of."""
        if "partial_crc32" not in marker:
            return True
        try:
            return bool(zlib.crc32(self._file("npz").read_bytes()) == marker["partial_crc32"])
        except FileNotFoundError:
            return False

    def load_partials(self, kernels: Collection[str] | None = None) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the states that `save_partials` wrote, by kernel; of some kernels alone, if they are named.

        Raises
        ------
        StoreError
            If the file is not there or not whole.
        """
        states: dict[str, dict[str, NDArray[Any]]] = {}
        try:
            with np.load(io.BytesIO(self._file("npz").read_bytes()), allow_pickle=False) as file:
                for key in file.files:
                    kernel, name = key.rsplit("/", 1)
                    if kernels is None or kernel in kernels:
                        states.setdefault(kernel, {})[name] = file[key]
        except (FileNotFoundError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            store = str(self.folder).rpartition(".units")[0]
            raise StoreError(
                f"the partial statistics in {self._file('npz')} cannot be read: {error}",
                hint=f"dneuro verify {store} --repair, then run the job again",
            ) from error
        return states

    def publish(self, marker: Mapping[str, Any]) -> None:
        """Say that the unit is done; the last thing a worker does."""
        write_json(self._file("done"), dict(marker), instead_of=self._file("attempts"))


def doubt_statistics(store: Location, arrays: Mapping[str, Collection[str]]) -> dict[str, dict[str, int | None]]:
    """Say of arrays of the statistics taken along that they are not done; what is known of all others stays.

    Where nothing is known, as where the marker was lost, no layer's statistics are done.

    Parameters
    ----------
    store : Path or RemotePath
        The store.
    arrays : mapping of str to collection of str
        Their names, by layer.

    Returns
    -------
    dict
        Checksums by layer and array, as the marker has them now: None for what is not done.
    """
    unit = Unit(units_folder(store) / "extract", "statistics")
    known: dict[str, dict[str, int | None]] = (unit.read() or {}).get("checksums") or {}
    if not known:
        known = {path.name: {} for path in (store / "layers").iterdir() if path.name != "zarr.json"}
    known |= {layer: {**known.get(layer, {}), **dict.fromkeys(names)} for layer, names in arrays.items()}
    unit.publish({"fingerprint": "", "checksums": known})
    return known


def withdraw_statistics(store: Location, layer: str) -> None:
    """Have the statistics taken along written again; the checksums of other layers' stay, to be compared with."""
    unit = Unit(units_folder(store) / "extract", "statistics")
    kept = (unit.read() or {}).get("checksums") or {}
    others = {name: checksums for name, checksums in kept.items() if name != layer}
    if others:
        unit.publish({"fingerprint": "", "checksums": others})
    else:
        unit.withdraw()


def any_marker(folder: Location) -> dict[str, Any] | None:
    """Return one of the markers in the folder of a part, for all speak of the same arrays; None if there is none."""
    names = (name.removesuffix(".done") for name in sizes(folder) if name.endswith(".done"))
    found = (Unit(folder, name).read() for name in names)
    return next((marker for marker in found if marker is not None), None)
