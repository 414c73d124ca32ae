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
from dneuro.analysis.nonnegative.checkpoint import Checkpoint
from dneuro.analysis.nonnegative.reads import Reads
from dneuro.errors import FingerprintError

SAME = 1e-9
"""Totals of the same data differ by rounding, where chunks or workers have changed."""


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
    converged : bool
        Whether the tolerance was reached.
    """

    factors: Factors
    losses: NDArray[np.float64]
    totals: NDArray[np.float64]
    converged: bool


def solve(
    reads: Reads, start: Callable[[], Factors], rule: Rule, max_iter: int, tol: float, checkpoint: Checkpoint | None
) -> Solution:
    """Iterate until an iteration lowers the weighted error by less than `tol` of ‖X‖, or `max_iter` times."""
    kept = checkpoint.read(len(reads.arrays.views)) if checkpoint else None
    losses: list[Any] = []
    before, converged = None, False
    if kept is not None:
        at, losses, before = kept
        converged = _ended(reads, losses, before, tol)
        events.emit("note", reads.step, f"goes on after iteration {len(losses)}")
    else:
        at = start()
    while len(losses) < max_iter and not converged:
        at, found = reads.step_on(at, rule)
        if before is not None:
            _same_data(reads.totals, before)
            before = None
        losses.append(found)
        converged = _ended(reads, losses, reads.totals, tol)
        error = math.sqrt(float(np.dot(reads.arrays.weights, found)))
        message = f"iteration {len(losses)}: error {error:.6g}"
        events.emit("progress", reads.step, message, done=len(losses), total=max_iter, what="iterations")
        if checkpoint:
            checkpoint.write(at, losses, reads.totals, last=converged or len(losses) >= max_iter)
    totals = reads.totals if reads.totals is not None else before
    assert totals is not None
    return Solution(at, np.asarray(losses), np.asarray(totals), converged)


def _ended(reads: Reads, losses: list[Any], totals: Any, tol: float) -> bool:
    """Return whether the last iteration has lowered the error by no more than `tol` of ‖X‖; never with a `tol` of 0."""
    if not tol or len(losses) < 2:
        return False
    squares = (totals[:, 1], *losses[-2:])
    whole, earlier, now = (math.sqrt(float(np.dot(reads.arrays.weights, some))) for some in squares)
    return earlier - now <= tol * whole


def _same_data(found: Any, expected: Any) -> None:
    if not np.allclose(found, expected, rtol=SAME, atol=0):
        raise FingerprintError(
            "the activations are not those that the kept state was made of: their sums differ",
            hint="another checkpoint=, or remove the file",
        )
