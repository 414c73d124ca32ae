"""Worker processes of pools that differ in their environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

from distributed import Nanny

from dneuro.quantities import format_duration

_spawning = threading.Lock()
"""Held while the environment of this process is that of a worker which is being started."""

GLANCE = 0.005
"""Seconds between two looks whether a process is there."""


class PoolNanny(Nanny):  # type: ignore[misc]
    """A nanny whose worker starts with an environment of its own.

    OpenMP, MKL and CUDA read theirs when they are imported, which may be before a nanny's ``env`` is set. And dask's
    ``pre-spawn-environ`` goes into the environment of the process that all nannies share, and stays there: of two
    workers that start at the same time, either could get the other's.

    Parameters
    ----------
    *args, **kwargs
        As of `distributed.Nanny`.
    pre_spawn : dict of str to str
        Environment of the worker, from its first instruction on.
    patience : float
        Seconds within which the worker must be there the first time; dask itself waits as long as its process lives.
    """

    def __init__(self, *args: Any, pre_spawn: dict[str, str], patience: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience, self._was_there = patience, False
        self.pre_spawn_env.update(pre_spawn)
        self.env.update(pre_spawn)

    async def instantiate(self) -> Any:
        """Start the worker; one after the other until its process is there, all at once from then on."""
        async with _environment_for_one(list(self.pre_spawn_env)):
            starting = asyncio.ensure_future(super().instantiate())
            while not (starting.done() or self._has_process()):
                await asyncio.sleep(GLANCE)
        if not self._was_there:
            await asyncio.wait([starting], timeout=self._patience)
            if not starting.done():
                await self._end_process()
                await asyncio.wait([starting])
                raise RuntimeError(f"worker {self.name} was not there after {format_duration(self._patience)}")
        found, self._was_there = await starting, True
        return found

    async def _end_process(self) -> None:
        """End a process that does not come up: one that is starting the nanny would wait for for ever."""
        process = getattr(self.process, "process", None)
        if process is not None:
            await process.kill()

    def _has_process(self) -> bool:
        process = getattr(self.process, "process", None)
        return process is not None and process.pid is not None


@contextlib.asynccontextmanager
async def _environment_for_one(names: list[str]) -> AsyncIterator[None]:
    """Let nobody else start a worker, and set the variables of those names back afterwards."""
    while not _spawning.acquire(blocking=False):
        await asyncio.sleep(GLANCE)
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _spawning.release()
