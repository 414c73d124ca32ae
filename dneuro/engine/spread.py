"""Chunks of an array in the memory of many workers: each has neighbouring images, and its equal share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dneuro.engine.rechunked import by_tasks

ROWS = 5
"""Rows of chunks for each task from which on whole rows are dealt out: one more or less is within what plans count."""


def persist_evenly(client: Any, array: Any, slots: Mapping[str, int], asks: Mapping[str, Any]) -> Any:
    """Have workers compute and keep the chunks of a dask array, and return it as an array of what they hold.

    Left to itself dask gives a chunk to whoever has nothing to do. The blocks of a pass are runs of images: their
    chunks would lie on all workers, each would get copies of those of the others, and keep them as long as its own.

    Parameters
    ----------
    client : distributed.Client
        Whose workers.
    array : dask.array.Array
        Rows of chunks along its first dim are dealt out, in order; chunks, where there are few for each task.
    slots : mapping of str to int
        Tasks that each worker does at the same time, by address: its part goes with them.
    asks : mapping
        Further arguments of ``client.get``.

    Notes
    -----
    What a worker held that is lost is computed again by any other.
    """
    import dask.array as da  # not at the top: workers load this package too, and it brings SciPy
    from dask.core import flatten
    from dask.highlevelgraph import HighLevelGraph

    array = by_tasks(array)  # each worker is asked for its part alone
    keys = list(flatten(array.__dask_keys__()))
    rows, tasks = array.numblocks[0], sum(slots.values())
    many = len(keys) // rows if rows >= ROWS * tasks else 1  # where there are fewer rows, some have part of one
    edges = many * (np.cumsum([0, *slots.values()]) * (len(keys) // many) // tasks)
    held: dict[Any, Any] = {}
    for worker, start, stop in zip(slots, edges, edges[1:], strict=False):
        if mine := keys[start:stop]:
            graph = array.__dask_optimize__(array.__dask_graph__(), mine)
            where = {**asks, "workers": [worker], "allow_other_workers": True}
            held |= zip(mine, client.get(graph, mine, sync=False, **where), strict=True)
    whole = HighLevelGraph.from_collections(array.name, held)
    return da.Array(whole, array.name, array.chunks, dtype=array.dtype)
