"""The memory and the reading of a pass, known before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import xarray as xr

from dneuro import events
from dneuro.engine.behind import WORTH_SAYING, times_over
from dneuro.engine.blocks import BLOCK_BYTES, FEW_RUNS, RUNS, STATES_SHARE, Grid, cut
from dneuro.engine.device import chosen_name, device_limit, held_on_device, moving_bytes, process_bytes
from dneuro.engine.executors import Sizes, ThreadExecutor
from dneuro.errors import MemoryLimitError
from dneuro.quantities import MiB, format_bytes

TASKS_BYTES = 16 * MiB
"""What tasks on workers take in the process that sends them: their graphs, messages and futures, and what is imported
with the first of them."""

SMALL = 4 * MiB
"""States up to this size come to the driver and are merged there: tasks that merge them would take longer."""


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
        Peak memory in the process that asks: for results, and for the tasks that it sends to workers.
    result_bytes : int
        Size of the result.
    method : str
        How it will be computed.
    device : str
        Device of the workers that it is computed on; empty for NumPy on the processor.
    device_bytes : int
        Peak memory that one worker process takes on it; 0 where it has none of its own.
    times_over : float
        How often chunks that a lazily derived array is made of are computed in one pass.
    """

    operation: str
    passes: int
    read_bytes: int
    tasks: int
    worker_bytes: int
    driver_bytes: int
    result_bytes: int
    method: str = ""
    device: str = ""
    device_bytes: int = 0
    times_over: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        how = f" ({self.method})" if self.method else ""
        there = f" and {format_bytes(self.device_bytes)} on its {self.device}" if self.device_bytes else ""
        return (
            f"{self.operation}{how}: {self.passes} pass{'es' if self.passes != 1 else ''} over "
            f"{format_bytes(self.read_bytes / max(1, self.passes))}, {self.tasks} tasks each; "
            f"peak {format_bytes(self.worker_bytes)} per worker{there}, {format_bytes(self.driver_bytes)} in the "
            f"driver; result {format_bytes(self.result_bytes)}{self._derived and '; '}{self._derived}"
        )

    @property
    def _derived(self) -> str:
        """What there is to say of a lazily derived array; nothing of most."""
        if self.times_over < WORTH_SAYING:
            return ""
        return (
            f"what the array is derived from is computed {self.times_over:.0f} times in each pass, for every block "
            "anew: x.persist(), or .compute() of what all blocks share, spares that"
        )

    def process_bytes(self, where: Sizes) -> int:
        """Return the peak of a process that does tasks: with threads it is the one that asks, and holds results too."""
        return self.worker_bytes + (self.driver_bytes if isinstance(where, ThreadExecutor) else 0)

    def asking_bytes(self, where: Sizes) -> int:
        """Return the peak of the process that asks."""
        return self.process_bytes(where) if isinstance(where, ThreadExecutor) else self.driver_bytes

    def at_least(self, other: Plan) -> Plan:
        """Return the plan with the peaks of another one where they are higher: of any process, and of devices."""
        return replace(
            self, worker_bytes=max(self.worker_bytes, other.worker_bytes),
            driver_bytes=max(self.driver_bytes, other.driver_bytes),
            device_bytes=max(self.device_bytes, other.device_bytes),
        )  # fmt: skip

    def fits(self, where: Sizes) -> bool:
        """Return whether workers, their device and the driver have room for the plan."""
        here = self.worker_bytes <= where.memory and self.asking_bytes(where) <= where.driver_memory
        return here and (not self.device_bytes or self.device_bytes <= self._on_device(where))

    def _on_device(self, where: Sizes) -> int:
        limit = device_limit(where)
        return self.device_bytes if limit is None else limit

    def check(self, where: Sizes, *, hint: str, driver_hint: str) -> None:
        """Refuse a plan that does not fit into the workers, their device, or the process that asks; warn of a dear one.

        Parameters
        ----------
        where : Sizes
            What there is.
        hint, driver_hint : str
            The way out if the workers, or if the driver, have too little.

        Raises
        ------
        MemoryLimitError
            With the numbers, and the way out.
        DeviceError
            If a worker does not have the device.
        """
        if self.worker_bytes > where.memory:
            raise MemoryLimitError(
                f"{self.operation} needs {format_bytes(self.worker_bytes)} per worker, the limit is "
                f"{format_bytes(where.memory)}; nothing was started",
                hint=hint,
            )
        if self.asking_bytes(where) > where.driver_memory:
            tasks = f", {format_bytes(self.worker_bytes)} of it for its tasks" * isinstance(where, ThreadExecutor)
            raise MemoryLimitError(
                f"{self.operation} needs {format_bytes(self.asking_bytes(where))} in the driver, the process that "
                f"asks{tasks}; the limit is {format_bytes(where.driver_memory)}; nothing was started",
                hint=driver_hint,
            )
        if self.device and self.device_bytes > (limit := self._on_device(where)):
            raise MemoryLimitError(
                f"{self.operation} needs {format_bytes(self.device_bytes)} of each worker's device {self.device!r}, "
                f"{format_bytes(limit)} of it are free; nothing was started",
                hint=f"{hint}; fewer threads per worker, or dn.on_device('cpu')",
            )
        if self._derived:
            events.emit("warning", self.operation, self._derived)


def in_driver(held: int, where: Sizes) -> int:
    """Return the peak of the process that asks and holds so many bytes for results, with what tasks take there.

    The tasks of threads are of that process: what they take is counted with them.
    """
    return held if isinstance(where, ThreadExecutor) else held + TASKS_BYTES


