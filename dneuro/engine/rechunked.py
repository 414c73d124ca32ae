"""Rechunking that dask leaves to a shuffle between all workers, done by tasks instead."""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter
from typing import Any


def by_tasks(array: Any) -> Any:
    """Return a dask array whose graph has no shuffle between workers in it; any other array as it is.

    Where a client is active, dask rechunks large arrays so: a barrier in the scheduler waits until every worker has
    sent every other what is for it. Here a task computes a block with all that it is made of, by itself, and to a part
    of a shuffle nobody would open that barrier.

    Parameters
    ----------
    array : dask.array.Array
        Any. Nothing is computed.
    """
    shuffles = sys.modules.get("distributed.shuffle._rechunk")
    if shuffles is None:  # nobody has made one
        return array
    graph = array.__dask_graph__()
    if not any(isinstance(layer, shuffles.P2PRechunkLayer) for layer in graph.layers.values()):
        return array
    import dask.array as da  # not at the top: workers load this package too, and it brings SciPy
    from dask._task_spec import Alias
    from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

    for name in list(TopologicalSorter(graph.dependencies).static_order()):
        shuffle = graph.layers[name]
        if isinstance(shuffle, shuffles.P2PRechunkLayer):
            before = da.Array(graph, shuffle.name_input, shuffle.chunks_input, dtype=array.dtype)
            plain = before.rechunk(shuffle.chunks, method="tasks")
            same = {key: Alias(key, (plain.name, *key[1:])) for key in shuffle.get_output_keys()}
            layers = {**plain.dask.layers, name: MaterializedLayer(same)}
            graph = HighLevelGraph(layers, {**plain.dask.dependencies, name: {plain.name}})
    return da.Array(graph, array.name, array.chunks, meta=array._meta)
