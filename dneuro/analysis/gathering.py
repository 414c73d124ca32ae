"""Large results that are made block by block: gathered here, or written by the tasks and gone on with when killed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.errors import FingerprintError, UsageError
from dneuro.store.files import Location, locate, write_atomically

EVERY = 2.0
"""Seconds between two writes of a checkpoint, at least."""

Found = dict[str, NDArray[Any]]
"""Arrays of one block, by name."""


@dataclass(frozen=True)
class Large:
    """An array of the result that has pictures, or more, for each step along its first dim.

    Parameters
    ----------
    dims : tuple of str
        Dims behind the first.
    shape : tuple of int
        Their lengths.
    dtype : str
        Of the numbers.
    text : str
        What it is.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    text: str

    @property
    def nbytes(self) -> int:
        """Bytes per step along the first dim."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """What a result consists of.

    Parameters
    ----------
    dim : str
        The first dim of all arrays, along which they are made.
    count, block : int
        Its length, and that of a block.
    large : dict of str to Large
        Arrays that the tasks may write themselves.
    small : dict of str to tuple of str
        The others, which come to the driver, with their dims behind the first.
    """

    dim: str
    count: int
    block: int
    large: Mapping[str, Large]
    small: Mapping[str, tuple[str, ...]]

    @property
    def step_bytes(self) -> int:
        """Bytes of all large arrays per step along the first dim."""
        return sum(array.nbytes for array in self.large.values())

    def dims_of(self, name: str) -> tuple[str, ...]:
        """Return all dims of an array."""
        return (self.dim, *(self.large[name].dims if name in self.large else self.small[name]))


class Blocks:
    """The driver's side of such a result.

    Parameters
    ----------
    layout : Layout
        Of what.
    out : path, optional
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
        self, layout: Layout, out: str | Path | None, checkpoint: str | Location | None, identity: Mapping[str, Any]
    ) -> None:
        self._layout = layout
        self._out = None if out is None else Path(out).absolute()
        self._checkpoint = None if checkpoint is None else locate(checkpoint)
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._written, self._token = time.monotonic(), uuid.uuid4().hex
        if self._out is not None and self._out.exists():
            raise UsageError(f"{out} exists; it is left as it is", hint="out=… another path, or remove this one")
        if self._checkpoint is not None and (self._out is None or not isinstance(self._checkpoint, Path)):
            raise UsageError("a checkpoint on this machine's disks goes with out=", hint="out='pictures.zarr'")
        self.done: dict[int, Found] = self._begun()
        """What is there of each block, by where it begins."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path | None]:
        """Give the group that tasks write to, if they do; it gets its name when all of it is there."""
        if self._out is None:
            yield None
            return
        path = self._place
        try:
            if not self.done:
                self._create(path)
            else:
                count = len(self.done)
                events.emit("note", "", f"goes on after {count} blocks of {self._layout.block} that were done before")
            yield path
            shutil.move(path, self._out)  # where the checkpoint lies on another disk, it has to be copied
            if self._checkpoint is not None:
                self._checkpoint.unlink(missing_ok=True)
        finally:
            if self._checkpoint is None:
                shutil.rmtree(path, ignore_errors=True)

    def add(self, start: int, found: Found) -> None:
        """Take what a task has found of the block that begins at `start`."""
        self.done[start] = found
        if isinstance(self._checkpoint, Path) and time.monotonic() - self._written >= EVERY:
            arrays = {f"{first}/{name}": values for first, one in self.done.items() for name, values in one.items()}
            arrays["identity"] = np.asarray(self._identity)
            write_atomically(self._checkpoint, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
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
        if self._out is not None:
            from dneuro.store.blocks import finish_blocks

            finish_blocks(self._place, result)
        return result

    def opened(self) -> xr.Dataset:
        """Return what was written, backed by its file."""
        from dneuro.store.blocks import open_blocks

        assert self._out is not None
        return open_blocks(self._out)

    @property
    def _place(self) -> Path:
        """Where the group is made."""
        assert self._out is not None
        if isinstance(self._checkpoint, Path):
            return self._checkpoint.absolute().with_suffix(".zarr")
        return self._out.with_name(f".{self._out.name}.{self._token}.partial")

    def _create(self, path: Path) -> None:
        from dneuro.store.blocks import BlockArray, create_blocks  # not at the top: Zarr is large

        layout = self._layout
        arrays = [
            BlockArray(name, layout.dims_of(name), (layout.count, *array.shape), array.dtype, array.text)
            for name, array in layout.large.items()
        ]
        shutil.rmtree(path, ignore_errors=True)
        assert self._out is not None
        self._out.parent.mkdir(parents=True, exist_ok=True)
        create_blocks(path, arrays, layout.block)

    def _begun(self) -> dict[int, Found]:
        """Return what a checkpoint has; nothing where there is none, or its group is gone."""
        if not isinstance(self._checkpoint, Path) or not (self._place / "zarr.json").is_file():
            return {}
        try:
            with np.load(io.BytesIO(self._checkpoint.read_bytes()), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return {}
        except (ValueError, EOFError, zipfile.BadZipFile):
            arrays = {}
        if str(arrays.pop("identity", "")) != self._identity:
            raise FingerprintError(
                f"{self._checkpoint} is not the state of this result: other data, or other parameters",
                hint="another checkpoint=, or remove the file",
            )
        done: dict[int, Found] = {}
        for name, values in arrays.items():
            start, _, array = name.partition("/")
            done.setdefault(int(start), {})[array] = values
        return done
