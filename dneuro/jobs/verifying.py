"""`dneuro verify`: is everything there, is it what was written, and in the order of the images?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dneuro import events
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.window import each
from dneuro.errors import PartialError, StoreError
from dneuro.images.manifest import Manifest
from dneuro.jobs.lease import Lease
from dneuro.jobs.trained import TRAIN, trained
from dneuro.store import metadata
from dneuro.store import verify as parts
from dneuro.store.catalogue import METADATA, Catalogue, catalogue
from dneuro.store.creating import add_variables, remove_group, root_coords
from dneuro.store.files import Location, locate, opened_by_zarr, remove
from dneuro.store.remote import RemotePath
from dneuro.store.units import IMAGES, Unit, doubt_statistics, units_folder, withdraw_statistics
from dneuro.store.verify import Finding

LABELS = "labels"
"""The part of a finding about names and labels: they come from the manifest, not from a unit."""

_AGAIN = "run the job again: only what is missing is made"


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Parameters
    ----------
    store : Path or RemotePath
        The store.
    findings : list of Finding
        Everything that is not as it should be; empty if all is well.
    units : int
        Units that were compared, of all layers and of the images together.
    repaired : int
        Damaged parts whose markers were withdrawn, so that the next run makes them again; metadata put back, and
        records of metadata written again or removed.
    masked : dict of str to str
        Name and cause of each image that was left out when the store was made: nothing is wrong with the store.
    """

    store: Location
    findings: list[Finding]
    units: int
    repaired: int = 0
    masked: dict[str, str] = field(default_factory=dict)

    @property
    def damaged(self) -> list[Finding]:
        """What lies in the store is not what was written."""
        return [finding for finding in self.findings if finding.kind == "damaged"]

    @property
    def missing(self) -> list[Finding]:
        """What was never finished."""
        return [finding for finding in self.findings if finding.kind == "missing"]

    @property
    def ok(self) -> bool:
        """Whether all is there and as it was written; what is foreign harms nobody."""
        return not self.damaged and not self.missing

    @property
    def _still_damaged(self) -> bool:
        return any(not self.repaired or not finding.part for finding in self.damaged)

    @property
    def exit_code(self) -> int:
        """0 all is well, 3 something is missing, 4 something is damaged; after a repair it is missing."""
        if self._still_damaged:
            return StoreError.exit_code
        return 0 if self.ok else PartialError.exit_code

    @property
    def advice(self) -> str:
        """What to do; empty if nothing."""
        if any(not finding.part for finding in self.damaged):
            return "move the store and its .units folder away and run the job again"
        if self._still_damaged:
            return f"dneuro verify {self.store} --repair withdraws what is damaged; then run the job again"
        if not self.repaired and any(finding.part == parts.RECORDS for finding in self.missing):
            return f"dneuro verify {self.store} --repair writes the records of metadata again"
        return "" if self.ok else _AGAIN

    def to_dict(self) -> dict[str, Any]:
        """Return the verification as a plain dictionary."""
        found = [finding.to_dict() for finding in self.findings]
        return {
            "store": str(self.store), "ok": self.ok, "units": self.units, "damaged": len(self.damaged),
            "missing": len(self.missing), "repaired": self.repaired, "findings": found, "advice": self.advice,
            "masked": self.masked,
        }  # fmt: skip


def verify(store: str | Location, *, repair: bool = False, client: Any = None) -> Verification:
    """Compare everything that lies in a store with what its markers say was written.

    Parameters
    ----------
    store : str or Path
        A store made by dneuro, or its URL.
    repair : bool
        Withdraw the markers of what is damaged, so that the next run of the job makes it again, and only that; names
        and labels are written again from the list of images beside the store, metadata from what is kept of them, and
        what is kept of them from the store where all else of a group is as it was.
    client : distributed.Client, optional
        Where to read; the default is the active dask client, else threads.

    Returns
    -------
    Verification
        With one finding per damaged array and unit, missing unit, result, and foreign file.

    Raises
    ------
    StoreError
        If there is no store, or so little of one that nothing can be compared; or its bucket may not be used.
    BusyError
        If a run is at work on the store that is to be repaired.

    Notes
    -----
    **Cost**: reads every chunk once; memory of one row of chunks per thread, or of trained weights.
    """
    path = locate(store)
    executor = get_executor(client)
    if isinstance(path, RemotePath):
        path.check_bucket()
    if not repair:
        return _verify(path, executor)[0]
    if not metadata.is_known(path, ""):
        _listed(path)  # refuses what is no store, before anything is made beside it
    lease = Lease.acquire(units_folder(path) / "attempts")
    try:
        known = metadata.has_records(path)
        restored = _restore(path)
        found, lost = _verify(path, executor)
        spoilt = [group for group in lost if _is_spoilt(group, found)]
        made_again = {(one.part, one.unit) for one in found.damaged if one.part and one.part != parts.RECORDS}
        made_again |= {(_part_of(group), None) for group in spoilt}
        for part, unit in sorted(made_again, key=str):
            _withdraw(path, part, unit, found)
        said = {metadata.record_name(group): _renew(path, group, anew=group not in spoilt) for group in lost}
        if not known:
            metadata.forget_all(path)  # a store without records is compared without them, not with a few
        every = [replace(one, what=f"{one.what}; {said[one.where]}") if one.where in said else one
                 for one in (*restored, *found.findings)]  # fmt: skip
        return replace(found, findings=every, repaired=len(restored) + len(made_again) + len(lost))
    finally:
        lease.release()


