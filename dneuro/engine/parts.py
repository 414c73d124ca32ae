"""The share of an array that lies in a block, packed so that one task can compute it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cloudpickle
import dask
import numpy as np
import xarray as xr
from dask.core import flatten, get_dependencies

from dneuro.engine.blocks import Block
from dneuro.engine.executors import Future
from dneuro.engine.rechunked import by_tasks
from dneuro.errors import ArrayError

PART_BYTES = 5 * 1024
"""What a part takes for each chunk that it is made of: 3 to 5 KiB measured of an array on disk."""


@dataclass(frozen=True)
class Part:
    """A small graph that computes an array's share of a block.

    Parameters
    ----------
    graph : dict
        Its tasks.
    keys : list
        Those that are the chunks of the share, nested as they lie.
    finish, extra : callable, tuple
        What makes one array of the chunks, and its further arguments.
    holes : tuple
        Keys of chunks that exist already and are passed beside the graph.
    shape : tuple
        Of the share, as the array declares it.
    """

    graph: dict[Any, Any]
    keys: list[Any]
    finish: Callable[..., Any]
    extra: tuple[Any, ...]
    holes: tuple[Any, ...]
    shape: tuple[Any, ...]

    def compute(self, fillings: Sequence[Any]) -> Any:
        """Return the array; `fillings` are the chunks for the holes.

        Raises
        ------
        ArrayError
            If it has another shape than declared: what was laid out for that would hold whatever was there before.
        """
        graph = {**self.graph, **dict(zip(self.holes, fillings, strict=True))}
        found = self.finish(dask.get(graph, self.keys), *self.extra)
        if found.shape != self.shape:
            raise ArrayError(
                f"chunks of the array come out as {found.shape}, and it is declared to have {self.shape} there",
                hint="chunks=… of the map_blocks, or whatever made it, as they really are",
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # Threads take any graph; a cluster those that can be pickled, and its scheduler need not look inside.
        return _Packed, (self._pickled,)

    @cached_property
    def _pickled(self) -> bytes:
        return bytes(cloudpickle.dumps(self._fields))

    @property
    def _fields(self) -> tuple[Any, ...]:
        return self.graph, self.keys, self.finish, self.extra, self.holes, self.shape


@dataclass(frozen=True)
class _Packed:
    """A `Part` that came from elsewhere."""

    pickled: bytes

    def compute(self, fillings: Sequence[Any]) -> Any:
        return Part(*pickle.loads(self.pickled)).compute(fillings)


class Bundle:
    """Many parts that travel together: what they share, such as the array on disk, is opened once for all of them.

    Parameters
    ----------
    parts : list
        Parts, and arrays that stand for themselves, in nested lists.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _unbundle, (cloudpickle.dumps(_each(self.parts, lambda part: part._fields)),)


def _unbundle(pickled: bytes) -> Bundle:
    return Bundle(_each(pickle.loads(pickled), lambda fields: Part(*fields)))


def _each(parts: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested lists with every part changed; fields of a part are a tuple."""
    if isinstance(parts, list):
        return [_each(some, change) for some in parts]
    return change(parts) if isinstance(parts, Part | tuple) else parts


def compute(part: Any, fillings: Sequence[Any]) -> Any:
    """Return the array that a part stands for; one in memory stands for itself."""
    return part.compute(fillings) if isinstance(part, Part | _Packed) else part


class Source:
    """An array that parts are taken from.

    Parameters
    ----------
    x : DataArray
        Backed by dask or NumPy.
    """

    def __init__(self, x: xr.DataArray) -> None:
        self._lazy = dask.is_dask_collection(x.data)
        self._data: Any = by_tasks(x.data) if self._lazy else x.data
        self._persisted = _futures(self._data) if self._lazy else {}
        self._parts: dict[Block, tuple[Any, list[Future]]] = {}

    @cached_property
    def is_held(self) -> bool:
        """Whether a cluster holds all that the array is made of, but for what this process has in memory."""
        return bool(self._persisted) and not _begins_elsewhere(self._data)

    @property
    def travels(self) -> bool:
        """Whether chunks that a cluster holds go to the tasks, about as many as the array has; a mean is few."""
        return bool(self._persisted) and 2 * len(self._persisted) >= self._data.npartitions

    def part(self, block: Block, *, whole_rows: bool = False) -> tuple[Any, list[Future]]:
        """Return the array's part in a block, or the values if they are in memory, and the futures it needs.

        Of whole rows the block counts the columns of the first array of its pass; another may have more or fewer.

        A task cannot wait for futures that lie inside a graph; those among its arguments the scheduler brings to
        the worker before it starts. So the chunks of a persisted array are named here and passed beside the graph.
        """
        if block not in self._parts:
            self._parts[block] = self._part(block, whole_rows)
        return self._parts[block]

    def forget(self, block: Block) -> None:
        """Let go of a part that nobody asks for any more: of a large array there are many."""
        self._parts.pop(block, None)

    def _part(self, block: Block, whole_rows: bool) -> tuple[Any, list[Future]]:
        where = (slice(*block.rows), slice(None) if whole_rows else slice(*block.columns))
        array = self._data[where[: self._data.ndim]]
        if not self._lazy:
            return array, []
        (array,) = dask.optimize(array)
        keys = array.__dask_keys__()
        graph = dict(array.__dask_graph__())
        named = {*graph, *flatten(keys)}.union(*(getattr(task, "dependencies", ()) for task in graph.values()))
        held = {key: self._persisted[key] for key in named & self._persisted.keys()}
        for key in held:
            graph.pop(key, None)
        finish, extra = array.__dask_postcompute__()
        return Part(graph, keys, finish, extra, tuple(held), array.shape), list(held.values())


def _futures(array: Any) -> dict[Any, Future]:
    """Return the chunks of a dask array, or of what it is made of, that a cluster holds already."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return {}
    graph = array.__dask_graph__()
    # Layers that are not materialised are rules for making tasks, and hold no chunks.
    layers = [layer for layer in graph.layers.values() if layer.is_materialized()]
    return {key: task for layer in layers for key, task in layer.items() if isinstance(task, distributed.Future)}


def _begins_elsewhere(array: Any) -> bool:
    """Return whether something that a dask array is made of has yet to be read or made."""
    graph = array.__dask_graph__()
    for name, layer in graph.layers.items():
        if not layer.is_materialized():  # a rule for making tasks: of what is before them, or of nothing
            if not graph.dependencies[name]:
                return True
        elif any(_is_elsewhere(graph, task) for task in layer.values()):
            return True
    return False


def _is_elsewhere(graph: Any, task: Any) -> bool:
    """Return whether a node of a graph computes out of nothing, or is an array on disk."""
    if computes(task):
        return not get_dependencies(graph, task=task)
    value = getattr(task, "value", task)
    return hasattr(value, "dtype") and not isinstance(value, np.ndarray | np.generic)


def computes(task: Any) -> bool:
    """Return whether a node of a graph calls something; others hold data, or the name of another."""
    return hasattr(task, "func") or (isinstance(task, tuple) and bool(task) and callable(task[0]))
