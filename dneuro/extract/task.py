"""What a worker does with one unit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dneuro.engine import stopping
from dneuro.errors import DneuroError, NonFiniteError, StoreError
from dneuro.extract.behind import Behind, Writer
from dneuro.extract.faults import Faults
from dneuro.extract.gathering import Feeding, Seen
from dneuro.extract.pipeline import Batch, Output, batches, cast, source_of
from dneuro.extract.same import SameImages
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.files import to_disk
from dneuro.kernels.base import Array, check_finite, pool
from dneuro.store.layout import ArrayPlan, LayerPlan
from dneuro.store.units import MAX_ATTEMPTS
from dneuro.store.writing import RowWriter


@dataclass(frozen=True)
class UnitReport:
    """What came of a unit.

    Parameters
    ----------
    number : int
        The unit's.
    images : int
        Images in it.
    masked : list of (str, str)
        Name and cause of each image that is masked.
    seconds : float
        Time the unit took.
    """

    number: int
    images: int
    masked: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


_WAY_OUT = (
    "look at weights and images; or extract: {on_nonfinite: mask}, which leaves such images out and lists them, "
    "like those that cannot be read; with another store: where this one has them in other layers"
)


class QuarantinedError(DneuroError):
    """A unit that was begun again and again and never finished."""


def extract_unit(work: ExtractWork, number: int, parts: Sequence[str]) -> UnitReport:
    """Extract the parts of one unit that are missing, and publish their markers; what is done is left alone.

    Count the attempt and withdraw the markers; write the chunks and read them back; wait until they are on the disk;
    write the partial statistics; make sure that no later run has taken over; publish.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    number : int
        The unit's.
    parts : sequence of str
        Layers, and `IMAGES`.

    Raises
    ------
    QuarantinedError
        If the unit was begun `MAX_ATTEMPTS` times before in this run.
    BusyError
        If a later run has taken over.
    FingerprintError
        If an image has another content than when an earlier run read it.
    NonFiniteError
        If an activation is NaN, infinite or beyond what the dtype holds, and such images are not to be masked.
    MemoryLimitError
        If there is no room for a picture that there was room for when the store was begun.
    """
    began = time.perf_counter()
    work.attempt.refuse_if_overtaken(f"unit {number}")  # before the markers are withdrawn: they may be the later run's
    start, stop = work.plan.span(number)
    missing = work.missing(number)
    if not set(parts) & set(missing):  # a scheduler has the report made again when the worker that held it is lost
        found = work.unit(parts[0], number).read() or {}
        return UnitReport(number, stop - start, [(name, why) for name, why in found.get("masked", [])])
    parts = [part for part in parts if part in missing]
    earlier = {part: _earlier_states(work, part, number) for part in parts}
    before = SameImages(work, number, parts)
    tries = max(work.unit(part, number).begin(work.attempt.number) for part in parts)
    if tries > MAX_ATTEMPTS:
        raise QuarantinedError(f"unit {number} was begun {MAX_ATTEMPTS} times and never finished")
    makers: list[_Part] = []
    for part in parts:
        makers.append(_Images(work, start, stop) if part == IMAGES else _Layer(work, part, start, stop))
    masked: list[tuple[str, str]] = []
    layers = [part for part in parts if part != IMAGES]
    faults = Faults(work, number, parts)
    with Behind() as behind, contextlib.closing(batches(work, layers, start, stop)) as stream:
        if stop - start > work.plan.batch:  # one batch has nothing to be written behind of
            for maker in makers:
                maker.writers = {name: behind.follow(writer) for name, writer in maker.writers.items()}
        for batch in stream:
            stopping.check()
            before.check(batch)
            faults.mask(batch)
            masked += batch.pictures.reasons
            for maker in makers:
                maker.add(batch)
            del batch  # not to be held while the next one is computed
            behind.turn()
        behind.settle()
    before.settle()
    # The markers are, by their own nature: after a power cut there must be none of what was in memory alone.
    to_disk(path for maker in makers for writer in maker.writers.values() for path in writer.files())
    for part, maker in zip(parts, makers, strict=True):
        unit = work.unit(part, number)
        marker = {
            "fingerprint": work.fingerprints[part],
            "unit": unit.name,
            "attempt": work.attempt.number,
            "tries": tries,
            "images": stop - start,
            "images_crc32": before.seen,
            "masked": masked,
            "checksums": {name: writer.finish() for name, writer in maker.writers.items()},
        }
        if faults.masked:
            marker["nonfinite"] = sorted(faults.masked.items())
        states = earlier[part] | maker.states()
        if states:
            marker |= unit.save_partials(states)
        work.attempt.refuse_if_overtaken(f"unit {number}")
        unit.publish(marker)
    return UnitReport(number, stop - start, masked, time.perf_counter() - began)


def _earlier_states(work: ExtractWork, part: str, number: int) -> dict[str, dict[str, Any]]:
    """Return the partial statistics of a part that is done, and is redone for others that it lacks."""
    unit = work.unit(part, number)
    marker = unit.marker(work.fingerprints[part]) or {}
    try:
        return unit.load_partials() if marker.get("kernels") else {}
    except StoreError:  # damaged: what this run needs is taken anew, and a later step finds that the rest is not there
        return {}


class _Part(Protocol):
    """One part of a unit in the making."""

    writers: dict[str, Writer]

    def add(self, batch: Batch) -> None:
        """Take the next images."""

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the partial statistics."""


