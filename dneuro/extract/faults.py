"""Images with activations that cannot be stored, NaN, infinity or too large, or with an output that names no class.

They are masked where the job says so, else the end of the extraction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import NonFiniteError
from dneuro.extract.pipeline import Batch, source_of
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.store.rounding import LARGEST, rounded

OUTPUT = "the network's largest output is NaN or infinite"
_WAY_OUT = (
    "look at weights and images; or extract: {on_nonfinite: mask}, which leaves such images out and lists them, "
    "with another store: where this one has them in other layers; or {predictions: false} and another store:, which "
    "asks for no classes"
)


class Faults:
    """Masks the images of a unit that have a number that is not finite, or is not in the store, in all layers alike.

    A store has one list of masked images for all of its layers. What an earlier run masked stays masked in the layers
    that are added now and in the entries per image that are made again, and what it did not mask cannot be any more.
    The layers need not be this job's.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    number : int
        The unit's.
    parts : collection of str
        What is extracted of it now, and whose markers are withdrawn; the other parts are done.
    """

    def __init__(self, work: ExtractWork, number: int, parts: Collection[str]) -> None:
        others = [part for part in work.fingerprints if part not in parts]
        done = [work.unit(part, number).marker(work.fingerprints[part]) for part in others]
        markers = [marker for marker in done if marker is not None]
        if IMAGES in parts:  # whose marker has the masks of all layers: without it each has its own
            markers += work.markers_of_layers(number)
        self._masks = work.mask_nonfinite
        self._dtypes = {plan.name: plan.dtype for plan in work.plan.layers}
        self._predicts = IMAGES in parts  # else the classes are stored already, or none are
        self._known = {int(image): str(why) for marker in markers for image, why in marker.get("nonfinite", ())}
        self._settled = bool(markers)
        self._store, self._names = work.store, source_of(work).manifest.names
        self.masked: dict[int, str] = {}

    def mask(self, batch: Batch) -> None:
        """Mask images of a batch.

        Raises
        ------
        NonFiniteError
            If an image would have to be masked that other layers of the store have; or its class is to be stored,
            the network's output is not finite, and such images are not to be masked.
        """
        readable = batch.numbers[batch.readable]
        wrong = {int(image): self._known[int(image)] for image in readable if int(image) in self._known}
        lost = [image for image in self._without_class(batch, readable) if image not in wrong]
        if self._masks:
            for image, what in (*self._faults(batch, readable), *((image, OUTPUT) for image in lost)):
                if self._settled and image not in wrong:
                    raise NonFiniteError(
                        f"{self._names[image]}: {what}, and {self._store} has this image in other layers",
                        hint="give the job another store:, where it is masked in all of them",
                    )
                wrong.setdefault(image, what)
        elif lost and all(image in wrong for image, _ in self._faults(batch, readable)):  # a layer says more of its own
            raise NonFiniteError(
                f"{OUTPUT}: image {lost[0]}, {self._names[lost[0]]} ({len(lost)} such images in this batch); its class "
                "is not known",
                hint=_WAY_OUT,
            )
        if wrong:
            batch.mask(np.isin(batch.numbers, list(wrong)))
            batch.pictures.reasons += [(str(self._names[image]), what) for image, what in wrong.items()]
            self.masked |= wrong

    def _without_class(self, batch: Batch, readable: NDArray[np.int64]) -> list[int]:
        """Return the images of which the network says no class."""
        if not self._predicts or batch.predictions is None:
            return []
        found: list[int] = readable[batch.predictions < 0].tolist()
        return found


    def _faults(self, batch: Batch, numbers: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
        """Yield each image with a number that cannot be stored, and what it is."""
        for layer, output in batch.outputs.items():
            values: NDArray[Any] = output[0] if isinstance(output, tuple) else output
            dtype = self._dtypes.get(layer, "float32")
            if _all_fit(values, dtype):
                continue
            for image, row in zip(numbers, values, strict=True):
                bad = np.argwhere(~np.isfinite(row if dtype == "float32" else rounded(row, dtype)))
                if len(bad):
                    place = tuple(int(i) for i in bad[0])
                    what = f"{layer}, neuron {place} is {float(row[place]):.6g}"
                    beyond = f", beyond what {dtype} holds (±{LARGEST[dtype]})" if np.isfinite(row[place]) else ""
                    yield int(image), what + beyond


def _all_fit(values: NDArray[Any], dtype: str) -> bool:
    """Return whether all numbers are finite in a dtype; now and then False though they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "float32":
            return bool(np.isfinite(values.sum(dtype=np.float32)))  # as it is if all terms are, unless it overflows
        ends = np.array([values.min(initial=0), values.max(initial=0)])
        return bool(np.isfinite(rounded(ends, dtype)).all())
