"""What each worker of a pool has, known before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from dneuro.engine.executors import PROCESS_BYTES
from dneuro.engine.memory import available


@dataclass(frozen=True)
class WorkerSizes:
    """What each worker has.

    Parameters
    ----------
    workers : int
        Processes.
    threads : int
        Tasks per process.
    cpus : int
        Threads that torch and BLAS may use per task.
    memory : int
        Bytes per process.
    gpus : int
        GPUs per process.
    driver : int, optional
        Bytes of the process that drives a job; the default is what is free on this machine.
    process_bytes : int
        Memory of a process before it does anything.
    coalescing : bool
        Whether what a process frees becomes one with its free neighbours at once.
    """

    workers: int
    threads: int
    cpus: int
    memory: int
    gpus: int = 0
    driver: int | None = None
    process_bytes: int = PROCESS_BYTES
    coalescing: bool = False

    @property
    def driver_memory(self) -> int:
        """Bytes that results may take in the process that asks."""
        return available() if self.driver is None else self.driver

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        return self.workers * self.threads

    @property
    def slots_per_process(self) -> int:
        """Tasks that share a process."""
        return self.threads
