"""What stands behind a lazily derived array: each block is computed by itself, with all that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import xarray as xr
from dask.core import flatten, get_dependencies

from dneuro.engine.blocks import Block
from dneuro.engine.parts import computes
from dneuro.engine.rechunked import by_tasks

WORTH_SAYING = 1.5
"""Chunks that reach into two blocks are computed for both; that much is usual."""


def times_over(xs: Sequence[xr.DataArray], blocks: Sequence[Block], *, whole_rows: bool = False) -> float:
    """Return how often the chunks that arrays are made of are computed, if every block is computed by itself.

    Two blocks are looked at: what they share (a mean over all images, a chunk across all of them) every block needs.
    Nothing is computed.

    Parameters
    ----------
    xs : sequence of DataArray, dims (image, …)
        The arrays.
    blocks : sequence of Block
        Blocks of different images.
    whole_rows : bool
        They hold all features.
    """
    lazy = [x for x in xs if dask.is_dask_collection(x.data)]
    count = len(blocks)
    if not lazy or count < 2:
        return 1.0
    one, other = ({key for x in lazy for key in _first_tasks(x, block, whole_rows)}
                  for block in (blocks[count // 3], blocks[-1]))  # fmt: skip
    shared = len(one & other)
    if not shared:
        return 1.0
    both = len(one) + len(other)
    return count * both / (2 * shared + count * (both - 2 * shared))


def _first_tasks(x: xr.DataArray, block: Block, whole_rows: bool) -> set[Any]:
    """Return the tasks that a block begins with: those that need no other."""
    where = (slice(*block.rows), slice(None) if whole_rows else slice(*block.columns))
    array = by_tasks(x.data)[where[: x.ndim]]
    graph = array.__dask_graph__().cull(set(flatten(array.__dask_keys__()))).to_dict()
    at_work = {key for key, task in graph.items() if computes(task)}
    return {key for key in at_work if not at_work & get_dependencies(graph, key)}
