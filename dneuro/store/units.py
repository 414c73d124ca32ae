"""Units of work and the markers that say they are done.

A unit is a set of whole chunks. It is done when its marker is published: after the chunks were written and read back,
and its partial statistics too. Whether chunk files exist proves nothing: a chunk of zeros leaves none, a killed
writer leaves some. Everything here lies beside the store, in ``<store>.units/``::

    <store>.units/<step>/<part>/<unit>.done       the marker, JSON
    <store>.units/<step>/<part>/<unit>.npz        partial statistics, if any
    <store>.units/<step>/<part>/<unit>.attempts   one line per attempt of the present run
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.store.files import read_json, write_atomically, write_json

MAX_ATTEMPTS = 3
"""A unit that was begun this often in one run and never finished is not begun again."""


def units_folder(store: str | Path) -> Path:
    """Return the folder of markers that belongs to a store."""
    return Path(f"{str(store).rstrip('/')}.units")


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of what a result depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Unit:
    """One unit of one part (a layer, an analysis) of one step.

    Parameters
    ----------
    folder : Path
        ``<store>.units/<step>/<part>``.
    name : str
        Name of the unit within it, such as ``00017``.
    """

    folder: Path
    name: str

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def marker(self, wanted: str) -> dict[str, Any] | None:
        """Return the marker if it is whole and carries the fingerprint `wanted`, else None.

        Partial statistics that the marker speaks of must be there, with the size it names.
        """
        found = self.read()
        if found is None or found.get("fingerprint") != wanted:
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

    def begin(self, attempt: int) -> int:
        """Withdraw the marker, count this attempt on disk and return how many the run `attempt` has made."""
        self._file("done").unlink(missing_ok=True)
        path = self._file("attempts")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{attempt}\n")
        return path.read_text().split().count(str(attempt))

    def save_partials(self, states: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        """Write mergeable states of kernels; return what the marker says of them."""
        flat = {f"{kernel}/{name}": array for kernel, state in states.items() for name, array in state.items()}
        path = self._file("npz")
        write_atomically(path, lambda file: np.savez(file, **flat))  # type: ignore[arg-type]
        data = path.read_bytes()
        return {"partial_bytes": len(data), "partial_crc32": zlib.crc32(data), "kernels": sorted(states)}

    def load_partials(self, kernels: Collection[str] | None = None) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the states that `save_partials` wrote, by kernel; of some kernels alone, if they are named."""
        states: dict[str, dict[str, NDArray[Any]]] = {}
        with np.load(self._file("npz"), allow_pickle=False) as file:
            for key in file.files:
                kernel, name = key.rsplit("/", 1)
                if kernels is None or kernel in kernels:
                    states.setdefault(kernel, {})[name] = file[key]
        return states

    def publish(self, marker: Mapping[str, Any]) -> None:
        """Say that the unit is done; the last thing a worker does."""
        write_json(self._file("done"), dict(marker))
        self._file("attempts").unlink(missing_ok=True)
