"""The state of a factorisation on disk, so that a killed run goes on from its last iteration."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dneuro.analysis.nonnegative.arrays import Factors
from dneuro.errors import FingerprintError
from dneuro.store.files import Location, write_atomically

EVERY = 2.0
"""Seconds between two writes, at least; an iteration that takes longer is written always."""


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

    def read(self, matrices: int) -> tuple[Factors, list[Any], Any] | None:
        """Return factors, losses of every iteration and totals; None if there is nothing.

        Raises
        ------
        FingerprintError
            If the file is the state of something else.
        """
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, zipfile.BadZipFile):
            found = {}
        if str(found.get("identity")) != self._identity:
            raise FingerprintError(
                f"{self.path} is not the state of this factorisation: other data, or other parameters",
                hint="another checkpoint=, or remove the file",
            )
        neurons = [found[f"neurons-{j}"] for j in range(matrices)]
        return Factors(found["images"], neurons), list(found["losses"]), found["totals"]

    def write(self, at: Factors, losses: list[Any], totals: Any, *, last: bool) -> None:
        """Keep this state; the one before stays until it is whole."""
        if time.monotonic() - self._written < EVERY and not last:
            return
        arrays: dict[str, Any] = {"identity": np.asarray(self._identity)}
        arrays |= {"images": at.images, **{f"neurons-{j}": side for j, side in enumerate(at.neurons)}}
        arrays |= {"losses": np.asarray(losses), "totals": np.asarray(totals)}
        write_atomically(self.path, lambda file: np.savez(file, **arrays))
        self._written = time.monotonic()
