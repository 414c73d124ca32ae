"""The leading eigenvectors of ZᵀZ, Z being standardised images × neurons that never exist as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import View
from dneuro.engine.executors import Executor
from dneuro.kernels import Energy, Standardise

Matrix = NDArray[np.float64]

OVERSAMPLING = 10
"""Vectors beyond the rank that a Krylov block has."""
MAX_STEPS = 12
"""Most passes of the Krylov method before it says that it has not converged."""
TOLERANCE = 1e-4
"""Krylov stops when every certificate is below this share of its singular value. The error of a singular value goes
with the square of that."""
RESOLVED = 1e-7
"""Singular values below this share of the largest one drown in the rounding of ZᵀZ; they hold up nobody."""
DUST = 1e-13
"""What ZᵀZ adds to a basis is rounding if it is below this share of the largest eigenvalue."""


@dataclass(frozen=True)
class Eigenvectors:
    """What a method has found.

    Parameters
    ----------
    vectors : array (neurons, rank)
        V, orthonormal, largest eigenvalue first.
    applied : array (neurons, rank)
        ZᵀZ V.
    total : float
        ‖Z‖²_F.
    passes : int
        Times that the array was read.
    converged : bool
        False if the Krylov method ran out of passes.
    """

    vectors: Matrix
    applied: Matrix
    total: float
    passes: int
    converged: bool


def gram(seen: View, standardise: Standardise, rank: int, executor: Executor) -> Eigenvectors:
    """Diagonalise ZᵀZ (neurons × neurons), made in one pass."""
    from scipy.linalg import eigh  # not at the top: workers load this file too, and SciPy is large

    energy = Energy(standardise)
    found = seen.reduce({"energy": energy}, executor, "svd")["energy"]
    product, p = found["product"], seen.labels.count
    vectors = eigh(product, subset_by_index=(p - rank, p - 1))[1][:, ::-1]
    return Eigenvectors(vectors, product @ vectors, float(found["total"]), int(not seen.knows(energy)), True)


def krylov(seen: View, standardise: Standardise, rank: int, seed: int, executor: Executor) -> Eigenvectors:
    """Build a block Krylov space of ZᵀZ, one pass per block, until the certificates are small.

    The basis grows by one orthonormal block per pass. The pass gives ZᵀZ times the new block, so ZᵀZ is known on the
    whole basis, and both the Rayleigh-Ritz values and their residuals come without another read.
    """
    p = seen.labels.count
    columns = min(rank + OVERSAMPLING, len(seen.taking_part), p)
    block = np.linalg.qr(np.random.default_rng(seed).standard_normal((p, columns)))[0]
    basis, applied = np.empty((p, 0)), np.empty((p, 0))
    passes, converged = 0, False
    while not converged and passes < MAX_STEPS:
        found = seen.reduce({"energy": Energy(standardise, block)}, executor, "svd")["energy"]
        passes += 1
        basis, applied = np.hstack([basis, block]), np.hstack([applied, found["product"]])
        projected = basis.T @ applied
        squares, small = np.linalg.eigh((projected + projected.T) / 2)
        squares, small = squares[::-1], small[:, ::-1][:, :rank]
        values = np.sqrt(np.maximum(squares[:rank], 0.0))
        vectors, images = basis @ small, applied @ small
        matter = values > RESOLVED * values[0]
        open_share = (certify(images, vectors, values)[matter] / values[matter]).max(initial=0.0)
        block = _beyond(basis, found["product"], DUST * squares[0])
        # Where nothing is left to add, the space holds all that Z does to it, and the values are exact.
        converged = bool(open_share <= TOLERANCE) or block.shape[1] == 0
    if not converged:
        message = f"not converged after {passes} passes: a certificate is {open_share:.1e} of its σ"
        events.emit("warning", "svd", message)
    return Eigenvectors(vectors, images, float(found["total"]), passes, converged)


def _beyond(basis: Matrix, product: Matrix, dust: float) -> Matrix:
    """Return orthonormal columns that span what `product` adds to an orthonormal basis; none if that is dust."""
    new, sizes, _ = np.linalg.svd(product - basis @ (basis.T @ product), full_matrices=False)
    new = new[:, sizes > dust]
    return np.linalg.qr(new - basis @ (basis.T @ new))[0]  # twice is enough (Kahan, Parlett)


def certify(applied: Matrix, vectors: Matrix, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each σ the radius within which some true singular value lies.

    Some eigenvalue λ of ZᵀZ lies within ‖r‖ of σ², r = ZᵀZ v − σ² v, and |√λ − σ| is at most ‖r‖ / σ and at most √‖r‖.
    """
    norms = np.linalg.norm(applied - vectors * values**2, axis=0)
    radii: NDArray[np.float64] = np.sqrt(norms)
    sure = values > radii
    radii[sure] = norms[sure] / values[sure]
    return radii
