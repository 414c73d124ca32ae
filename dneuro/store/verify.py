"""Whether a store holds what its markers say."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import zarr

from dneuro.store.catalogue import Catalogue
from dneuro.store.files import Location, opened_by_zarr, sizes
from dneuro.store.layout import LayerPlan
from dneuro.store.metadata import NOT_THERE, Altered, record_name
from dneuro.store.results import checksums
from dneuro.store.units import IMAGES, Unit, any_marker, fingerprint, layer_identity, units_folder

METADATA = "metadata"
"""The part of a finding about metadata that can be put back as they were."""

RECORDS = "records"
"""The part of a finding about what is kept of metadata."""

OWN_PARTS = frozenset((IMAGES, "statistics", "labels", METADATA, RECORDS))
"""Parts that are no layers: no layer can be called so, for its markers and theirs would be the same."""

IMAGE_ARRAYS = ("status", "checksum", "prediction", "correct", "pictures/picture")
"""Arrays with one entry per image that extraction writes."""

NO_CHECKSUM = "its marker has no checksum of this array"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Parameters
    ----------
    kind : {"damaged", "missing", "foreign"}
        The content is not what was written; it was never finished, or its marker is gone; it does not belong there.
    where : str
        Array, group or file of the store.
    what : str
        What is wrong.
    part : str
        What has to be made again: a layer, ``images``, ``results/<step>/<layer>``, ``statistics``, ``labels``,
        ``metadata``, ``records``, ``train/<weights>``; empty for what is foreign.
    unit : int or None
        Number of the unit.
    images : (int, int) or None
        First and last image.
    """

    kind: Literal["damaged", "missing", "foreign"]
    where: str
    what: str
    part: str = ""
    unit: int | None = None
    images: tuple[int, int] | None = None

    def __str__(self) -> str:
        place = self.where
        if self.unit is not None:
            place += f", unit {self.unit}"
        if self.images is not None:
            place += f" (images {self.images[0]} to {self.images[1]})"
        return f"{self.kind}: {place}: {self.what}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One unit of one part, to be read and compared with its marker.

    Parameters
    ----------
    path : Path or RemotePath
        The store.
    part : str
        The layer, or `IMAGES`.
    group : str
        Where its arrays lie; those of `IMAGES` lie in the root and in ``pictures``.
    number, start, stop : int
        The unit, its first image and the one after its last.
    fingerprint : str
        What its marker must carry.
    arrays : tuple of str
        Arrays that are read, by their paths; of those that are not there see `absent`.
    """

    path: Location
    part: str
    number: int
    start: int
    stop: int
    fingerprint: str
    arrays: tuple[str, ...]

    @property
    def unit(self) -> Unit:
        """The unit."""
        return Unit(units_folder(self.path) / "extract" / self.part, f"{self.number:05d}")


def checks(path: Location, found: Catalogue) -> Iterator[Check]:
    """Yield every unit that the store must have, part by part."""
    identity = found.attrs("")["dneuro"]["identity"]
    total, length = count_images(found), int(identity["images_per_unit"])
    parts = {IMAGES: (fingerprint(identity), tuple(array for array in IMAGE_ARRAYS if array in found.nodes))}
    for layer, plan in layers(found).items():
        wanted = fingerprint(layer_identity(identity, layer, plan.keep, plan.dtype))
        paths = (array.path for array in plan.arrays(total, length))
        parts[layer] = (wanted, tuple(array for array in paths if array in found.nodes))
    for part, (wanted, arrays) in parts.items():
        for number in range(math.ceil(total / length)):
            yield Check(path, part, number, number * length, min((number + 1) * length, total), wanted, arrays)


def check(one: Check) -> list[Finding]:
    """Read one unit and compare it with its marker.

    Notes
    -----
    **Cost**: every chunk of the unit is read once; memory of one row of chunks.
    """
    marker = one.unit.read()
    of_unit = {"part": one.part, "unit": one.number, "images": (one.start, one.stop - 1)}
    name = "images" if one.part == IMAGES else f"layers/{one.part}"
    if marker is None or marker.get("fingerprint") != one.fingerprint:
        why = "is not marked as done" if marker is None else "its marker belongs to another extraction"
        return [Finding("missing", name, why, **of_unit)]  # type: ignore[arg-type]
    if other := one.unit.named_instead(marker):
        return [Finding("damaged", name, f"its marker is that of unit {other}", **of_unit)]  # type: ignore[arg-type]
    wanted: Mapping[str, int] = marker.get("checksums", {})
    found = []
    for path in one.arrays:
        what = _compare(one, path, wanted.get(path.rpartition("/")[2]))
        if what:
            found.append(Finding("damaged", path, what, **of_unit))  # type: ignore[arg-type]
    if not one.unit.partials_are_whole(marker):
        what = "its partial statistics are not those that were written"
        found.append(Finding("damaged", name, what, **of_unit))  # type: ignore[arg-type]
    return found


def _compare(one: Check, path: str, wanted: int | None) -> str:
    """Return what is wrong with the rows of an array; empty if nothing."""
    if wanted is None:
        return NO_CHECKSUM
    begin, crc = one.start, 0
    try:
        array = zarr.open_array(opened_by_zarr(one.path), path=path, mode="r")
        for begin in range(one.start, one.stop, array.chunks[0]):
            rows = np.ascontiguousarray(array[begin : min(begin + array.chunks[0], one.stop)])
            crc = zlib.crc32(rows.data, crc)
    except FileNotFoundError:
        return "the array is not there"
    except Exception as error:  # each codec has errors of its own
        return f"cannot be read from image {begin} on: {str(error) or type(error).__name__}"
    return "" if crc == wanted else "what is stored is not what was written (checksums differ)"


def layers(found: Catalogue) -> dict[str, LayerPlan]:
    """Return the layers whose metadata say what was kept of them: others are foreign, or lost theirs."""
    return {layer: plan for layer in found.below("layers") if (plan := _plan(found, layer)) is not None}


def _plan(found: Catalogue, layer: str) -> LayerPlan | None:
    node = f"layers/{layer}"
    if node not in found.nodes or layer in OWN_PARTS:
        return None
    attrs = found.attrs(node)
    try:
        plan = LayerPlan(layer, attrs["keep"], tuple(map(int, attrs["shape"])), attrs["dtype"])
        plan.arrays(1, 1)
    except (LookupError, TypeError, ValueError, ArithmeticError):  # whatever stands there instead
        return None
    return plan if plan.keep in ("full", "max", "mean", "stats") else None


def structure(path: Location, found: Catalogue) -> Iterator[Finding]:
    """Yield what files and metadata alone show: broken metadata, files and groups that do not belong there."""
    for node, why in found.broken.items():
        yield Finding("damaged", node or "the root", f"its metadata cannot be read: {why}", part=_part(node))
    known = layers(found)
    for layer in found.below("layers"):
        node = f"layers/{layer}"
        if node not in found.nodes or layer in known:
            continue
        if layer in OWN_PARTS or any_marker(units_folder(path) / "extract" / layer) is None:
            yield Finding("foreign", node, "is no layer of the store: its attributes do not say what was kept of it")
        else:
            yield Finding("damaged", node, "its attributes do not say what was kept of the layer", part=layer)
    for name in found.foreign:
        yield Finding("foreign", name, "is no part of the store; nothing reads it")


def absent(path: Location, found: Catalogue) -> Iterator[Finding]:
    """Yield layers and arrays that markers say are done and that are not there."""
    folder = units_folder(path) / "extract"
    there = found.nodes.keys() | found.broken.keys()
    for part in sorted({part for name in sizes(folder) if (part := name.rpartition("/")[0])}):
        marker = any_marker(folder / part)
        if marker is None:
            continue
        group = "" if part == IMAGES else f"layers/{part}"
        written = marker.get("checksums", {})
        nodes = [_array(part, name) for name in written] if group in there else [group]
        for node in nodes:
            if node not in there:
                yield Finding("damaged", node, "is marked as done and not there", part=part)


def metadata(nodes: Mapping[str, Altered]) -> Iterator[Finding]:
    """Yield the nodes whose metadata are others than were written."""
    for node, one in nodes.items():
        yield Finding("damaged", node or "the root", one.what, part=METADATA)


def records(lost: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the records of metadata that are gone or not whole."""
    for group, what in lost.items():
        kind: Literal["damaged", "missing"] = "missing" if what == NOT_THERE else "damaged"
        said = f"{what}: the metadata of {group or 'the root'} were not compared"
        yield Finding(kind, record_name(group), said, part=RECORDS)


