"""The state of a factorisation on disk, so that a killed run goes on from its last iteration."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dneuro.analysis.nonnegative.arrays import Arrays, Factors
from dneuro.errors import FingerprintError, StoreError
from dneuro.store.files import Location, disk_error, write_atomically

EVERY = 2.0
"""Seconds between two writes, at least; an iteration that takes longer is written always."""

A_FILE = "checkpoint='state.npz', a file in a folder that is there and can be written to"


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
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"checkpoint={str(self.path)!r} cannot be read: {error}", hint=A_FILE) from error
        except (ValueError, EOFError, AttributeError, zipfile.BadZipFile):
            found = {}
        sides = ["images", *(f"neurons-{j}" for j in range(len(arrays.views)))]
        needed = {*sides, "losses", "totals", "weights", "scales"}
        if str(found.get("identity")) != self._identity or not needed <= found.keys() or not len(found["losses"]):
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
        arrays: dict[str, Any] = {"identity": np.asarray(self._identity)}
        sides = state.factors.neurons
        arrays |= {"images": state.factors.images, **{f"neurons-{j}": side for j, side in enumerate(sides)}}
        arrays |= {"losses": np.asarray(state.losses), "totals": np.asarray(state.totals)}
        arrays |= {name: np.asarray(getattr(state.arrays, name), float) for name in ("weights", "scales")}
        try:
            write_atomically(self.path, lambda file: np.savez(file, **arrays))
        except OSError as error:
            raise disk_error(error, self.path) or StoreError(
                f"checkpoint={str(self.path)!r} cannot be written: {error.strerror or error}", hint=A_FILE
            ) from error
        self._written = time.monotonic()
