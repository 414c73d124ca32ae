"""Handwritten digits that come with scikit-learn: images for a first try, without a download."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dneuro.allocation import LIBRARIES_BYTES
from dneuro.images.decode import Picture
from dneuro.images.manifest import Manifest
from dneuro.images.memory import NO_LIMIT, Share
from dneuro.images.sampling import draw
from dneuro.spec.images import DigitsImages

SIDE = 28
"""Height and width of a picture in pixels, as in MNIST."""


class DigitsSource:
    """1,797 digits of 8 × 8 pixels with 17 grey levels, as 28 × 28 pixels with 256 (bilinear)."""

    held_bytes = LIBRARIES_BYTES
    is_near = True

    def __init__(self, spec: DigitsImages, manifest: Manifest | None = None) -> None:
        self.manifest = _list(spec) if manifest is None else manifest

    def fetch(self, index: int) -> None:
        """Do nothing: what is near enough; see `ImageSource.fetch`."""

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        """Return picture (28, 28) and CRC-32 of its 64 grey levels; see `ImageSource.read`."""
        share.row(SIDE, SIDE, 0, "digits")
        levels = _levels()[0][self.manifest.indices[index]]
        brightness = np.rint(levels * (255 / 16)).astype(np.uint8)
        scaled = Image.fromarray(brightness).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.array(scaled), zlib.crc32(levels)

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        """Return the same; see `ImageSource.load`."""
        return self.read(index, share)


def _list(spec: DigitsImages) -> Manifest:
    levels, labels = _levels()
    indices = draw(spec, len(labels), "the digits of scikit-learn")
    return Manifest(
        names=np.array([f"digit-{i:04d}" for i in indices], object),
        labels=labels[indices],
        class_names=tuple("0123456789"),
        identity=np.array([f"{zlib.crc32(levels[i]):08x}" for i in indices], object),
        indices=indices,
        source=spec.model_dump(mode="json"),
    )


@lru_cache(maxsize=1)
def _levels() -> tuple[NDArray[np.uint8], NDArray[Any]]:
    from sklearn.datasets import load_digits  # takes a second, and only this source needs it

    digits = load_digits()
    return np.ascontiguousarray(digits.images, np.uint8), digits.target
