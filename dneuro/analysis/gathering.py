"""Large results that are made block by block: gathered here, or written by the tasks and gone on with when killed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.errors import FingerprintError, UsageError
from dneuro.store.blocks import BlockArray, create_blocks, finish_blocks, open_blocks
from dneuro.store.files import Location, remove
from dneuro.store.groups import Making, making, place_of, refuse_existing
from dneuro.store.states import place_of_state, read_state, write_state

EVERY = 2.0
"""Seconds between two writes of a checkpoint, at least."""

Found = dict[str, NDArray[Any]]
"""Arrays of one block, by name."""


@dataclass(frozen=True)
class Layout:
    """What a result consists of.

    Parameters
    ----------
    dim : str
        The first dim of all arrays, along which they are made.
    block : int
        Length of a block.
    large : tuple of BlockArray
        Arrays that the tasks may write themselves.
    small : dict of str to tuple of str
        The others, which come to the driver, with their dims behind the first.
    """

    dim: str
    block: int
    large: tuple[BlockArray, ...]
    small: Mapping[str, tuple[str, ...]]

    @property
    def step_bytes(self) -> int:
        """Bytes of all large arrays per step along the first dim."""
        return sum(array.step_bytes for array in self.large)

    def dims_of(self, name: str) -> tuple[str, ...]:
        """Return all dims of an array."""
        written = next((array.dims for array in self.large if array.name == name), None)
        return (self.dim, *self.small[name]) if written is None else written


class Blocks:
    """The driver's side of such a result.

    Parameters
    ----------
    layout : Layout
        Of what.
    out : path or URL, optional
        A new Zarr group that the tasks write large arrays to; otherwise they come here, too.
    checkpoint : path, optional
        With `out`: a file for what is done. The group in the making lies beside it.
    identity : mapping
        What a checkpoint must have been made with to be gone on from; JSON-able.

    Raises
    ------
    UsageError
        If `out` exists, or there is a checkpoint of nothing.
    FingerprintError
        If the checkpoint is that of something else.
    """

    def __init__(
        self, layout: Layout, out: str | Location | None, checkpoint: str | Location | None, identity: Mapping[str, Any]
    ) -> None:
        self._layout = layout
        self._out = None if out is None else place_of(out)
        kept = None if checkpoint is None else place_of_state(checkpoint)
        if kept is not None and (out is None or not isinstance(kept, Path)):
            raise UsageError("a checkpoint on this machine's disks goes with out=", hint="out='pictures.zarr'")
        if kept is not None and kept.suffix == ".zarr":
            raise UsageError(f"checkpoint={str(kept)!r} is to be a file; the group in the making is called so",
                             hint=f"checkpoint={str(kept.with_suffix('.npz'))!r}")  # fmt: skip
        self._checkpoint: Path | None = kept
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._written = time.monotonic()
        self._made: Making | None = None
        if self._out is not None:
            refuse_existing(self._out)
        self.done: dict[int, Found] = self._begun()
        """What is there of each block, by where it begins."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[Location | None]:
        """Give the group that tasks write to, if they do; it gets its name when all of it is there."""
        if self._out is None:
            yield None
            return
        with making(self._out, self._kept) as made:
            self._made = made
            if not self.done:
                self._create(made.group)
            else:
                count = len(self.done)
                events.emit("note", "", f"goes on after {count} blocks of {self._layout.block} that were done before")
            made.ready()
            yield made.place
        if self._checkpoint is not None:
            remove(self._checkpoint)

    def add(self, start: int, found: Found) -> None:
        """Take what a task has found of the block that begins at `start`."""
        self.done[start] = found
        if self._checkpoint is not None and time.monotonic() - self._written >= EVERY:
            arrays = {f"{first}/{name}": values for first, one in self.done.items() for name, values in one.items()}
            write_state(self._checkpoint, self._identity, arrays)
            self._written = time.monotonic()

    def finish(self, rest: xr.Dataset) -> xr.Dataset:
        """Put all blocks together, with what else the result has; to be called before `writing` ends.

        Returns
        -------
        Dataset
            In memory, or of what was written only the small arrays.
        """
        starts = sorted(self.done)
        names = list(self.done[starts[0]])
        found = {name: np.concatenate([self.done[start][name] for start in starts]) for name in names}
        result = rest.assign({name: (self._layout.dims_of(name), values) for name, values in found.items()})
        if self._made is not None:
            finish_blocks(self._made.group, result)
        return result

    def opened(self) -> xr.Dataset:
        """Return what was written, backed by its file."""
        assert self._out is not None
        return open_blocks(self._out)

    @property
    def _kept(self) -> Path | None:
        """Where the group is made so that it outlives an error."""
        return None if self._checkpoint is None else self._checkpoint.absolute().with_suffix(".zarr")

    def _create(self, path: Path) -> None:
        remove(path)
        create_blocks(path, self._layout.large, self._layout.block)

    def _begun(self) -> dict[int, Found]:
        """Return what a checkpoint has; nothing where there is none, or its group is gone."""
        if self._checkpoint is None or self._kept is None or not (self._kept / "zarr.json").is_file():
            return {}
        arrays = read_state(self._checkpoint, self._identity)
        if arrays is None:
            return {}
        if not arrays:
            raise FingerprintError(
                f"{self._checkpoint} is not the state of this result: other data, or other parameters",
                hint="another checkpoint=, or remove the file",
            )
        done: dict[int, Found] = {}
        for name, values in arrays.items():
            start, _, array = name.partition("/")
            done.setdefault(int(start), {})[array] = values
        return done
