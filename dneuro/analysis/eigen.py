"""The leading right singular vectors of Z, standardised images × neurons that never exist as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import View
from dneuro.engine.executors import Executor
from dneuro.engine.plan import fit
from dneuro.kernels import Energy, Scores, Standardise, Step, Triangle
from dneuro.quantities import MiB

Matrix = NDArray[np.float64]

MAX_STEPS = 12
"""Most passes of the Krylov method before it says that it has not converged."""
FEWEST_STEPS = 6
"""As many where the process that asks has no room for more; four are enough as a rule."""
RESOLVED = 1e-7
"""Singular values below this share of the largest one drown in the rounding of ZᵀZ; they hold up nobody."""
DUST = 1e-14
"""What ZᵀZ adds to a basis is rounding if it is below this share of the largest eigenvalue."""
SAMPLE = 8
"""The start block is made from one block of images in so many."""
SAMPLE_STEPS = 3
"""Steps on that sample: together less than half a pass, and they save more than one."""
PROBES = 10
"""Columns of the start block that are random beside those of a sample: they see the images that it lacks."""
HIDDEN = 2.25
"""No singular value of more than so many times the smallest that is wanted may have stayed unseen: two passes over
values that fall slowly can tell 2 to 2.1, and one more for what is left of that would be as long as each of them."""
UNLIKELY = 1e-3
"""Probability with which it may have, for all that the random columns tell."""
SAMPLED_BLOCKS = 16
"""With fewer blocks a pass is short, and the start is random."""


@dataclass(frozen=True)
class Eigenvectors:
    """What a method has found.

    Parameters
    ----------
    vectors : array (neurons, rank)
        V, orthonormal, largest singular value first.
    applied : array (neurons, rank)
        ZᵀZ V.
    total : float
        ‖Z‖²_F.
    passes : int
        Times that the array was read.
    converged : bool
        False if the Krylov method ran out of passes.
    images, scores : array (images,), (images, rank), optional
        ZV, where the method has it.
    rounding : float
        What rounding may have added to a singular value; 0 for float64.
    """

    vectors: Matrix
    applied: Matrix
    total: float
    passes: int
    converged: bool
    images: NDArray[np.int64] | None = None
    scores: Matrix | None = None
    rounding: float = 0.0

    def leading(self, count: int) -> Eigenvectors:
        """Return the first so many."""
        scores = None if self.scores is None else self.scores[:, :count]
        return replace(self, vectors=self.vectors[:, :count], applied=self.applied[:, :count], scores=scores)


SCATTERED = 160 * MiB
"""At most so much more a process takes for arrays that come one by one, as the C library lays them: a third more was
measured of 170 MiB, a fifth of 460; those of more than 32 MiB each are given back one by one."""


def space_bytes(steps: int, rows: int, features: int, columns: int, rank: int, item: int) -> int:
    """Return the bytes that the process which asks holds of a Krylov space of Z (rows × features), for the plan.

    Parameters
    ----------
    steps, columns : int
        Blocks of the space, and the columns of each.
    rank, item : int
        Vectors that are wanted, and bytes of an entry of ZQ.
    """
    width = min(steps * columns, features, rows + columns)  # what Z does to anything has no more than its rows
    # The basis and its image; a block being made orthonormal. ZᵀZ on the basis, its eigenvectors, LAPACK's copies.
    held = 16 * features * width + 56 * features * columns + 56 * width**2
    # ZQ of all blocks; of one as it comes together, or widened to be multiplied; the scores of those wanted.
    held += rows * (item * width + 8 * columns * max(1, item // 4) + 16 * rank)
    return held + min(2 * held // 5, SCATTERED)


def gram_bytes(features: int) -> int:
    """Return the bytes that the process which asks holds while it diagonalises ZᵀZ, for the plan."""
    return 40 * features**2  # ZᵀZ, on its way too; LAPACK's copy of it, or what it makes of vectors; its eigenvectors


def tsqr_bytes(rows: int, features: int) -> int:
    """Return the bytes that the process which asks holds while it decomposes the triangle, for the plan."""
    return 80 * min(rows, features) * features  # the triangle, its factors, LAPACK's copies of them and its work


def columns_of(rank: int, images: int, neurons: int) -> int:
    """Return the columns of a Krylov block: three and a half times the rank, 10 to 40 more, and the random ones.

    A step costs its reading; wider blocks need fewer.
    """
    return min(rank + min(max(PROBES, 5 * rank // 2), 40) + PROBES, images, neurons)


Enough = Callable[[NDArray[np.float64], float], int]
"""Of all singular values and ‖Z‖²_F: how many of the leading ones are wanted."""


def gram(seen: View, standardise: Standardise, executor: Executor, enough: Enough) -> Eigenvectors:
    """Diagonalise ZᵀZ (neurons × neurons), made in one pass."""
    from scipy.linalg import eigh  # not at the top: workers load this file too, and SciPy is large

    energy = Energy(standardise)
    found = seen.reduce({"energy": energy}, executor, "svd")["energy"]
    squares, vectors = eigh(found["product"])  # ascending
    total = float(found["total"])
    count = enough(np.sqrt(np.maximum(squares[::-1], 0.0)), total)
    vectors = _last(vectors, count)
    passes = int(not seen.knows(energy))
    return Eigenvectors(vectors[:, ::-1], (found["product"] @ vectors)[:, ::-1], total, passes, True)


def tsqr(seen: View, standardise: Standardise, executor: Executor, enough: Enough) -> Eigenvectors:
    """Decompose the triangle R of Z = QR, made in one pass; nothing is squared."""
    triangle = Triangle(standardise)
    found = seen.reduce({"triangle": triangle}, executor, "svd")["triangle"]["triangle"]
    _, values, vectors = np.linalg.svd(found, full_matrices=False)  # of fewer images than neurons it is wide
    total = float(np.sum(found * found))
    vectors = _last(vectors[::-1].T, enough(values, total))[:, ::-1]
    passes = int(not seen.knows(triangle))
    return Eigenvectors(vectors, found.T @ (found @ vectors), total, passes, True)


def _last(vectors: Matrix, count: int) -> Matrix:
    """Return the last columns, of their own where they are few: what holds a part of an array holds all of it."""
    part = vectors[:, vectors.shape[1] - count :]
    return part if 2 * count > vectors.shape[1] else part.copy()


def krylov(
    seen: View, standardise: Standardise, rank: int, seed: int, tolerance: float, executor: Executor,
    known: Matrix | None = None, steps: int = MAX_STEPS,
) -> Eigenvectors:  # fmt: skip
    """Build a block Krylov space of ZᵀZ, one pass per block, until the certificates are small and nothing is missed.

    At most so many passes, of which the plan has counted what they leave here.

    The basis grows by one orthonormal block Q per pass. The pass gives ZQ and ZᵀZQ, so ZᵀZ is known on the whole
    basis: the Rayleigh-Ritz values, their residuals and in the end ZV come without another read. Products are
    float32 where the activations are and where it does no harm; how far projected ZᵀZ is from symmetric says so.

    Residuals say that a pair is one of Z, not that it is among the largest: a start block made of a few images may
    know nothing of a direction that only others have. Part of it is random, therefore, and it ends only when those
    columns, too, hide nothing large (`_Space.unseen`).
    """
    p, wide = seen.labels.count, columns_of(rank, len(seen.taking_part), seen.labels.count)
    single = seen.xs[0].dtype.itemsize <= 4
    rng = np.random.default_rng([seed, rank])
    known = np.empty((p, 0)) if known is None else known
    steps = most = min(steps, MAX_STEPS)
    sampled = steps > 1 and not known.shape[1] and _is_worth_sampling(seen, standardise, wide, executor)
    if sampled:
        known = _sample(seen, standardise, _Space(known, wide, rng), wide - PROBES, single, executor)
    space, passes, converged, sound = _Space(known, wide, rng), int(sampled), False, True
    while not converged and passes < steps and space.steps < most:
        space.add(seen.reduce({"step": Step(standardise, space.block, single)}, executor, "svd")["step"])
        passes += 1
        sound = not single or space.is_sound(rank, tolerance)
        if not sound and passes == steps:
            break
        if not sound:
            events.emit("note", "svd", "products in float32 do not resolve the smallest of these; going on in float64")
            single, space = False, _Space(space.ritz(max(wide - PROBES, 0)), wide, rng)
            most = max(1, steps // 2)  # each leaves twice as much
            continue
        # Where nothing is left to add, the space holds all that Z does to it, and the values are exact.
        settled = space.open_share(rank) <= tolerance and space.unseen(rank) <= HIDDEN
        converged = settled or space.block.shape[1] == 0
    if not converged:
        events.emit("warning", "svd", _lacking(space, rank, tolerance, passes, steps, sound))
    rounding = float(np.finfo(np.float32).eps) * np.sqrt(space.total) if single else 0.0
    vectors = space.ritz(rank)
    if not space.is_finite:  # nothing is known of ZᵀZ: of zeros the certificate of any σ is σ
        made = seen.reduce({"scores": Scores(standardise, vectors)}, executor, "svd")["scores"]
        applied, passes = np.zeros_like(vectors), passes + 1
        return Eigenvectors(vectors, applied, space.total, passes, False, made["image"], made["score"])
    applied, scores = space.applied(rank), space.scores(rank)
    return Eigenvectors(vectors, applied, space.total, passes, converged, space.images, scores, rounding)


def _lacking(space: _Space, rank: int, tolerance: float, passes: int, steps: int, sound: bool) -> str:
    """Return what keeps the leading pairs of a space from being those that were asked for."""
    message = f"not converged after {passes} passes: "
    if not sound:
        message += "products in float32 do not resolve the smallest of these, and no pass was left for float64"
    elif space.open_share(rank) <= tolerance:
        message += f"some σ up to {space.unseen(rank):.1f} × the last may lack"
    else:
        message += f"a certificate is {space.open_share(rank):.1e} of its σ"
    return message + "; with more memory this process would go on" * (steps < MAX_STEPS)


def _is_worth_sampling(seen: View, standardise: Standardise, wide: int, executor: Executor) -> bool:
    if seen.rows is not None:
        return False
    step = Step(standardise, np.broadcast_to(0.0, (seen.labels.count, wide)))
    return fit(seen.xs, {"step": step}, executor)[0].blocks >= SAMPLED_BLOCKS


def _sample(
    seen: View, standardise: Standardise, space: _Space, count: int, single: bool, executor: Executor
) -> Matrix:
    """Return so many columns to start from: what a few steps on a sample of the images make of random ones."""
    for _ in range(SAMPLE_STEPS):
        if space.block.shape[1]:
            space.add(seen.reduce({"step": Step(standardise, space.block, single)}, executor, "svd", SAMPLE)["step"])
    made = space.ritz(max(count, 0))
    return made if np.isfinite(made).all() else made[:, :0]


class _Space:
    """A growing orthonormal basis, and what Z and ZᵀZ make of it.

    Parameters
    ----------
    known : array (neurons, few)
        Columns to begin with.
    columns : int
        Width of the first block; columns beyond the known ones are random.
    rng : Generator
        Makes those.
    """

    def __init__(self, known: Matrix, columns: int, rng: np.random.Generator) -> None:
        random = rng.standard_normal((len(known), columns - known.shape[1]))
        self._block: Matrix | None = np.linalg.qr(np.hstack([known, random]))[0]
        self._random: Matrix = self.block.T @ random
        # Block by block: to lay them side by side would take as much again.
        self._basis: list[Matrix] = []
        self._images: list[Matrix] = []
        self._parts: list[NDArray[np.floating]] = []
        self._projected = np.empty((0, 0))
        self.total, self.doubt = 0.0, 0.0

    @property
    def is_finite(self) -> bool:
        """Whether what ZᵀZ makes of the basis could be held."""
        return bool(np.isfinite(self.doubt))

    @property
    def block(self) -> Matrix:
        """Orthonormal columns (neurons, columns): those that are added next; none if there is nothing left to add."""
        if self._block is None:  # made when it is asked for, as nobody asks for the one after the last
            self._block = _beyond(self._basis, self._images[-1], DUST * self.squares[0])
        return self._block

    @property
    def steps(self) -> int:
        """Blocks that it has."""
        return len(self._basis)

    def add(self, found: dict[str, NDArray[np.float64]]) -> None:
        """Take the results of the pass over `block`."""
        product = found["product"]
        self._basis.append(self.block)
        self._images.append(product)
        self._parts.append(found["score"])
        self.images, self.total = found["image"].astype(np.int64), float(found["total"])
        columns = sum(block.shape[1] for block in self._basis)
        if not np.isfinite(product).all():  # too large for float32
            self.doubt, self.squares, self._small = np.inf, np.zeros(columns), np.eye(columns)
            self._block = self.block[:, :0]
            return
        right = np.vstack([block.T @ product for block in self._basis])
        below = np.hstack([right[-self.block.shape[1] :, :0], *(self.block.T @ image for image in self._images[:-1])])
        self._projected = np.hstack([np.vstack([self._projected, below]), right])
        self.doubt = float(np.abs(self._projected - self._projected.T).max())
        squares, small = np.linalg.eigh((self._projected + self._projected.T) / 2)
        self.squares, self._small = np.maximum(squares[::-1], 0.0), small[:, ::-1]
        self._block = None

    def ritz(self, count: int) -> Matrix:
        """Return the leading Ritz vectors (neurons, count)."""
        return _times(self._basis, self._small[:, :count])

    def applied(self, count: int) -> Matrix:
        """Return ZᵀZ times them."""
        return _times(self._images, self._small[:, :count])

    def scores(self, count: int) -> Matrix:
        """Return Z times them (images, count)."""
        return _times(self._parts, self._small[:, :count])

    def open_share(self, rank: int) -> float:
        """Return the largest certificate, as a share of its singular value, of those that can be resolved."""
        values = np.sqrt(self.squares[:rank])
        matter = values > RESOLVED * values[0]
        radii = certify(self.applied(rank), self.ritz(rank), values)
        return float((radii[matter] / values[matter]).max(initial=0.0))

    def unseen(self, rank: int) -> float:
        """Return a bound on the singular values beyond the leading ones, as a multiple of the last of those.

        Let B be ZᵀZ without the leading pairs, λ its largest eigenvalue, w a random (Gaussian) column. The part of w
        along that eigenvector is standard normal whatever the data are, and wᵀBᵐw is at least its square times λᵐ.
        The Ritz pairs give this moment up to m = 2 · blocks - 1, as in Gauss quadrature. The squares of all random
        columns add up to a χ², and Chernoff's bound says what that seldom falls below.
        """
        values, power, count = self.squares[rank:], 2 * len(self._parts) - 1, self._random.shape[1]
        floor = RESOLVED**2 * self.squares[0]
        if not len(values) or values[0] <= floor or not count:
            return 0.0
        weights = np.sum((self._small[: len(self._random), rank:].T @ self._random) ** 2, axis=1)
        least = count / np.e * UNLIKELY ** (2 / count)
        moment = float(np.sum(weights * np.where(values > floor, values / values[0], 0) ** power))
        largest = values[0] * (moment / least) ** (1 / power)
        return float(np.sqrt(largest / max(self.squares[rank - 1], floor)))

    def is_sound(self, rank: int, tolerance: float) -> bool:
        """Return whether rounding in float32 leaves the certificates of all singular values alone."""
        least = self.squares[:rank].min(initial=np.inf)
        largest = max((float(np.abs(part).max(initial=0.0)) for part in self._parts), default=0.0)
        if largest == 0 and self.total == 0:
            return True
        return 1e-12 < largest < 1e12 and self.doubt <= 0.1 * tolerance * float(least)


def _times(blocks: Sequence[NDArray[np.floating]], small: Matrix) -> Matrix:
    """Return blocks (rows, some columns), side by side, times a matrix (all columns, count)."""
    made, first = np.zeros((len(blocks[0]), small.shape[1])), 0
    for block in blocks:
        made += block @ small[first : first + block.shape[1]]
        first += block.shape[1]
    return made


def _beyond(basis: Sequence[Matrix], product: Matrix, dust: float) -> Matrix:
    """Return orthonormal columns that span what `product` adds to an orthonormal basis; none if that is dust."""
    new, sizes, _ = np.linalg.svd(_without(basis, product), full_matrices=False)
    new = new[:, sizes > dust]
    return np.linalg.qr(_without(basis, new))[0]  # twice is enough (Kahan, Parlett)


def _without(basis: Sequence[Matrix], columns: Matrix) -> Matrix:
    """Return columns without what lies in the span of an orthonormal basis."""
    left = columns.copy()
    for block in basis:
        left -= block @ (block.T @ columns)
    return left


def certify(applied: Matrix, vectors: Matrix, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each σ the radius within which some true singular value lies.

    Some eigenvalue λ of ZᵀZ lies within ‖r‖ of σ², r = ZᵀZ v − σ² v, and |√λ − σ| is at most ‖r‖ / σ and at most √‖r‖.
    """
    norms = np.linalg.norm(applied - vectors * values**2, axis=0)
    radii: NDArray[np.float64] = np.sqrt(norms)
    sure = values > radii
    radii[sure] = norms[sure] / values[sure]
    return radii
