"""The memory and the reading of a pass, known before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import xarray as xr

from dneuro.engine.blocks import BLOCK_BYTES, Grid, cut
from dneuro.engine.executors import PROCESS_BYTES, Sizes
from dneuro.errors import MemoryLimitError
from dneuro.quantities import MiB, format_bytes


class Plannable(Protocol):
    """What the plan needs of a kernel."""

    @property
    def whole_rows(self) -> bool:
        """True if a block must hold all features of its images."""
        ...

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:
        """Return (bytes of state, bytes of work)."""
        ...


@dataclass(frozen=True)
class Plan:
    """What an operation will read, hold and give.

    Parameters
    ----------
    operation : str
        Name of it.
    passes : int
        Times that the array is read, at most.
    read_bytes : int
        Bytes read in all, uncompressed.
    tasks : int
        Tasks per pass.
    worker_bytes : int
        Peak memory of one worker process.
    driver_bytes : int
        Peak memory for results in the process that asks.
    result_bytes : int
        Size of the result.
    method : str
        How it will be computed.
    """

    operation: str
    passes: int
    read_bytes: int
    tasks: int
    worker_bytes: int
    driver_bytes: int
    result_bytes: int
    method: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        how = f" ({self.method})" if self.method else ""
        return (
            f"{self.operation}{how}: {self.passes} pass{'es' if self.passes != 1 else ''} over "
            f"{format_bytes(self.read_bytes / max(1, self.passes))}, {self.tasks} tasks each; "
            f"peak {format_bytes(self.worker_bytes)} per worker, {format_bytes(self.driver_bytes)} in the driver; "
            f"result {format_bytes(self.result_bytes)}"
        )

    def check(self, limit: int, *, hint: str) -> None:
        """Refuse a plan that does not fit.

        Raises
        ------
        MemoryLimitError
            With the numbers, and `hint`.
        """
        if self.worker_bytes > limit:
            raise MemoryLimitError(
                f"{self.operation} needs {format_bytes(self.worker_bytes)} per worker, the limit is "
                f"{format_bytes(limit)}; nothing was started",
                hint=hint,
            )


def fit(
    xs: Sequence[xr.DataArray], kernels: Mapping[str, Plannable], executor: Sizes, *, pooled: bool = False
) -> tuple[Grid, int]:
    """Return the grid of a pass and the peak bytes of a worker process.

    Blocks are made smaller, down to one chunk, where the usual size would not fit.
    """
    whole = any(kernel.whole_rows for kernel in kernels.values())
    target = BLOCK_BYTES
    while True:
        grid = cut(xs, whole_rows=whole, pooled=pooled, target=target)
        peak = PROCESS_BYTES + executor.slots_per_process * task_bytes(grid, len(xs[0]), kernels)
        if peak <= executor.memory or target <= MiB:
            return grid, peak
        target //= 2


def task_bytes(grid: Grid, images: int, kernels: Mapping[str, Plannable]) -> int:
    """Return the peak bytes of one task: blocks as read and as joined, one chunk being decoded, states."""
    states = works = 0
    for kernel in kernels.values():
        state, work = kernel.memory(images, grid.rows, grid.features)
        states += state
        works = max(works, work)
    # A merge holds two states, and copies them; besides, finished states of other runs wait on the worker.
    return 2 * grid.block_bytes + grid.chunk_bytes + works + 4 * states


def plan_pass(
    operation: str,
    xs: Sequence[xr.DataArray],
    kernels: Mapping[str, Plannable],
    executor: Sizes,
    *,
    pooled: bool = False,
    passes: int = 1,
    result_bytes: int = 0,
    driver_bytes: int | None = None,
    method: str = "",
) -> Plan:
    """Return the plan of `passes` passes like this one; reads no data."""
    grid, peak = fit(xs, kernels, executor, pooled=pooled)
    return Plan(
        operation=operation,
        passes=passes,
        read_bytes=passes * sum(int(x.nbytes) for x in xs),
        tasks=len(grid.runs),
        worker_bytes=peak,
        driver_bytes=2 * result_bytes if driver_bytes is None else driver_bytes,
        result_bytes=result_bytes,
        method=method,
    )
