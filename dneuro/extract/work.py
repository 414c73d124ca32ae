"""What a worker must know to extract any unit; sent to each worker once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dneuro.errors import BusyError
from dneuro.extract.plan import ExtractPlan
from dneuro.kernels.feeds import Feed
from dneuro.spec.images import ImagesSpec
from dneuro.spec.network import NetworkSpec, Preprocessing
from dneuro.store.files import Location
from dneuro.store.units import Unit, units_folder

IMAGES = "images"
"""The part of the step that writes the arrays with one entry per image; the other parts are the layers."""


@dataclass(frozen=True)
class Attempt:
    """One run of the driver. Only the newest may publish.

    Parameters
    ----------
    folder : Path or RemotePath
        Holds one folder per attempt, named by its number.
    number : int
        The attempt's.
    """

    folder: Location
    number: int

    @property
    def is_newest(self) -> bool:
        """False once a later run has taken over."""
        return not any(path.name.isdigit() and int(path.name) > self.number for path in self.folder.iterdir())

    def refuse_if_overtaken(self, what: str) -> None:
        """Refuse to write `what` once a later run has taken over: it may have done so already.

        Raises
        ------
        BusyError
            If it has.
        """
        if not self.is_newest:
            raise BusyError(f"another run has taken over; {what} is left to it")


@dataclass(frozen=True)
class ExtractWork:
    """One extraction, as its workers see it.

    Parameters
    ----------
    store, manifest : Path or RemotePath
        The store, and the list of images.
    images, network, preprocessing : spec
        What to read, what to run, and how a picture becomes an input.
    weights : str or None
        Path of weights that take the place of the network's own.
    loaded : (str, str)
        Identity of the network and fingerprint of its weights: what every worker must find.
    plan : ExtractPlan
        Sizes.
    fingerprints : dict
        Of every part: the layers, and `IMAGES`.
    feeds : dict
        Reductions that are fed on the way, by layer.
    required : dict
        Those of them that no later pass over the store can make up for, by layer: a unit without them is not done.
    predictions : bool
        Run the network to its end and store the class it names.
    attempt : Attempt
        The driver's.
    threads : int
        Threads that torch may use.
    picture_bytes : int
        What a process has for pictures that are being read.
    promised_bytes : int
        What it had when the store was begun: a picture that takes more is masked, and none that takes less.
    mask_nonfinite : bool
        Mask an image with NaN, infinity or what the dtype does not hold among its activations; else that ends the
        extraction.
    """

    store: Location
    manifest: Location
    images: ImagesSpec
    network: NetworkSpec
    preprocessing: Preprocessing
    weights: str | None
    loaded: tuple[str, str]
    plan: ExtractPlan
    fingerprints: dict[str, str]
    feeds: dict[str, tuple[Feed, ...]]
    required: dict[str, tuple[Feed, ...]]
    predictions: bool
    attempt: Attempt
    threads: int
    picture_bytes: int
    promised_bytes: int
    mask_nonfinite: bool = False

    def unit(self, part: str, number: int) -> Unit:
        """Return the unit with this number of a layer, or of `IMAGES`."""
        return Unit(units_folder(self.store) / "extract" / part, f"{number:05d}")

    def markers_of_layers(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield the markers of a unit of every layer of the store, also of those that this job does not name."""
        folders = (path for path in (units_folder(self.store) / "extract").iterdir() if path.name != IMAGES)
        found = (Unit(folder, f"{number:05d}").read() for folder in folders)
        return (marker for marker in found if marker is not None)

    @property
    def quarantine(self) -> Location:
        """Folder with a file for each unit that failed again and again and is left out."""
        return units_folder(self.store) / "quarantine"

    def left_out(self, number: int) -> Location:
        """Return where it is said of a unit that it is in quarantine, and why."""
        return self.quarantine / f"{number:05d}.json"

    def missing(self, number: int) -> tuple[str, ...]:
        """Return the parts of a unit that have no valid marker, or lack partial statistics that are required."""
        start, stop = self.plan.span(number)
        return tuple(
            part
            for part, mark in self.fingerprints.items()
            if lacks(self.unit(part, number).marker(mark), self.required.get(part, ()), stop - start)
        )


def lacks(marker: Mapping[str, Any] | None, required: Iterable[Feed], images: int) -> bool:
    """Return whether a unit of `images` images with this marker is not done, or not with all that is required."""
    if marker is None:
        return True
    keys = marker.get("kernels", ())
    return any(feed.found_in(keys, images) is None for feed in required)
