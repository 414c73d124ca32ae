"""What files a store consists of, and which of them belong there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dneuro.errors import StoreError
from dneuro.files import PARTIAL
from dneuro.store.files import Location, sizes

METADATA = "zarr.json"


@dataclass(frozen=True)
class Catalogue:
    """The nodes of a Zarr v3 hierarchy, by their paths; the root's is empty.

    Parameters
    ----------
    nodes : dict of str to dict
        Metadata of every group and array that can be read.
    broken : dict of str to str
        Nodes whose metadata cannot be read, with the reason.
    foreign : list of str
        Files that are no part of any node.
    """

    nodes: dict[str, Mapping[str, Any]]
    broken: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)

    def attrs(self, node: str) -> dict[str, Any]:
        """Return the attributes of a group or array."""
        return dict(self.nodes[node].get("attributes", {}))

    def below(self, node: str) -> list[str]:
        """Return the names of the nodes directly below one, also of those that are broken."""
        lead = f"{node}/" if node else ""
        found = (path.removeprefix(lead) for path in (*self.nodes, *self.broken) if path.startswith(lead) and path)
        return sorted({name for name in found if "/" not in name})


def catalogue(path: Location) -> Catalogue:
    """List a store and read its metadata; chunks are not read.

    Raises
    ------
    StoreError
        If there is no store.
    """
    files = sizes(path)
    if METADATA not in files:
        raise StoreError(f"there is no store at {path}", hint="dneuro run JOB makes one; dn.extract(…, out=…) too")
    found = Catalogue({})
    for name in files:
        if name.rpartition("/")[2] == METADATA:
            node = name.removesuffix(METADATA).rstrip("/")
            try:
                metadata = json.loads((path / name).read_bytes())
                found.nodes[node] = _checked(metadata)
            except (ValueError, LookupError, TypeError, ArithmeticError) as error:
                found.broken[node] = str(error)
    for name in files:
        if name.rpartition("/")[2] != METADATA and not _belongs(name, found):
            found.foreign.append(name)
    return found


def _checked(metadata: Any) -> Mapping[str, Any]:
    if metadata["zarr_format"] != 3 or metadata["node_type"] not in ("group", "array"):
        raise ValueError(f"no node of Zarr 3: {metadata['zarr_format']}, {metadata['node_type']}")
    if not isinstance(metadata.get("attributes", {}), dict):
        raise ValueError("its attributes are no mapping")
    if metadata["node_type"] == "array":
        _grid(metadata)
    return metadata  # type: ignore[no-any-return]


def _grid(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the number of chunks along each dim."""
    lengths = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    return tuple(math.ceil(size / length) for size, length in zip(metadata["shape"], lengths, strict=True))


def _belongs(name: str, found: Catalogue) -> bool:
    """Return whether a file is a chunk of an array: ``<array>/c/0/3``."""
    if name.endswith(PARTIAL):  # of a writer that is at work, or was killed: the next run removes it
        return True
    array, mark, key = name.rpartition("/c/") if "/c/" in name else name.rpartition("/c")
    if not mark or array not in found.nodes:
        return any(name.startswith(f"{node}/c/") for node in found.broken)
    metadata = found.nodes[array]
    if metadata["node_type"] != "array":
        return False
    grid = _grid(metadata)
    places = key.split("/") if key else []
    numbers = [int(place) for place in places if place.isdecimal()]
    return len(numbers) == len(places) == len(grid) and all(n < m for n, m in zip(numbers, grid, strict=True))
