"""Which workers do which step: those of its pool, where there are several."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

from dneuro.allocation import LIBRARIES_BYTES
from dneuro.engine.device import TORCH_BYTES
from dneuro.engine.executors import Executor, Sizes, get_executor
from dneuro.quantities import MiB
from dneuro.spec.job import JobSpec

EXTRACT = "extract"
"""The pool that trains and extracts where a job does not say otherwise."""

LEFT_BEHIND = 112 * MiB
"""What a network leaves behind in a process that has let go of it: kernels that were compiled for its layers, and gaps
in the allocator's memory. After AlexNet it was 60 to 120 MiB."""

AFTER_NETWORK = TORCH_BYTES + LIBRARIES_BYTES + LEFT_BEHIND
"""What a process holds that has run a network, before it analyses anything."""

SizesOf = Callable[[str], Sizes]
ExecutorOf = Callable[[str], Executor]


def sizes_of(where: Sizes | SizesOf) -> SizesOf:
    """Return what the workers of each pool have; `where` says it, or is all there is."""
    return cache(where) if callable(where) else lambda pool: where


def executors_of(client: Any) -> ExecutorOf:
    """Return where the tasks of each pool run: by pool on opened machines, else all on a dask client or on threads."""
    if hasattr(client, "executor"):
        return cache(client.executor)
    executor = get_executor(client)
    return lambda pool: executor


Place = TypeVar("Place", bound=Sizes)


def beside_network(of: Callable[[str], Place], job: JobSpec) -> Callable[[str], Place]:
    """Return what analyses have in each pool: where the network ran, processes keep its libraries, and what it left."""
    pools = [step.pool_name for step in (job.train, job.extract) if step is not None]

    @cache
    def sized(pool: str) -> Place:
        place = of(pool)
        return _larger(place) if any(_may_be(place, of(other)) for other in pools) else place

    return sized


def _may_be(one: Sizes, other: Sizes) -> bool:
    """Return whether two pools may be the same processes."""
    return one is other or _looks(one) == _looks(other)


def _looks(place: Sizes) -> tuple[Any, ...]:
    return place.slots, place.memory, getattr(place, "pool", None)


def _larger(place: Any) -> Any:
    if is_dataclass(place) and not isinstance(place, type):
        return replace(place, process_bytes=AFTER_NETWORK)
    other = copy.copy(place)
    other.process_bytes = AFTER_NETWORK
    return other
