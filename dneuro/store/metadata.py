"""What the metadata of a store's nodes were when they were written, kept beside the store.

Chunks have checksums in the markers of their units; groups and arrays also have attributes, dims and codecs, which a
reader trusts. They are kept as they were written, for they are small, and so can be put back::

    <store>.units/metadata/root.json              the root with all that lies directly in it
    <store>.units/metadata/layers/<layer>.json    a layer, with its arrays
    <store>.units/metadata/results/<step>/<layer>.json

Each record has a checksum of its own. A store that was made before there were records has none, and is not compared
with them until a run keeps those of what is there. Where there is one, all must be there.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dneuro.store.catalogue import METADATA, Catalogue, catalogue
from dneuro.store.files import Location, read_json, remove, sizes, write_atomically
from dneuro.store.units import IMAGES, Unit, any_marker, units_folder

ROOT = "root"
PLAIN = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""The metadata of a group that only holds others."""

CHECKSUM = "crc32"
"""Stands in a record beside the nodes: no node of the root is called so. Older records have none."""

_GROUPS = re.compile(r"|layers/[^/]+|results/[^/]+/[^/]+")
"""Groups that have a record of their own."""

_HOLDERS = re.compile(r"layers|results|results/[^/]+|pictures")

NOT_THERE, NOT_WHOLE = "is not there", "is not whole"
"""What may be wrong with a record."""


class Altered(NamedTuple):
    """What is wrong with the metadata of a node, and what they were."""

    what: str
    before: dict[str, Any]


def remember(path: Location, group: str, names: Collection[str] | None = None) -> None:
    """Keep the metadata of a group as they are now, with those of its arrays: all, or of those named."""
    nodes = _nodes(path, group) if names is None else [group, *_within(group, names)]
    now = {node: json.loads((path / _file(node)).read_bytes()) for node in nodes}
    _keep(path, group, (_recorded(path, group) if names is not None else {}) | now)


def remember_older(path: Location) -> None:
    """Keep the metadata of a store of which none were kept, as they are now; what cannot be read is left out."""
    if not has_records(path):
        found = catalogue(path)
        for group in _groups_done(path, found):
            if not any(node in found.broken for node in _nodes(path, group)):
                remember(path, group)


def release(path: Location, group: str, names: Collection[str]) -> None:
    """Forget the metadata of a group itself and of some arrays: they are about to be others."""
    changing = {group, *_within(group, names)}
    kept = {node: metadata for node, metadata in _recorded(path, group).items() if node not in changing}
    if kept:
        _keep(path, group, kept)
    else:
        forget(path, group)


def forget(path: Location, group: str) -> None:
    """Forget the metadata of a group with its arrays."""
    _record(path, group).unlink(missing_ok=True)


def forget_all(path: Location) -> None:
    """Forget all metadata that are kept."""
    remove(units_folder(path) / "metadata")


def has_records(path: Location) -> bool:
    """Return whether the metadata of anything are kept, readable or not."""
    return any(name.endswith(".json") for name in sizes(units_folder(path) / "metadata"))


def record_name(group: str) -> str:
    """Return where the record of a group lies in ``<store>.units``."""
    return f"metadata/{group or ROOT}.json"


def is_known(path: Location, group: str) -> bool:
    """Return whether there is a record of a group."""
    return _record(path, group).is_file()


def records(path: Location) -> dict[str, dict[str, Any]]:
    """Return what the metadata of each group and its arrays were, by group; nothing of a record that is not whole.

    Of results those that are done are returned, for others may be half replaced.
    """
    units = units_folder(path)
    found = {}
    for name in sizes(units / "metadata"):
        if not name.endswith(".json"):
            continue
        group = name.removesuffix(".json")
        top, _, rest = group.partition("/")
        step, _, layer = rest.partition("/")
        if top != "results" or Unit(units / "results" / step, layer).read() is not None:
            group = "" if group == ROOT else group
            found[group] = _recorded(path, group)
    return found


def lost(path: Location, found: Catalogue, kept: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the groups whose record is not there or not whole, and which it is; none of a store without records."""
    if not kept:
        return {}
    wrong = {group: NOT_WHOLE for group, nodes in kept.items() if not nodes}
    return wrong | dict.fromkeys(_groups_done(path, found, kept), NOT_THERE)


def altered(found: Catalogue, kept: Mapping[str, Mapping[str, Any]]) -> dict[str, Altered]:
    """Return the nodes whose metadata are gone or others than were written; all of these can be put back.

    What is gone with all that lay in it is not among them: its chunks cannot be put back.
    """
    there = [*found.nodes, *found.broken]
    before: dict[str, Any] = {h: PLAIN for node in there for h in _holders(node) if h not in found.nodes}
    for nodes in kept.values():
        before |= nodes
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
    return units_folder(path) / record_name(group)


def _keep(path: Location, group: str, nodes: Mapping[str, Any]) -> None:
    _write(_record(path, group), {**dict(sorted(nodes.items())), CHECKSUM: _checksum(nodes)})


def _recorded(path: Location, group: str) -> dict[str, Any]:
    """Return what a record holds; nothing if there is none, or it is not whole."""
    found = read_json(_record(path, group))
    nodes = dict(found) if isinstance(found, dict) else {}
    checksum = nodes.pop(CHECKSUM, None)
    whole = checksum in (None, _checksum(nodes)) and all(isinstance(one, dict) for one in nodes.values())
    return nodes if whole else {}


def _checksum(nodes: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(nodes, sort_keys=True).encode())


def _groups_done(path: Location, found: Catalogue, besides: Collection[str] = ()) -> Iterator[str]:
    """Yield the groups of a store that a marker says are done, wholly or in part, and so have a record."""
    units = units_folder(path)
    for group, node in found.nodes.items():
        if group in besides or node["node_type"] != "group" or not _GROUPS.fullmatch(group):
            continue
        top, _, part = group.partition("/")
        if top == "results":
            step, _, layer = part.partition("/")
            marker = Unit(units / top / step, layer).read()
        else:  # layers/images is nobody's: the markers are those of the root
            marker = None if part == IMAGES else any_marker(units / "extract" / (part or IMAGES))
        if marker is not None:
            yield group


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
