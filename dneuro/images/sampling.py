"""A seeded sample of the images of a source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError
from dneuro.spec.images import ImagesSpec


def draw(spec: ImagesSpec, available: int, where: str) -> NDArray[np.int64]:
    """Return the indices (ascending, int64) of the images that `spec` asks for: all, or a sample.

    Images get random 64-bit keys and those with the smallest keys are taken. So a larger sample with the
    same seed holds the smaller one, and the draw is the same under every version of NumPy: the raw output
    of a bit generator is guaranteed, what ``Generator.choice`` makes of it is not (NEP 19).

    Raises
    ------
    ImageSourceError
        If more images are asked for than there are.
    """
    if spec.sample is None:
        return np.arange(available, dtype=np.int64)
    if spec.sample > available:
        raise ImageSourceError(
            f"{where} has {available:,} images; a sample of {spec.sample:,} cannot be drawn without repeats",
            hint=f"set sample: {available}, or leave it out to take all",
        )
    keys = np.random.PCG64(spec.seed).random_raw(available)
    chosen = np.argsort(keys, kind="stable")[: spec.sample]
    return np.sort(chosen).astype(np.int64)