def fit(
    xs: Sequence[xr.DataArray], kernels: Mapping[str, Plannable], executor: Sizes, *, pooled: bool = False
) -> tuple[Grid, int]:
    """Return the grid of a pass and the peak bytes of a worker process.

    Blocks are made smaller, down to one chunk, where the usual size would not fit.
    """
    whole = any(kernel.whole_rows for kernel in kernels.values())
    images, size = len(xs[0]), sum(int(x.nbytes) for x in xs)
    target = BLOCK_BYTES
    while True:
        grid = cut(xs, whole_rows=whole, pooled=pooled, target=target)
        merged, _ = _memory(grid, math.ceil(images / RUNS), kernels, per_run=0)  # without rows of images
        if RUNS * merged > STATES_SHARE * size:
            grid = cut(xs, whole_rows=whole, pooled=pooled, target=target, runs=FEW_RUNS)
        elif all(getattr(kernel, "long_runs", False) for kernel in kernels.values()):
            # What such kernels find is the same however the images are cut, so it may depend on the workers.
            runs = min(RUNS, max(FEW_RUNS, 4 * executor.slots))
            grid = cut(xs, whole_rows=whole, pooled=pooled, target=target, runs=runs)
        peak = process_bytes(executor) + _pass_bytes(grid, images, kernels, executor.slots_per_process)
        if peak <= executor.memory or target <= MiB:
            return grid, peak
        target //= 2


def _pass_bytes(grid: Grid, images: int, kernels: Mapping[str, Plannable], slots: int) -> int:
    """Return the most bytes that a pass holds in a process that runs `slots` tasks at the same time.

    Every slot has a block as it is read and as it is joined, a chunk being decoded, a state in the making and what
    the kernel works with; and one state that is done, until the driver knows it. In the tree of mergers one state
    may wait on each level, all of them on the same worker.
    """
    per_run = _per_run(grid, images)
    leaf, _ = _memory(grid, per_run, kernels)
    _, work = _memory(grid, images, kernels, per_run)
    moving = moving_bytes(grid.block_bytes)
    held = 2 * grid.block_bytes + grid.chunk_bytes + moving + 2 * leaf + work
    return slots * held + _waiting(grid, images, kernels)


def _per_run(grid: Grid, images: int) -> int:
    """Return the images of a run."""
    return math.ceil(images / max(map(len, grid.panels.values())))


def _waiting(grid: Grid, images: int, kernels: Mapping[str, Plannable]) -> int:
    """Return the bytes of one state on each level of the tree of mergers."""
    runs, per_run = max(map(len, grid.panels.values())), _per_run(grid, images)
    levels = math.ceil(math.log2(runs)) if runs > 1 else 0
    return sum(_memory(grid, min(images, per_run << level), kernels, per_run)[0] for level in range(levels))


def _merged_in_driver(grid: Grid, images: int, kernels: Mapping[str, Plannable], executor: Sizes) -> int:
    """Return the bytes of states that workers send to be merged in the process that asks.

    One on each level of the tree; two that are merged, and what they become. Those of threads are there in any case,
    and counted with their tasks.
    """
    if isinstance(executor, ThreadExecutor) or not is_small(grid, kernels, images):
        return 0
    largest, _ = _memory(grid, images, kernels, _per_run(grid, images))
    return _waiting(grid, images, kernels) + 3 * largest


def _task_on_device(grid: Grid, images: int, kernels: Mapping[str, Plannable]) -> int:
    """Return the most bytes of a device that a task holds: a block and the one that follows it, states, and their work.

    What is made of a block at once, its maximum over positions for instance, is there when the next has not come yet.
    """
    state, work = _memory(grid, _per_run(grid, images), kernels)
    return 2 * grid.block_bytes + state + work


def is_small(grid: Grid, kernels: Mapping[str, Plannable], images: int) -> bool:
    """Return whether the states of one run are small, so that they are merged in the process that asks."""
    return _memory(grid, _per_run(grid, images), kernels)[0] <= SMALL


def by_image(kernel: Any) -> tuple[str, ...]:
    """Return the names of what a kernel's state holds one row per image of, that are not merged."""
    return tuple(getattr(kernel, "by_image", ()))


def _memory(
    grid: Grid, images: int, kernels: Mapping[str, Plannable], per_run: int | None = None
) -> tuple[int, int]:
    """Return (bytes of the states of all kernels, bytes of work of one after the other).

    Rows of images are not merged: no state knows more of them than those of one run.
    """
    found = [
        k.memory(images if per_run is None or not by_image(k) else min(images, per_run), grid.rows, grid.features)
        for k in kernels.values()
    ]
    states, works = zip(*found, strict=True)
    return sum(states), max(works)


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
    panel = max(grid.panels.values(), key=len)
    driver = in_driver(2 * result_bytes if driver_bytes is None else driver_bytes, executor)
    return Plan(
        operation=operation,
        passes=passes,
        read_bytes=passes * sum(int(x.nbytes) for x in xs),
        tasks=len(grid.runs),
        worker_bytes=peak,
        driver_bytes=driver + _merged_in_driver(grid, len(xs[0]), kernels, executor),
        result_bytes=result_bytes,
        method=method,
        device=chosen_name(),
        device_bytes=held_on_device(executor.slots_per_process, _task_on_device(grid, len(xs[0]), kernels)),
        times_over=times_over(xs, [block for run in panel for block in run], whole_rows=len(grid.panels) == 1),
    )
