"""The images of a store once more, as the network saw them: read again from where they lie."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dneuro.allocation import keep_until_others_come
from dneuro.errors import FingerprintError, ImageSourceError, UnreadableImageError
from dneuro.extract.reading import seen
from dneuro.images.manifest import Manifest
from dneuro.images.memory import PictureMemory
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import ImagesSpec
from dneuro.spec.network import Preprocessing
from dneuro.store.files import Location, locate
from dneuro.store.opening import Store
from dneuro.store.units import Unit, units_folder

MOVED = "bring the images back, or say where they lie now: images=… of dn.top_patches, in a job images: {root: …}"

_lock = threading.Lock()
_opened: dict[tuple[Any, ...], tuple[ImageSource, PictureMemory]] = {}


@dataclass(frozen=True)
class Views:
    """Gives any image of a store as its network saw it. Small: it travels with every task.

    Parameters
    ----------
    store : str
        The store, for messages.
    images : ImagesSpec
        Where the images lie.
    manifest : Path, RemotePath or None
        Their list as the store has it; None where every process that reads lists them anew.
    fingerprint : str
        Of that list: other images are refused.
    preprocessing : Preprocessing
        How a picture becomes an input.
    memory : int or None
        Bytes that a process has for pictures that are being read; None sets no limit.
    """

    store: str
    images: ImagesSpec
    manifest: Location | None
    fingerprint: str
    preprocessing: Preprocessing
    memory: int | None

    def see(self, number: int, checksum: int | None = None) -> NDArray[np.uint8]:
        """Return what the network saw of an image, (height, width, channel), before it was standardised.

        Parameters
        ----------
        number : int
            The image's, in the store.
        checksum : int, optional
            What its stored content had as CRC-32 when the store was made.

        Raises
        ------
        ImageSourceError
            If it cannot be read again; names image, place and cause.
        FingerprintError
            If it has another content than when the store was made.
        """
        source, memory = self._open()
        name = source.manifest.names[number]
        try:
            view, crc = seen(source, number, memory, self.preprocessing)
        except (UnreadableImageError, OSError) as error:
            why = error.message if isinstance(error, UnreadableImageError) else str(error)
            raise ImageSourceError(
                f"image {number}, {name}, of {self.store} cannot be read again{_place(self.images)}: {why}", hint=MOVED
            ) from error
        if checksum is not None and crc != checksum:
            raise FingerprintError(
                f"image {number}, {name}{_place(self.images)}, has another content than when {self.store} was made",
                hint=MOVED,
            )
        return view

    def _open(self) -> tuple[ImageSource, PictureMemory]:
        """Return the images, and the memory for those that are being read: once per process, for all of its tasks."""
        key = (self.images.model_dump_json(), str(self.manifest), self.fingerprint, self.memory)
        with _lock:
            if key not in _opened:
                _opened.clear()
                _opened[key] = self._source(), PictureMemory(self.memory)
            return _opened[key]

    def _source(self) -> ImageSource:
        if self.manifest is not None:
            return open_source(self.images, Manifest.from_bytes(self.manifest.read_bytes(), str(self.manifest)))
        source = open_source(self.images)
        if source.manifest.fingerprint() != self.fingerprint:
            raise ImageSourceError(
                f"{getattr(self.images, 'root', self.images.source)} holds other images than {self.store} was made of: "
                f"{len(source.manifest)}, names, sizes or classes differ",
                hint="images={…} as the images: part of the job says it, with the same sample and seed",
            )
        return source


def forget() -> bool:
    """Let go of the images that this process has opened, and return whether there were any."""
    with _lock:
        opened = bool(_opened)
        _opened.clear()
    return opened


keep_until_others_come("dneuro.engine", forget)  # whatever pass computes patches opens them


def views_of(store: Store, images: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Views:
    """Return the images of a store.

    Parameters
    ----------
    store : Store
        Names its images, its preprocessing, and the memory that its workers had for pictures.
    images : str, path or mapping, optional
        Where the images lie now, if not where they were: a new ``root``, or all that the ``images:`` part of a job
        says.

    Raises
    ------
    ImageSourceError
        If `images` does not say where images lie.
    """
    attrs, units = store.attrs, units_folder(store.path)
    said = {key: value for key, value in attrs["images"].items() if key != "fingerprint"}
    manifest: Location | None = None
    if images is not None:  # the list has offsets in an archive, names as a storage has them: those of the old place
        said = dict(images) if isinstance(images, Mapping) else {**said, "root": os.fspath(images)}
    elif (units / "manifest.npz").is_file():
        manifest = locate(units / "manifest.npz")
        manifest = manifest.absolute() if isinstance(manifest, Path) else manifest
    try:
        spec: ImagesSpec = TypeAdapter(ImagesSpec).validate_python(said)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ImageSourceError(f"images={images!r}: {why}", hint="images='/where/they/lie'") from None
    kept = Unit(units / "extract", "pictures").read() or {}
    return Views(
        str(store.path), spec, manifest, str(attrs["images"]["fingerprint"]),
        Preprocessing.model_validate(attrs["preprocessing"]), kept.get("picture_bytes"),
    )  # fmt: skip


def _place(images: ImagesSpec) -> str:
    root = getattr(images, "root", None)
    return f" from {root}" if root else ""
