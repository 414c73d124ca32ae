"""Where a factorisation begins that has been iterated already, on what a few reads say of the leading directions."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.nonnegative.arrays import Factors
from dneuro.analysis.nonnegative.reads import Reads
from dneuro.analysis.nonnegative.start import Leading, parts
from dneuro.analysis.nonnegative.start import driver_bytes as start_bytes
from dneuro.engine import stopping
from dneuro.engine.executors import one_blas_thread
from dneuro.engine.window import Call, each
from dneuro.kernels.nmf import hals

Matrix = NDArray[np.float64]

OVERSAMPLING = 40
"""Directions beyond the rank: a sum of non-negative parts does not lie in the leading directions alone."""

IMAGES = 16_384
"""Images that the components are made from: a seeded sample, where there are more."""

STARTS = 5
"""Starts of which the best is taken, the first of them `nndsvda`. Which minimum is found is a matter of luck, and
differs by some 1e-4 of the error."""

ITERATIONS = 150
"""Of each start, at most."""

GAIN = 1e-7
"""A start has arrived when an iteration lowers the squared error by less than this share."""

SWEEPS = 30
"""Updates of the images' weights, once the components are known."""

SLOWER, FASTER, CEILING = 1.5, 1.05, 1.01
"""Of the extrapolation: what divides it after a step that failed, what it and its limit grow by after one that did
not."""


@dataclass(frozen=True)
class Problem:
    """X ≈ A Qᵀ of some images, as a few reads left it.

    Parameters
    ----------
    images : array (images, columns) of float64
        A = X Q.
    neurons : array (neurons, columns) of float64
        Q, orthonormal columns.
    scale : float
        Of the entries of factors that are drawn at random.
    """

    images: Matrix
    neurons: Matrix
    scale: float

    def factors(self, rank: int, seed: int) -> tuple[Matrix, Matrix]:
        """Return factors drawn at random."""
        rng = np.random.default_rng(seed)
        one, other = (self.scale * rng.random((len(side), rank)) for side in (self.images, self.neurons))
        return one, other


def compressed(reads: Reads, rank: int, seed: int) -> Factors:
    """Return factors that were iterated from several starts without reading, the best of them.

    A few reads give Q, an orthonormal basis of the leading directions, and X Q. On X Q Qᵀ in place of X an iteration
    costs (N + P)·columns·K, whatever the size of X.

    References
    ----------
    Tepper & Sapiro, "Compressed nonnegative matrix factorization is fast and accurate" (2016); Ang & Gillis,
    "Accelerating nonnegative matrix factorization algorithms using extrapolation" (2019).
    """
    arrays = reads.arrays
    found = Leading.of(reads, rank, OVERSAMPLING, seed)
    basis, applied = found.basis, found.applied
    chosen = np.arange(arrays.images)
    if arrays.images > IMAGES:
        chosen = np.sort(np.random.default_rng(seed).choice(arrays.images, IMAGES, replace=False))
    problem = Problem(np.ascontiguousarray(applied[chosen]), basis, float(np.sqrt(found.mean / rank)))
    left, right = parts(found, rank)
    first = left[chosen], right
    shared = reads.executor.share(problem)
    calls: list[Call[int]] = [(0, iterate, (shared, first))]
    calls += [(number, begin, (shared, rank, seed + number)) for number in range(1, STARTS)]
    with one_blas_thread(reads.executor), contextlib.closing(each(reads.executor, calls)) as ended:
        answers: dict[int, tuple[float, Matrix]] = {}
        step = f"{reads.step} start"
        events.emit("started", step, total=len(calls), what="starts")
        for number, future in ended:
            answers[number] = future.result()
            events.emit("progress", step, done=len(answers), total=len(calls), what="starts")
        events.emit("finished", step, done=len(answers), total=len(calls), what="starts")
    neurons = answers[min(answers, key=lambda number: (answers[number][0], number))][1]
    images = hals(np.zeros((arrays.images, rank)), applied @ (basis.T @ neurons), neurons.T @ neurons, SWEEPS)
    return found.unweighted(images, neurons)


def begin(problem: Problem, rank: int, seed: int) -> tuple[float, Matrix]:
    """Return what `iterate` returns, from a start at random."""
    return iterate(problem, problem.factors(rank, seed))


def iterate(problem: Problem, start: tuple[Matrix, Matrix]) -> tuple[float, Matrix]:
    """Return the squared error reached on the compressed problem, and O (neurons, components).

    HALS with extrapolation: each factor goes on a bit in the direction of its last step, and comes back where that
    has raised the error.
    """
    a, q = problem.images, problem.neurons
    squares, error = float(np.vdot(a, a)), np.inf
    images, neurons = start
    ahead = images, neurons
    step, limit = 0.5, 1.0
    for _ in range(ITERATIONS):
        stopping.check()
        new_images = hals(ahead[0], a @ (q.T @ ahead[1]), ahead[1].T @ ahead[1], 1)
        far_images = np.maximum(new_images + step * (new_images - images), 0)
        product, gram = q @ (a.T @ far_images), far_images.T @ far_images
        new_neurons = hals(ahead[1], product, gram, 1)
        far_neurons = np.maximum(new_neurons + step * (new_neurons - neurons), 0)
        reached = squares - 2 * float(np.vdot(product, new_neurons)) + float(np.vdot(gram, new_neurons.T @ new_neurons))
        if reached > error:
            ahead, limit, step = (images, neurons), step, step / SLOWER
            continue
        arrived = error - reached <= GAIN * squares
        images, neurons, ahead, error = new_images, new_neurons, (far_images, far_neurons), reached
        limit = min(1.0, CEILING * limit)
        step = min(limit, FASTER * step)
        if arrived:
            break
    return error, neurons


def task_bytes(images: int, neurons: int, columns: int, rank: int) -> int:
    """Return the bytes of one start, for the plan."""
    rows = min(images, IMAGES) + neurons
    return 8 * rows * (columns + 10 * rank)


def driver_bytes(images: int, neurons: int, columns: int, rank: int) -> int:
    """Return the bytes that the process which asks holds meanwhile, for the plan."""
    # The problem, packed and on its way to the workers besides; the best of every start, and what is made of one.
    later = 8 * columns + (STARTS + 8) * rank
    return max(start_bytes(images, neurons, columns), 8 * (images + neurons) * later)
