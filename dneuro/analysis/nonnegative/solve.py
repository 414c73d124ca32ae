"""The loop: read, update, look at the loss, keep the state, stop when nothing is gained any more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.nonnegative.arrays import Factors, Rule
from dneuro.analysis.nonnegative.checkpoint import Checkpoint, State
from dneuro.analysis.nonnegative.reads import Reads
from dneuro.errors import ArrayError, FingerprintError

SAME = 1e-9
"""Totals of the same data differ by rounding, where chunks or workers have changed."""

SAME_LOSS = {"f4": 1e-5, "f8": 1e-9}
"""So do losses, as a share of ‖X‖²; by the dtype of the large products."""


@dataclass(frozen=True)
class Solution:
    """What came of the iterations.

    Parameters
    ----------
    factors : Factors
        F and O.
    losses : array (iterations, matrices) of float64
        ‖X − F Oᵀ‖² after every iteration, not weighted.
    totals : array (matrices, 2) of float64
        Sum and sum of squares of each.
    scales : tuple of float
        What F Oᵀ of each is to be divided by; losses and totals have been. Empty: nothing.
    converged : bool
        Whether the tolerance was reached.
    """

    factors: Factors
    losses: NDArray[np.float64]
    totals: NDArray[np.float64]
    converged: bool
    scales: tuple[float, ...]


def solve(
    reads: Reads, start: Callable[[], Factors], rule: Rule, max_iter: int, tol: float, checkpoint: Checkpoint | None
) -> Solution:
    """Iterate until an iteration lowers the weighted error by less than `tol` of ‖X‖, or `max_iter` times."""
    kept = checkpoint.read(reads.arrays) if checkpoint else None
    losses: list[Any] = []
    converged = False
    if kept is not None:
        at, losses = kept.factors, kept.losses
        if reads.totals is not None:
            reads.totals = kept.arrays.scaled(reads.arrays.as_stored(reads.totals))
        reads.arrays = kept.arrays
        _same_data(reads, kept)
        converged = _ended(reads, losses, reads.totals, tol)
        events.emit("note", reads.step, f"goes on after iteration {len(losses)}")
    else:
        at = start()
    while len(losses) < max_iter and not converged:
        at, found = reads.step_on(at, rule)
        _finite(at, found, len(losses) + 1)
        losses.append(found)
        converged = _ended(reads, losses, reads.totals, tol)
        error = math.sqrt(float(np.dot(reads.arrays.weights, found)))
        message = f"iteration {len(losses)}: error {error:.6g}"
        events.emit("progress", reads.step, message, done=len(losses), total=max_iter, what="iterations")
        if checkpoint:
            state = State(at, losses, reads.totals, reads.arrays)
            checkpoint.write(state, last=converged or len(losses) >= max_iter)
    assert reads.totals is not None
    scales = reads.arrays.scales
    units = np.asarray(scales or (1.0,) * len(reads.arrays.views))
    return Solution(at, np.asarray(losses) / units**2, reads.arrays.as_stored(reads.totals), converged, scales)


def _ended(reads: Reads, losses: list[Any], totals: Any, tol: float) -> bool:
    """Return whether the last iteration has lowered the error by no more than `tol` of ‖X‖; never with a `tol` of 0."""
    if not tol or len(losses) < 2:
        return False
    squares = (totals[:, 1], *losses[-2:])
    whole, earlier, now = (math.sqrt(float(np.dot(reads.arrays.weights, some))) for some in squares)
    return earlier - now <= tol * whole


def _same_data(reads: Reads, kept: State) -> None:
    """Refuse a state of other activations; one read. The sums say nothing of the order of the images, the loss does."""
    with np.errstate(all="ignore"):  # of other activations it may be anything
        found = reads.losses(kept.factors)
    assert reads.totals is not None
    differ = ""
    if not np.allclose(reads.totals, kept.totals, rtol=SAME, atol=0):
        differ = "their sums differ"
    elif (abs(found - kept.losses[-1]) > SAME_LOSS[reads.arrays.dtype.str[1:]] * reads.totals[:, 1]).any():
        differ = "the kept factors leave another error; they may be the same in another order"
    if differ:
        raise FingerprintError(
            f"the activations are not those that the kept state was made of: {differ}",
            hint="another checkpoint=, or remove the file",
        )


def _finite(at: Factors, found: Any, iteration: int) -> None:
    """Refuse to go on from, or to give, what is no number."""
    if not all(map(np.isfinite, (float(np.sum(side, dtype="f8")) for side in (found, at.images, *at.neurons)))):
        raise ArrayError(
            f"the factors of iteration {iteration} are not finite: they left the range of {at.images.dtype}",
            hint="x.astype('float64'), or init='compressed'",
        )
