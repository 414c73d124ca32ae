"""How Z is made of the activations, and what that needs to know first."""

from __future__ import annotations

import numpy as np

from dneuro.analysis.arrays import View
from dneuro.engine.executors import Executor
from dneuro.kernels import Moments, Standardise
from dneuro.kernels.standardise import Mode


def standardisation(seen: View, mode: Mode, executor: Executor, step: str) -> tuple[Standardise, int]:
    """Return how Z is made, and the number of passes that took: one for means over the images, unless known."""
    if mode in (None, "image"):
        return Standardise(mode), 0
    passes = int(not seen.knows(Moments()))
    found = seen.reduce({"moments": Moments()}, executor, step)["moments"]
    found = {name: values.reshape(-1) for name, values in found.items()}
    # What does not vary is exactly that; the rounding of its mean is not to be taken for a variation.
    varies = found["max"] > found["min"]
    mean = np.where(varies, found["mean"], found["min"])
    return Standardise(mode, mean=mean, std=np.where(varies, found["std"], 0.0) if mode == "neuron" else None), passes
