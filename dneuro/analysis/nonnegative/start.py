"""Where a factorisation begins: at random, or at what a few reads say of the singular vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.nonnegative.arrays import Factors
from dneuro.analysis.nonnegative.reads import Reads

Matrix = NDArray[Any]

OVERSAMPLING = 10
"""Directions beyond the rank that the reads of `nndsvda` follow."""

READS = 3
"""Reads of `nndsvda`: singular values good to some per cent, which a start does not need better."""

NOTHING = 1e-6
"""Entries of `nndsvda` below this are filled up, as scikit-learn does."""


def random(reads: Reads, rank: int, seed: int) -> Factors:
    """Return factors drawn from (0, 1), as Saini & Papalexakis start."""
    rng = np.random.default_rng(seed)
    arrays = reads.arrays
    images = rng.random((arrays.images, rank)).astype(arrays.dtype)
    return Factors(images, [rng.random((count, rank)).astype(arrays.dtype) for count in arrays.neurons])


def nndsvda(reads: Reads, rank: int, seed: int) -> Factors:
    """Return factors made of the positive or negative parts of singular vectors, their zeros filled with the mean.

    Singular vectors of [√w₁ X₁, √w₂ X₂, …], uncentred, by subspace iteration: `READS` reads.

    References
    ----------
    Boutsidis & Gallopoulos, "SVD based initialization: A head start for nonnegative matrix factorization" (2008).
    """
    arrays = reads.arrays
    images, neurons = arrays.images, sum(arrays.neurons)
    columns = min(rank + OVERSAMPLING, images, neurons)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((neurons, columns)))[0]
    basis, applied = reads.subspace(basis, READS)
    squares, turn = np.linalg.eigh(applied.T @ applied)
    values = np.sqrt(np.maximum(squares[::-1][:rank], 0.0))
    turn = turn[:, ::-1][:, :rank]
    v, u = basis @ turn, applied @ turn
    u = np.divide(u, values, out=np.zeros_like(u), where=values > 0)
    assert reads.totals is not None
    roots = np.sqrt(np.asarray(arrays.weights))
    mean = float(roots @ reads.totals[:, 0]) / (images * neurons)
    left, right = (np.stack(side, axis=1) for side in zip(*map(_parts, u.T, v.T, values), strict=True))
    left[left < NOTHING] = mean
    right[right < NOTHING] = mean
    sides = np.split(right, np.cumsum(arrays.neurons)[:-1])
    dtype = arrays.dtype
    return Factors(left.astype(dtype), [(side / root).astype(dtype) for side, root in zip(sides, roots, strict=True)])


def _parts(u: Matrix, v: Matrix, value: float) -> tuple[Matrix, Matrix]:
    """Return the positive parts of a pair of singular vectors, or the negative ones where they are the larger."""
    best = (0.0, u, v)
    for sign in (1.0, -1.0):
        one, other = np.maximum(sign * u, 0), np.maximum(sign * v, 0)
        lengths = float(np.linalg.norm(one)), float(np.linalg.norm(other))
        if lengths[0] * lengths[1] > best[0]:
            best = (lengths[0] * lengths[1], one / lengths[0], other / lengths[1])
    scale = math.sqrt(value * best[0])
    return scale * best[1], scale * best[2]
