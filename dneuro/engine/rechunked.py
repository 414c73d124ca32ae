"""Rechunking that dask leaves to a shuffle between all workers, done by tasks instead."""

from __future__ import annotations

import math
import sys
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

ONE_STEP = 1 << 62
"""Growth of a graph from which on dask would rechunk in several steps."""


def by_tasks(array: Any) -> Any:
    """Return a dask array whose graph has no shuffle between workers in it; any other array as it is.

    Where a client is active, dask rechunks large arrays so: a barrier in the scheduler waits until every worker has
    sent every other what is for it. Here a task computes a block with all that it is made of, by itself, and to a part
    of a shuffle nobody would open that barrier.

    Parameters
    ----------
    array : dask.array.Array
        Any. Nothing is computed.

    Notes
    -----
    Each chunk is made in one step of what the shuffle would have begun with (see `between_bytes`); dask would go by way
    of more. **Cost** in the graph: a task for each piece, of which there are most where rows become columns.
    """
    if not _shuffles(array):
        return array
    graph = array.__dask_graph__()
    import dask.array as da  # not at the top: workers load this package too, and it brings SciPy
    from dask._task_spec import Alias
    from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

    for name in list(TopologicalSorter(graph.dependencies).static_order()):
        shuffle = graph.layers[name]
        if _is_shuffle(shuffle):
            before = da.Array(graph, shuffle.name_input, shuffle.chunks_input, dtype=array.dtype)
            plain = before.rechunk(shuffle.chunks, method="tasks", threshold=ONE_STEP)
            same = {key: Alias(key, (plain.name, *key[1:])) for key in shuffle.get_output_keys()}
            layers = {**plain.dask.layers, name: MaterializedLayer(same)}
            graph = HighLevelGraph(layers, {**plain.dask.dependencies, name: {plain.name}})
    return da.Array(graph, array.name, array.chunks, meta=array._meta)


def between_bytes(array: Any) -> int:
    """Return the bytes that a task holds for a while beside the chunks of an array that was rechunked by a shuffle.

    Before one dask merges small chunks, into some of up to its ``array.chunk-size`` (128 MiB): those of one, and what
    they become. Where a chunk of the array needs several that a shuffle makes, as those of columns that become rows
    again, pieces of all of those lie in one task besides.

    Parameters
    ----------
    array : dask.array.Array
        Any; of one without a shuffle they are 0.
    """
    shuffles = _shuffles(array)
    if not shuffles:
        return 0
    chunk = (array.name, *(count // 2 for count in array.numblocks))
    needed = [layer for layer in array.__dask_graph__().cull({chunk}).layers.values() if _is_shuffle(layer)]
    chunks = [_itemsize(shuffle) * math.prod(map(max, shuffle.chunks_input)) for shuffle in shuffles]
    pieces = [_itemsize(shuffle) * _items(shuffle) for shuffle in needed if shuffle.keepmap.sum() > 1]
    return int(2 * max(chunks) + sum(pieces))


def _itemsize(shuffle: Any) -> int:
    """Return the bytes of one number of a shuffle: dask notes what the layers of arrays are; else the most usual."""
    return int((shuffle.collection_annotations or {}).get("dtype", np.dtype("f8")).itemsize)


def _items(shuffle: Any) -> int:
    """Return how many numbers the chunks have that are wanted of a shuffle."""
    sizes = math.prod(np.ix_(*(np.asarray(lengths, dtype=np.int64) for lengths in shuffle.chunks)))
    return int(np.where(shuffle.keepmap, sizes, 0).sum())


def _shuffles(array: Any) -> list[Any]:
    """Return the layers of a dask array's graph that are shuffles between workers."""
    return [layer for layer in array.__dask_graph__().layers.values() if _is_shuffle(layer)]


def _is_shuffle(layer: Any) -> bool:
    shuffles = sys.modules.get("distributed.shuffle._rechunk")  # where nobody has loaded it, nobody has made one
    return shuffles is not None and isinstance(layer, shuffles.P2PRechunkLayer)