def besides(findings: Iterable[Finding], nodes: Mapping[str, Altered]) -> Iterator[Finding]:
    """Yield the findings that do not come of metadata that are others than were written."""
    for one in findings:
        of_chunk = one.kind == "foreign" and any(one.where.startswith(f"{node}/c") for node in nodes)
        if one.where not in nodes and not of_chunk:
            yield one


def statistics(path: Location, found: Catalogue) -> Iterator[Finding]:
    """Yield what is wrong with the statistics that were taken along."""
    part = "statistics"
    marker = Unit(units_folder(path) / "extract", part).read()
    written: Mapping[str, Mapping[str, int | None]] = (marker or {}).get("checksums") or {}
    arrays = _arrays(found)
    for layer, plan in layers(found).items():
        node = f"layers/{layer}"
        wanted = written.get(layer) or {}
        yield from _contents(path, node, part, {name: crc for name, crc in wanted.items() if crc is not None})
        for name in (name for name, crc in wanted.items() if crc is None):
            yield Finding("missing", f"{node}/{name}", "is not marked as done", part=part)
        if wanted or not arrays[node] - _kept_of(found, plan):
            continue
        if marker is None or layer in written:
            yield Finding("missing", node, "its statistics are not marked as done", part=part)
        elif not written:  # else it is of an older run, which named the layers of its own job only
            yield Finding("damaged", node, "the marker of its statistics has no checksums of them", part=part)


