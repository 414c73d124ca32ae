"""What a worker must know to extract any unit; sent to each worker once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dneuro.extract.plan import ExtractPlan
from dneuro.kernels.base import Kernel
from dneuro.spec.images import ImagesSpec
from dneuro.spec.network import NetworkSpec, Preprocessing
from dneuro.store.units import Unit, units_folder

IMAGES = "images"
"""The part of the step that writes the arrays with one entry per image; the other parts are the layers."""


@dataclass(frozen=True)
class Attempt:
    """One run of the driver. Only the newest may publish.

    Parameters
    ----------
    folder : Path
        Holds one folder per attempt, named by its number.
    number : int
        The attempt's.
    """

    folder: Path
    number: int

    @property
    def is_newest(self) -> bool:
        """False once a later run has taken over."""
        return not any(path.name.isdigit() and int(path.name) > self.number for path in self.folder.iterdir())


@dataclass(frozen=True)
class ExtractWork:
    """One extraction, as its workers see it.

    Parameters
    ----------
    store, manifest : Path
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
    kernels : dict
        Reductions that are fed on the way, by id; they see one maximum per channel.
    predictions : bool
        Run the network to its end and store the class it names.
    attempt : Attempt
        The driver's.
    threads : int
        Threads that torch may use.
    """

    store: Path
    manifest: Path
    images: ImagesSpec
    network: NetworkSpec
    preprocessing: Preprocessing
    weights: str | None
    loaded: tuple[str, str]
    plan: ExtractPlan
    fingerprints: dict[str, str]
    kernels: dict[str, Kernel]
    predictions: bool
    attempt: Attempt
    threads: int

    def unit(self, part: str, number: int) -> Unit:
        """Return the unit with this number of a layer, or of `IMAGES`."""
        return Unit(units_folder(self.store) / "extract" / part, f"{number:05d}")

    def missing(self, number: int) -> tuple[str, ...]:
        """Return the parts of a unit that have no valid marker."""
        wanted = self.fingerprints.items()
        return tuple(part for part, mark in wanted if self.unit(part, number).marker(mark) is None)