def _writers(work: ExtractWork, arrays: Iterable[ArrayPlan], start: int, stop: int) -> dict[str, Writer]:
    return {plan.name: RowWriter(work.store, plan, start, stop) for plan in arrays}


class _Images:
    """The arrays with one entry per image."""

    def __init__(self, work: ExtractWork, start: int, stop: int) -> None:
        self.writers = _writers(work, work.plan.root, start, stop)
        self._labels = source_of(work).manifest.labels

    def add(self, batch: Batch) -> None:
        rows: dict[str, Array] = {
            "status": batch.status,
            "checksum": batch.pictures.checksums,
            "picture": batch.pictures.small,
        }
        if batch.predictions is not None:
            rows["prediction"] = batch.spread(batch.predictions, -1)
            rows["correct"] = batch.readable & (rows["prediction"] == self._labels[batch.numbers])
        for name, writer in self.writers.items():
            writer.add(rows[name])

    def states(self) -> dict[str, dict[str, Any]]:
        return {}


class _Layer:
    """What is kept of one layer, and the statistics that are taken of it."""

    def __init__(self, work: ExtractWork, name: str, start: int, stop: int) -> None:
        self._plan: LayerPlan = next(plan for plan in work.plan.layers if plan.name == name)
        self._arrays = self._plan.arrays(work.plan.images, work.plan.unit)
        self.writers = _writers(work, self._arrays, start, stop)
        self._feeding = Feeding(work.feeds.get(name, ()), self._plan.shape, self._plan.dtype, stop - start)

    def add(self, batch: Batch) -> None:
        values = batch.outputs.pop(self._plan.name)  # nobody else takes it, and it may be large
        found = self._take(values, batch.numbers[batch.readable]) if batch.readable.any() else {}
        for plan in self._arrays:
            rows = found.get(plan.name, np.empty((0, *plan.shape[1:]), plan.dtype))
            self.writers[plan.name].add(batch.spread(rows, np.nan if rows.dtype.kind == "f" else 0))

    def _take(self, output: Output, numbers: NDArray[np.int64]) -> dict[str, Array]:
        """Feed the statistics with the output for readable images; return their rows of each array."""
        looks = self._looks(output, numbers)
        self._feeding.add(looks, numbers)
        return self._rows(looks)

    def _looks(self, output: Output, numbers: NDArray[np.int64]) -> dict[str, Seen]:
        """Return what the statistics and the store see of a layer's output."""
        largest, places = output if isinstance(output, tuple) else (output, None)
        values = cast(largest, self._plan.dtype, self._plan.name, numbers)
        try:
            check_finite(values, {"image": numbers}, self._plan.name)
        except NonFiniteError as error:
            raise NonFiniteError(error.message, hint=_WAY_OUT) from None
        if isinstance(output, tuple):
            return {"max": (values, places)}
        looks: dict[str, Seen] = {"neuron": (values, None)}
        if self._plan.keep == "max" or "max" in self._feeding.looks:
            looks["max"] = pool(values, "max")
        if self._plan.keep == "mean":
            means = pool(output, "mean")[0]  # of what the layer yields, rounded once
            looks["mean"] = cast(means, self._plan.dtype, self._plan.name, numbers), None
        elif "mean" in self._feeding.looks:
            looks["mean"] = pool(values, "mean")
        return looks

    def _rows(self, looks: dict[str, Seen]) -> dict[str, Array]:
        """Return what is kept of a batch, by array."""
        if self._plan.keep == "full":
            return {"activation": looks["neuron"][0]}
        if self._plan.keep == "mean":
            return {"activation_mean": looks["mean"][0]}
        if self._plan.keep == "stats":
            return {}
        largest, places = looks["max"]
        rows = {"activation_max": largest}
        if places is not None:
            where = np.unravel_index(places, self._plan.shape[1:])
            rows |= {f"activation_{dim}": place.astype(np.int16) for dim, place in zip("yx", where, strict=False)}
        return rows

    def states(self) -> dict[str, dict[str, Any]]:
        return self._feeding.states()
