"""The reads of a factorisation Xⱼ ≈ F Oⱼᵀ: by blocks of images, or by panels of neurons, whichever the chunks allow.

In blocks of images a read improves F (images × components), whose rows are the blocks' own, and learns what every
O needs; in panels of neurons it is the other way round. Both go through the same sequence F, O, F, O, … of updates.
"""

from __future__ import annotations

from dneuro.analysis.nonnegative.arrays import Arrays
from dneuro.analysis.nonnegative.by_images import ByImages
from dneuro.analysis.nonnegative.by_neurons import ByNeurons
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.engine.executors import Executor
from dneuro.engine.plan import Plan

Reads = ByImages | ByNeurons


def choose(arrays: Arrays, executor: Executor, step: str, columns: int) -> tuple[Reads, Plan]:
    """Return the way to read that the chunks allow, and the plan of one read.

    By blocks of images, which costs one read less, unless their chunks make those much larger than panels of neurons
    would be: an array whose chunks hold all images.
    """
    images, neurons = ByImages(arrays, executor, step), ByNeurons(arrays, executor, step)
    (one, block), (other, panel) = (reads.plan(executor, columns) for reads in (images, neurons))
    fits = one.worker_bytes <= executor.memory
    better = other.worker_bytes <= executor.memory and panel < block
    if better and (not fits or block > 2 * BLOCK_BYTES):
        return neurons, other
    return images, one
