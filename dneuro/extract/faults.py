"""Images with NaN or infinity among their activations: masked where the job says so, else the end of the extraction."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import NonFiniteError
from dneuro.extract.pipeline import Batch, source_of
from dneuro.extract.work import ExtractWork


class Faults:
    """Masks the images of a unit that have a number that is not finite, in all layers alike.

    A store has one list of masked images for all of its layers. What an earlier run masked stays masked in the layers
    that are added now, and what it did not mask cannot be any more.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    number : int
        The unit's.
    parts : collection of str
        What is extracted of it now; the other parts are done.
    """

    def __init__(self, work: ExtractWork, number: int, parts: Collection[str]) -> None:
        others = [part for part in work.fingerprints if part not in parts]
        done = [work.unit(part, number).marker(work.fingerprints[part]) for part in others]
        markers = [marker for marker in done if marker is not None]
        self._masks = work.mask_nonfinite
        self._known = {int(image): str(why) for marker in markers for image, why in marker.get("nonfinite", ())}
        self._settled = bool(markers)
        self._store, self._names = work.store, source_of(work).manifest.names
        self.masked: dict[int, str] = {}

    def mask(self, batch: Batch) -> None:
        """Mask images of a batch.

        Raises
        ------
        NonFiniteError
            If an image would have to be masked that other layers of the store have.
        """
        readable = batch.numbers[batch.readable]
        wrong = {int(image): self._known[int(image)] for image in readable if int(image) in self._known}
        if self._masks:
            for image, what in _faults(batch, readable):
                if self._settled and image not in wrong:
                    raise NonFiniteError(
                        f"{self._names[image]}: {what}, and {self._store} has this image in other layers",
                        hint="give the job another store:, where it is masked in all of them",
                    )
                wrong.setdefault(image, what)
        if wrong:
            batch.mask(np.isin(batch.numbers, list(wrong)))
            batch.pictures.reasons += [(str(self._names[image]), what) for image, what in wrong.items()]
            self.masked |= wrong


def _faults(batch: Batch, numbers: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """Yield each image with a number that is not finite, and what it is."""
    for layer, output in batch.outputs.items():
        values: NDArray[Any] = output[0] if isinstance(output, tuple) else output
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum(dtype=np.float32)):  # as it is if all terms are, unless it overflows
                continue
        for image, row in zip(numbers, values, strict=True):
            bad = np.argwhere(~np.isfinite(row))
            if len(bad):
                place = tuple(int(i) for i in bad[0])
                yield int(image), f"{layer}, neuron {place} is {float(row[place])}"
