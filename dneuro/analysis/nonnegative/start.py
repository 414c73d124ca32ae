"""Where a factorisation begins: at random, or at what a few reads say of the singular vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.nonnegative.arrays import Factors
from dneuro.analysis.nonnegative.reads import Reads

Matrix = NDArray[Any]

OVERSAMPLING = 10
"""Directions beyond the rank that are followed for `nndsvda`."""

READS = 3
"""Reads that the leading directions take: singular values good to some per cent, which a start needs no better."""

NOTHING = 1e-6
"""Entries of `nndsvda` below this are filled up, as scikit-learn does."""


def random(reads: Reads, rank: int, seed: int) -> Factors:
    """Return factors drawn from (0, 1), as Saini & Papalexakis start."""
    rng = np.random.default_rng(seed)
    arrays = reads.arrays
    images = rng.random((arrays.images, rank)).astype(arrays.dtype)
    return Factors(images, [rng.random((count, rank)).astype(arrays.dtype) for count in arrays.neurons])


@dataclass(frozen=True)
class Leading:
    """The leading directions of M = [√w₁ X₁, √w₂ X₂, …], uncentred.

    Parameters
    ----------
    reads : Reads
        What gave them, in `READS` reads of subspace iteration.
    basis : array (neurons of all, columns) of float64
        Q, orthonormal.
    applied : array (images, columns) of float64
        M Q.
    """

    reads: Reads
    basis: Matrix
    applied: Matrix

    @classmethod
    def of(cls, reads: Reads, rank: int, oversampling: int, seed: int) -> Leading:
        """Read, and return them: `rank` and so many more."""
        arrays = reads.arrays
        images, neurons = arrays.images, sum(arrays.neurons)
        columns = min(rank + oversampling, images, neurons)
        basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((neurons, columns)))[0]
        return cls(reads, *reads.subspace(basis, READS))

    @property
    def mean(self) -> float:
        """Mean entry of M."""
        totals, arrays = self.reads.totals, self.reads.arrays
        assert totals is not None
        return float(np.asarray(arrays.roots) @ totals[:, 0]) / (arrays.images * sum(arrays.neurons))

    def unweighted(self, images: Matrix, neurons: Matrix) -> Factors:
        """Return factors of M as those of X₁, X₂, …."""
        arrays = self.reads.arrays
        sides = np.split(neurons, np.cumsum(arrays.neurons)[:-1])
        scaled = [side / root for side, root in zip(sides, arrays.roots, strict=True)]
        return Factors(images.astype(arrays.dtype), [side.astype(arrays.dtype) for side in scaled])


def driver_bytes(images: int, neurons: int, columns: int) -> int:
    """Return the bytes that the process which asks holds while directions are made orthonormal, for the plan."""
    return 8 * (images + neurons) * 7 * columns  # what a read gave, its rotation, and what LAPACK makes of it


def nndsvda(reads: Reads, rank: int, seed: int) -> Factors:
    """Return factors made of the positive or negative parts of singular vectors, their zeros filled with the mean."""
    found = Leading.of(reads, rank, OVERSAMPLING, seed)
    return found.unweighted(*parts(found, rank))


def parts(found: Leading, rank: int) -> tuple[Matrix, Matrix]:
    """Return such factors of M.

    References
    ----------
    Boutsidis & Gallopoulos, "SVD based initialization: A head start for nonnegative matrix factorization" (2008).
    """
    squares, turn = np.linalg.eigh(found.applied.T @ found.applied)
    values = np.sqrt(np.maximum(squares[::-1][:rank], 0.0))
    turn = turn[:, ::-1][:, :rank]
    v, u = found.basis @ turn, found.applied @ turn
    u = np.divide(u, values, out=np.zeros_like(u), where=values > 0)
    left, right = (np.stack(side, axis=1) for side in zip(*map(_parts, u.T, v.T, values), strict=True))
    left[left < NOTHING] = found.mean
    right[right < NOTHING] = found.mean
    return left, right


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