def _verify(path: Location, executor: Executor) -> tuple[Verification, dict[str, str]]:
    """Return what a verification finds, and the groups whose record of metadata is lost, with what is wrong."""
    found = _listed(path)
    kept = metadata.records(path)
    altered, lost = metadata.altered(found, kept), metadata.lost(path, found, kept)
    findings = [*parts.structure(path, found), *parts.absent(path, found), *_labels(path, found)]
    todo = list(parts.checks(path, found))
    events.emit("started", "verify", total=len(todo), what="units")
    read: dict[int, list[Finding]] = {}
    calls = ((number, parts.check, (one,)) for number, one in enumerate(todo))
    with contextlib.closing(each(executor, calls)) as ended:
        for number, future in ended:
            read[number] = future.result()
            events.emit("progress", "verify", done=len(read), total=len(todo), what="units")
    findings += [finding for number in sorted(read) for finding in read[number]]
    findings += [*parts.statistics(path, found), *parts.results(path, found), *trained(path, found)]
    findings = [*parts.metadata(altered), *parts.records(lost), *parts.besides(findings, altered)]
    damaged = sum(finding.kind == "damaged" for finding in findings)
    events.emit("finished", "verify", f"{damaged} damaged", done=len(todo), total=len(todo), what="units")
    return Verification(path, findings, len(todo), masked=_masked(path, found)), lost


