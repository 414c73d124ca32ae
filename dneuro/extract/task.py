"""What a worker does with one unit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dneuro.errors import BusyError, DneuroError
from dneuro.extract.pipeline import Batch, batches, cast, source_of
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.kernels.base import Array, State, check_finite, pool, state_to_numpy
from dneuro.store.layout import LayerPlan
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
        Name and cause of each image that could not be read.
    seconds : float
        Time the unit took.
    """

    number: int
    images: int
    masked: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


class QuarantinedError(DneuroError):
    """A unit that was begun again and again and never finished."""


def extract_unit(work: ExtractWork, number: int, parts: Sequence[str]) -> UnitReport:
    """Extract the parts of one unit that are missing, and publish their markers.

    Count the attempt and withdraw the markers; write the chunks and read them back; write the partial statistics;
    make sure that no later run has taken over; publish.

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
    """
    began = time.perf_counter()
    tries = max(work.unit(part, number).begin(work.attempt.number) for part in parts)
    if tries > MAX_ATTEMPTS:
        raise QuarantinedError(f"unit {number} was begun {MAX_ATTEMPTS} times and never finished")
    start, stop = work.plan.span(number)
    makers: list[_Part] = []
    for part in parts:
        makers.append(_Images(work, start, stop) if part == IMAGES else _Layer(work, part, start, stop))
    masked: list[tuple[str, str]] = []
    layers = [part for part in parts if part != IMAGES]
    for batch in batches(work, layers, start, stop):
        masked += batch.reasons
        for maker in makers:
            maker.add(batch)
    for part, maker in zip(parts, makers, strict=True):
        unit = work.unit(part, number)
        marker = {
            "fingerprint": work.fingerprints[part],
            "attempt": work.attempt.number,
            "images": stop - start,
            "masked": masked,
            "checksums": {name: writer.finish() for name, writer in maker.writers.items()},
        }
        states = maker.states()
        if states:
            marker |= unit.save_partials(states)
        if not work.attempt.is_newest:
            raise BusyError(f"another run has taken over; unit {number} is left to it")
        unit.publish(marker)
    return UnitReport(number, stop - start, masked, time.perf_counter() - began)


class _Part(Protocol):
    """One part of a unit in the making."""

    writers: dict[str, RowWriter]

    def add(self, batch: Batch) -> None:
        """Take the next images."""

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the partial statistics."""


class _Images:
    """The arrays with one entry per image."""

    def __init__(self, work: ExtractWork, start: int, stop: int) -> None:
        self.writers = {plan.name: RowWriter(work.store, plan, start, stop) for plan in work.plan.root}
        self._labels = source_of(work).manifest.labels

    def add(self, batch: Batch) -> None:
        rows: dict[str, Array] = {
            "status": (~batch.readable).astype(np.uint8),
            "checksum": batch.checksums,
            "picture": batch.pictures,
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
        arrays = self._plan.arrays(work.plan.images, work.plan.unit)
        self.writers = {plan.name: RowWriter(work.store, plan, start, stop) for plan in arrays}
        self._kernels = work.kernels
        self._states: dict[str, State] = {key: kernel.start() for key, kernel in work.kernels.items()}

    def add(self, batch: Batch) -> None:
        numbers = batch.numbers[batch.readable]
        values = cast(batch.outputs[self._plan.name], self._plan.dtype, self._plan.name, numbers)
        if len(values):
            check_finite(values, {"image": numbers}, self._plan.name)
        largest, places = pool(values, "max")
        if len(values):
            for key, kernel in self._kernels.items():
                self._states[key] = kernel.update(self._states[key], (largest, places), {"image": numbers})
        for name, writer in self.writers.items():
            rows = self._rows(name, values, largest, places)
            writer.add(batch.spread(rows, np.nan if rows.dtype.kind == "f" else 0))

    def _rows(self, name: str, values: Array, largest: Array, places: Array | None) -> Array:
        if name == "activation":
            return values
        if name == "activation_mean":
            return pool(values, "mean")[0].astype(self._plan.dtype)
        if name == "activation_max":
            return largest
        assert places is not None
        width = self._plan.shape[2]
        return (places // width if name == "activation_y" else places % width).astype(np.int16)

    def states(self) -> dict[str, dict[str, Any]]:
        return {key: state_to_numpy(state) for key, state in self._states.items()}
