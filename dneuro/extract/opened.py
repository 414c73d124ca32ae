"""Images that a process has opened: once for all of its tasks, for some are held in memory."""

from __future__ import annotations

import threading
from typing import Any

from dneuro.errors import ImageSourceError
from dneuro.images.manifest import Manifest
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import ImagesSpec
from dneuro.store.files import Location

_lock = threading.RLock()
_sources: dict[tuple[Any, ...], ImageSource] = {}


def open_once(
    images: ImagesSpec, manifest: Location | None, fingerprint: str, *, of: str = "", attempt: int = 0
) -> ImageSource:
    """Return images, opened once per process; the ones before are let go of.

    Parameters
    ----------
    images : ImagesSpec
        Which.
    manifest : Path, RemotePath or None
        Their list as it was made for a store; None lists them anew.
    fingerprint : str
        Of what the list was made for; of a list that is made anew its own.
    of : str
        The store, for messages.
    attempt : int
        Number of the run: another one opens them again.

    Raises
    ------
    ImageSourceError
        If images that are listed anew are missing, or others.
    """
    key = (images.model_dump_json(), str(manifest), fingerprint, attempt)
    with _lock:
        if key not in _sources:
            _sources.clear()
            _sources[key] = _listed(images, fingerprint, of) if manifest is None else open_source(
                images, Manifest.from_bytes(manifest.read_bytes(), str(manifest))
            )  # fmt: skip
        return _sources[key]


def _listed(images: ImagesSpec, fingerprint: str, of: str) -> ImageSource:
    source = open_source(images)
    if source.manifest.fingerprint() != fingerprint:
        place = getattr(images, "root", images.source)
        raise ImageSourceError(
            f"{place} holds other images than {of} was made of: {len(source.manifest)}, names, sizes or classes differ",
            hint="images={…} as the images: part of the job says it, with the same sample and seed",
        )
    return source