def _kept_of(found: Catalogue, plan: LayerPlan) -> set[str]:
    """Return the arrays of a layer that are no statistics: what was kept of it, and what it repeats of the root."""
    total = count_images(found)
    return {"image", "filename", "label", *(array.name for array in plan.arrays(total, max(1, total)))}


def _arrays(found: Catalogue) -> Mapping[str, set[str]]:
    """Return the names of the arrays directly in each group."""
    arrays: dict[str, set[str]] = defaultdict(set)
    for node, metadata in found.nodes.items():
        if metadata["node_type"] == "array":
            group, _, name = node.rpartition("/")
            arrays[group].add(name)
    return arrays


def results(path: Location, found: Catalogue) -> Iterator[Finding]:
    """Yield what is wrong with results, and with their markers."""
    folder = units_folder(path) / "results"
    marked = {name.removesuffix(".done") for name in sizes(folder) if name.endswith(".done")}
    there = {f"{step}/{layer}" for step in found.below("results") for layer in found.below(f"results/{step}")}
    arrays = _arrays(found)
    for name in sorted(marked | there):
        node = part = f"results/{name}"
        step, _, layer = name.partition("/")
        if node in found.broken or f"results/{step}" in found.broken:
            continue
        marker = Unit(folder / step, layer).read()
        if marker is None:
            yield Finding("missing", node, "is not marked as done", part=part)
        elif node not in found.nodes:
            yield Finding("damaged", node, "is marked as done and not there", part=part)
        elif found.attrs(node).get("fingerprint") != marker.get("fingerprint"):
            yield Finding("damaged", node, "is another result than its marker speaks of", part=part)
        else:
            wanted = marker.get("checksums")
            yield from _contents(path, node, part, wanted or {})
            for array in sorted(arrays[node] - wanted.keys()) if wanted is not None else ():  # the first have none
                yield Finding("damaged", f"{node}/{array}", NO_CHECKSUM, part=part)


def _contents(path: Location, group: str, part: str, wanted: Mapping[str, int]) -> Iterator[Finding]:
    for name, crc in wanted.items():
        try:
            same = checksums(path, group, [name])[name] == crc
            what = "what is stored is not what was written (checksums differ)"
        except KeyError:
            same, what = False, "the array is not there"
        except Exception as error:  # each codec has errors of its own
            same, what = False, f"cannot be read: {str(error) or type(error).__name__}"
        if not same:
            yield Finding("damaged", f"{group}/{name}", what, part=part)


def count_images(found: Catalogue) -> int:
    """Return how many images a store has; 0 where nothing says it."""
    known = (found.nodes.get(name, {}).get("shape") for name in ("status", "image", "label"))
    return int(next((shape[0] for shape in known if shape), 0))


def _array(part: str, name: str) -> str:
    """Return where an array lies that a marker names."""
    if part != IMAGES:
        return f"layers/{part}/{name}"
    return next((array for array in IMAGE_ARRAYS if array.rpartition("/")[2] == name), name)


def _part(node: str) -> str:
    """Return what has to be made again where the metadata of a node are lost."""
    top, _, rest = node.partition("/")
    if top == "layers":
        return rest.partition("/")[0]
    if node in IMAGE_ARRAYS:
        return IMAGES
    return "/".join(node.split("/")[:3]) if top == "results" else ""