def _masked(path: Location, found: Catalogue) -> dict[str, str]:
    """Return name and cause of each image that is masked, as the markers of the units say it."""
    unit = found.attrs("")["dneuro"]["identity"]["images_per_unit"]
    folder = units_folder(path) / "extract" / IMAGES
    markers = (Unit(folder, f"{number:05d}").read() or {} for number in range(-(-parts.count_images(found) // unit)))
    return {name: why for marker in markers for name, why in marker.get("masked", ())}


def _restore(path: Location) -> list[Finding]:
    """Put metadata back as they were written; the chunks that they are about are compared afterwards."""
    gone = "its metadata were not there or could not be read"
    root = [Finding("damaged", "the root", gone, part=parts.METADATA)] if metadata.restore_root(path) else []
    altered = metadata.altered(catalogue(path), metadata.records(path))
    metadata.restore(path, altered)
    return [*root, *parts.metadata(altered)]


def _part_of(group: str) -> str:
    """Return the part that a group with a record of its own belongs to."""
    return group.removeprefix("layers/") or IMAGES


def _is_spoilt(group: str, found: Verification) -> bool:
    """Return whether some of a group is not what was written: then its metadata may not be either."""
    parts_of_it = {_part_of(group), *([""] if not group else [])}  # what no part makes again lies in the root
    return any(finding.part in parts_of_it for finding in found.damaged)


def _renew(path: Location, group: str, *, anew: bool) -> str:
    """Write a record that is lost again, of what is there now; or remove it. Return which it was, in words."""
    if anew and (path / group / METADATA if group else path / METADATA).is_file():
        metadata.remember(path, group)
        return "it is written anew, for all that was written there is as it was"
    metadata.forget(path, group)
    return "it is removed, and what it is about is made again"


def _listed(path: Location) -> Catalogue:
    found = catalogue(path)
    if "" not in found.nodes or not _says_origin(found.attrs("").get("dneuro")):
        why = found.broken.get("", "it says nothing of its origin")
        raise StoreError(
            f"{path} is no store made by dneuro, or its metadata are damaged: {why}",
            hint=f"dneuro verify {path} --repair"
            if metadata.is_known(path, "")
            else "move it and its .units folder away and run the job again",
        )
    return found


def _says_origin(said: Any) -> bool:
    """Return whether provenance says what a store is compared by."""
    identity = said.get("identity") if isinstance(said, dict) else None
    if not isinstance(identity, dict) or "images" not in identity:
        return False
    unit = identity.get("images_per_unit")
    return isinstance(unit, int) and unit > 0


def _repeating(found: Catalogue) -> dict[str, bool]:
    """Return the groups that names and labels of the images lie in, or may, and whether they must."""
    groups = {"": True}
    for layer, plan in parts.layers(found).items():
        groups[f"layers/{layer}"] = plan.keep != "stats"
    lost = (f"layers/{layer}" for layer in found.below("layers"))
    return groups | {group: True for group in lost if group not in found.nodes}


def _labels(path: Location, found: Catalogue) -> Iterator[Finding]:
    """Yield where numbers, names and labels of the images differ from the manifest."""
    manifest = _manifest(path)
    if isinstance(manifest, Finding):
        yield manifest
        return
    if manifest.fingerprint() != found.attrs("")["dneuro"]["identity"]["images"]:
        what = "the list of images is not the one that the store was made from"
        yield Finding("damaged", "manifest.npz", what, part=LABELS)
        return
    for group, needed in _repeating(found).items():
        wanted = _coords(manifest, found, group)
        for name in wanted.variables:
            node = f"{group}/{name}".lstrip("/")
            if node not in found.nodes:
                if needed:
                    yield Finding("damaged", node, "the array is not there", part=LABELS)
            elif what := _differs(path, node, wanted[name].values):
                yield Finding("damaged", node, what, part=LABELS)


def _coords(manifest: Manifest, found: Catalogue, group: str) -> xr.Dataset:
    """Return the coordinates that a group must have."""
    if group:
        return root_coords(manifest.names, manifest.labels, [])
    count = (found.nodes.get("class", {}).get("shape") or [0])[0]
    names = list(manifest.class_names) or [str(number) for number in range(count)]
    return root_coords(manifest.names, manifest.labels, names, manifest.wnids)


def _manifest(path: Location) -> Manifest | Finding:
    place = units_folder(path) / "manifest.npz"
    try:
        return Manifest.from_bytes(place.read_bytes(), str(place))
    except FileNotFoundError:
        return Finding("missing", place.name, "the list of images is not there; names and labels were not compared")
    except StoreError as error:
        return Finding("damaged", place.name, error.message, part=LABELS)


def _differs(path: Location, node: str, wanted: Any) -> str:
    """Return how an array differs from what it must hold; empty if not at all."""
    try:
        there = np.asarray(zarr.open_array(opened_by_zarr(path), path=node, mode="r")[:])
    except Exception as error:  # each codec has errors of its own
        return f"cannot be read: {str(error) or type(error).__name__}"
    if there.shape != np.shape(wanted):
        return f"has {len(there)} entries, the list of images {len(wanted)}"
    different = np.flatnonzero(there.astype(object) != np.asarray(wanted, dtype=object))
    if not len(different):
        return ""
    first = int(different[0])
    example = f"first {first}: {there[first]!r}, not {wanted[first]!r}"
    return f"{len(different)} entries differ from the list of images, {example}"


def _withdraw(path: Location, part: str, unit: int | None, found: Verification) -> None:
    """Make the next run of the job make this part again."""
    units = units_folder(path)
    step, _, rest = part.partition("/")
    if part == LABELS:
        _write_labels(path)
    elif part == "statistics":
        _withdraw_statistics(path, [one.where for one in found.damaged if one.part == part])
    elif step == TRAIN and rest:
        Unit(units / TRAIN, rest).withdraw()
    elif step == "results" and rest:
        Unit(units / "results" / rest.partition("/")[0], rest.partition("/")[2]).withdraw()
        remove_group(path, part)
    elif unit is not None:
        Unit(units / "extract" / part, f"{unit:05d}").withdraw()
    elif part == IMAGES:
        remove(units / "extract" / part)
        for array in parts.IMAGE_ARRAYS:
            if any(finding.where == array for finding in found.damaged):
                remove_group(path, array)
    elif part:  # metadata of a layer: without them its chunks are nothing
        remove(units / "extract" / part)
        withdraw_statistics(path, part)
        remove_group(path, f"layers/{part}")


def _withdraw_statistics(path: Location, damaged: list[str]) -> None:
    """Have statistics written again: these arrays, or all of them where the marker tells nothing of any."""
    arrays: dict[str, list[str]] = {}
    for node in damaged:
        _, layer, *name = node.split("/")
        if (path / "layers" / layer).exists():  # else it was removed just now, with all that was known of it
            arrays.setdefault(layer, []).extend(name)
    if not all(arrays.values()):
        Unit(units_folder(path) / "extract", "statistics").withdraw()
    elif arrays:
        doubt_statistics(path, arrays)


def _write_labels(path: Location) -> None:
    manifest = _manifest(path)
    if isinstance(manifest, Finding):
        (units_folder(path) / "manifest.npz").unlink(missing_ok=True)  # the next run lists the images anew
        return
    found = catalogue(path)
    for group, needed in _repeating(found).items():
        if group in found.nodes and needed:
            add_variables(path, group, _coords(manifest, found, group).reset_coords())


