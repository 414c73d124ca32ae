"""What the metadata of a store's nodes were when they were written, kept beside the store.

Chunks have checksums in the markers of their units; groups and arrays also have attributes, dims and codecs, which a
reader trusts. They are kept as they were written, for they are small, and so can be put back::

    <store>.units/metadata/root.json              the root with all that lies directly in it
    <store>.units/metadata/layers/<layer>.json    a layer, with its arrays
    <store>.units/metadata/results/<step>/<layer>.json

A store that was made before there were such records has none, and what it has none of is not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dneuro.store.catalogue import METADATA, Catalogue
from dneuro.store.files import Location, read_json, sizes, write_atomically
from dneuro.store.units import Unit, units_folder

ROOT = "root"
PLAIN = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""The metadata of a group that only holds others."""

_HOLDERS = re.compile(r"layers|results|results/[^/]+|pictures")


class Altered(NamedTuple):
    """What is wrong with the metadata of a node, and what they were."""

    what: str
    before: dict[str, Any]


def remember(path: Location, group: str, names: Collection[str] | None = None) -> None:
    """Keep the metadata of a group as they are now, with those of its arrays: all, or of those named."""
    nodes = _nodes(path, group) if names is None else [group, *_within(group, names)]
    now = {node: json.loads((path / _file(node)).read_bytes()) for node in nodes}
    _write(_record(path, group), (_recorded(path, group) if names is not None else {}) | now)


def release(path: Location, group: str, names: Collection[str]) -> None:
    """Forget the metadata of a group itself and of some arrays: they are about to be others."""
    changing = {group, *_within(group, names)}
    kept = {node: metadata for node, metadata in _recorded(path, group).items() if node not in changing}
    if kept:
        _write(_record(path, group), kept)
    else:
        forget(path, group)


def forget(path: Location, group: str) -> None:
    """Forget the metadata of a group with its arrays."""
    _record(path, group).unlink(missing_ok=True)


def is_known(path: Location, group: str) -> bool:
    """Return whether there is a record of a group."""
    return _record(path, group).is_file()


def altered(path: Location, found: Catalogue) -> dict[str, Altered]:
    """Return the nodes whose metadata are gone or others than were written; all of these can be put back.

    What is gone with all that lay in it is not among them: its chunks cannot be put back.
    """
    there = [*found.nodes, *found.broken]
    before = {holder: PLAIN for node in there for holder in _holders(node) if holder not in found.nodes}
    for group in _groups(path):
        before |= _recorded(path, group)
    changed: dict[str, Altered] = {}
    for node, metadata in before.items():
        if node in found.broken:
            changed[node] = Altered(f"its metadata cannot be read: {found.broken[node]}", metadata)
        elif node not in found.nodes:
            if any(name.startswith(f"{node}/") for name in (*there, *found.foreign)):
                changed[node] = Altered("its metadata are not there", metadata)
        elif _said(found.nodes[node]) != _said(metadata):
            changed[node] = Altered("its metadata are not what was written", metadata)
    return changed


def restore(path: Location, nodes: dict[str, Altered]) -> None:
    """Put metadata back as they were."""
    for node, one in nodes.items():
        _write(path / _file(node), one.before)


def restore_root(path: Location) -> bool:
    """Put the metadata of the root back if they are gone or cannot be read; return whether that was so.

    Without them there is no store, and nothing to list.
    """
    before = _recorded(path, "").get("")
    if before is None or read_json(path / METADATA) is not None or not (path / "layers").exists():
        return False
    restore(path, {"": Altered("", before)})
    return True


def _write(place: Location, value: Mapping[str, Any]) -> None:
    """Write JSON as Zarr does, in the order of its keys."""
    text = json.dumps(value, indent=2)
    write_atomically(place, lambda file: file.write(text.encode()))


def _record(path: Location, group: str) -> Location:
    return units_folder(path) / "metadata" / f"{group or ROOT}.json"


def _recorded(path: Location, group: str) -> dict[str, Any]:
    found = read_json(_record(path, group))
    return found if isinstance(found, dict) else {}


def _groups(path: Location) -> Iterator[str]:
    """Yield the groups that there are records of; of results those that are done, for others may be half replaced."""
    units = units_folder(path)
    for name in sizes(units / "metadata"):
        group = name.removesuffix(".json")
        top, _, rest = group.partition("/")
        step, _, layer = rest.partition("/")
        if top != "results" or Unit(units / "results" / step, layer).read() is not None:
            yield "" if group == ROOT else group


def _nodes(path: Location, group: str) -> list[str]:
    """Return a group and what lies in it; of the root not what has a record of its own."""
    found = [name for name in sizes(path / group if group else path) if name.rpartition("/")[2] == METADATA]
    inside = (name.removesuffix(METADATA).rstrip("/") for name in found)
    nodes = [f"{group}/{node}".strip("/") for node in inside]
    return nodes if group else [node for node in nodes if not node.startswith(("layers/", "results/"))]


def _within(group: str, names: Iterable[str]) -> list[str]:
    return [f"{group}/{name}" if group else name for name in names]


def _holders(node: str) -> Iterator[str]:
    """Yield the groups above a node that only hold others."""
    parts = node.split("/")
    above = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return (holder for holder in above if _HOLDERS.fullmatch(holder))


def _file(node: str) -> str:
    return f"{node}/{METADATA}" if node else METADATA


def _said(metadata: Any) -> str:
    """Return metadata as text that is the same for the same; readers may have gathered those of others into them."""
    return json.dumps({key: some for key, some in metadata.items() if key != "consolidated_metadata"}, sort_keys=True)
