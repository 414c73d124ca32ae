"""The state of a factorisation on disk, so that a killed run goes on from one of its last iterations."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dneuro.analysis.nonnegative.arrays import Arrays, Factors
from dneuro.errors import FingerprintError
from dneuro.store.files import Location
from dneuro.store.states import read_state, write_state

EVERY = 2.0
"""Seconds between two writes, at least; an iteration that takes longer is written always."""


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Parameters
    ----------
    factors : Factors
        F and O.
    losses : list of array (matrices,)
        After every iteration, not weighted.
    totals : array (matrices, 2)
        Sum and sum of squares of each, as it is factorised.
    arrays : Arrays
        With the scales and weights that they are factorised with.
    """

    factors: Factors
    losses: list[Any]
    totals: Any
    arrays: Arrays


class Checkpoint:
    """One file with factors, losses and what they belong to.

    Parameters
    ----------
    path : Path or RemotePath
        An ``.npz`` file; it need not exist.
    identity : dict
        What a state must have been made with to be gone on from; JSON-able.
    """

    def __init__(self, path: Location, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._written = time.monotonic()

    def read(self, arrays: Arrays) -> State | None:
        """Return the state of these arrays; None if there is nothing.

        Raises
        ------
        FingerprintError
            If the file is the state of something else, or not whole.
        StoreError
            If there is something that cannot be read.
        """
        found = read_state(self.path, self._identity)
        if found is None:
            return None
        sides = ["images", *(f"neurons-{j}" for j in range(len(arrays.views)))]
        needed = {*sides, "losses", "totals", "weights", "scales"}
        if not needed <= found.keys() or not len(found["losses"]):
            raise FingerprintError(
                f"{self.path} is not the state of this factorisation: other data, or other parameters",
                hint="another checkpoint=, or remove the file",
            )
        images, *neurons = (found[name] for name in sides)
        weights, scales = (tuple(map(float, found[name])) for name in ("weights", "scales"))
        as_kept = replace(arrays, weights=weights, scales=scales)
        return State(Factors(images, neurons), list(found["losses"]), found["totals"], as_kept)

    def write(self, state: State, *, last: bool) -> None:
        """Keep this state; the one before stays until it is whole."""
        if time.monotonic() - self._written < EVERY and not last:
            return
        arrays: dict[str, Any] = {"images": state.factors.images, "losses": state.losses, "totals": state.totals}
        arrays |= {f"neurons-{j}": side for j, side in enumerate(state.factors.neurons)}
        arrays |= {name: np.asarray(getattr(state.arrays, name), float) for name in ("weights", "scales")}
        write_state(self.path, self._identity, arrays)
        self._written = time.monotonic()
