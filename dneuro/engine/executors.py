"""Where tasks run: threads of this process, or the workers of any dask client."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from numbers import Integral
from typing import Any, Protocol

import dask
import psutil
from dask.utils import funcname

from dneuro.allocation import coalesces, share_one_pool
from dneuro.engine import stopping
from dneuro.engine.at_work import ONE_BLAS_THREAD, fetched, run_task, same
from dneuro.engine.memory import available, installed
from dneuro.engine.place import free_bytes, free_on_worker
from dneuro.engine.spread import persist_evenly
from dneuro.engine.standstill import Standstill
from dneuro.engine.workers import coalesces_there, slots_of, workers_of
from dneuro.errors import DneuroError, SchedulerLostError, UsageError
from dneuro.quantities import MiB, format_duration

Future = Any

PROCESS_BYTES = 280 * MiB
"""Memory of a worker process before it does anything (interpreter, numpy, dask, zarr, xarray: 219 MiB measured, and
what the allocator keeps from task to task)."""

LOOK = 1.0
"""Seconds for which what was seen of the workers is good enough."""

GLANCE = 0.05
"""Seconds between two looks at what others do."""

ANSWER = 10.0
"""Seconds that workers are given to say what they are at; one that is silent for longer is not waited for."""

FETCHING = 0.5
"""Seconds that workers are given to fetch what their tasks share; one that is busy does so with its first."""

IMPORTING = 120.0
"""Seconds that workers are given to import torch and to say what their device has."""

PATIENCE = 900.0
"""Seconds to wait for other workers once all are lost: a queue may take its time to give new ones."""


class Sizes(Protocol):
    """What a plan needs to know of a place to compute."""

    @property
    def slots(self) -> int:
        """Tasks that can run at the same time."""
        ...

    @property
    def slots_per_process(self) -> int:
        """Tasks that share one process, and its memory."""
        ...

    @property
    def memory(self) -> int:
        """Bytes that one process may use."""
        ...

    @property
    def process_bytes(self) -> int:
        """Memory of a process before it does anything."""
        ...

    @property
    def coalescing(self) -> bool:
        """Whether what a process frees becomes one with its free neighbours at once, so that forward passes fit."""
        ...

    @property
    def driver_memory(self) -> int:
        """Bytes that results may take in the process that asks."""
        ...


class Executor(Sizes, Protocol):
    """What the engine needs of a place to compute."""

    def device_memory(self, name: str) -> int | None:
        """Return the bytes of a device that one process may take, the least of all; None where nobody knows.

        Raises
        ------
        DeviceError
            If a process does not have it.
        """
        ...

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Start ``function(*args)``; an argument may be a future of this executor, once it is done."""
        ...

    def wait(self, futures: Collection[Future]) -> set[Future]:
        """Return those that are done; waits for at least one."""
        ...

    def watch(self) -> None:
        """Look whether there is somebody to work at all, for whoever waits in another way than by `wait`.

        Raises
        ------
        DneuroError
            As `wait` does.
        """
        ...

    def stop(self, token: str, futures: Collection[Future]) -> None:
        """Give up tasks that are in flight, `Stoppable` with this token; returns when none of them is at work."""
        ...

    def share(self, thing: Any) -> Any:
        """Return something that tasks get as `thing`, sent to each worker once."""
        ...

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which dask's own ``compute`` runs here too, for libraries that call it."""
        ...


class ThreadExecutor:
    """Threads of this process.

    Parameters
    ----------
    slots : int, optional
        Number of threads; the default is the number of cores that this process may use.
    memory : int, optional
        Bytes to stay within; the default is what the machine has available.

    Raises
    ------
    UsageError
        If either is no whole number, at least 1.
    """

    process_bytes = PROCESS_BYTES

    def __init__(self, slots: int | None = None, memory: int | None = None) -> None:
        for name, value, hint in (("slots", slots, "slots=4"), ("memory", memory, "memory=2 * 2**30")):
            whole = value is None or (isinstance(value, Integral) and not isinstance(value, bool))
            if not whole or (value is not None and value < 1):
                raise UsageError(f"{name}={value!r} is not a whole number, at least 1", hint=f"{hint}, or leave it out")
        self.slots = len(psutil.Process().cpu_affinity() or [0]) if slots is None else int(slots)
        self.slots_per_process = self.slots
        self.memory = available() if memory is None else int(memory)
        self.coalescing = coalesces()
        share_one_pool()  # before others begin threads: Zarr, whoever reads pictures
        self._pool = concurrent.futures.ThreadPoolExecutor(self.slots, thread_name_prefix="dneuro")

    @property
    def driver_memory(self) -> int:
        """Bytes that results may take with the tasks, which this process does too; its imports are there already."""
        return min(self.memory, available() + PROCESS_BYTES)

    def device_memory(self, name: str) -> int | None:  # noqa: D102
        return free_bytes(name)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:  # noqa: D102
        ready = [a.result() if isinstance(a, concurrent.futures.Future) else a for a in args]
        return self._pool.submit(function, *ready)

    def wait(self, futures: Collection[Future]) -> set[Future]:  # noqa: D102
        return set(concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED).done)

    def watch(self) -> None:  # noqa: D102
        pass

    def stop(self, token: str, futures: Collection[Future]) -> None:  # noqa: D102
        stopping.stop(token)
        for future in futures:
            future.cancel()
        concurrent.futures.wait(futures)

    def share(self, thing: Any) -> Any:  # noqa: D102
        return thing

    def computing(self) -> contextlib.AbstractContextManager[Any]:  # noqa: D102
        here: contextlib.AbstractContextManager[Any] = dask.config.set(scheduler="threads", pool=self._pool)
        return here


class DaskExecutor:
    """The workers of a dask client: a LocalCluster, Slurm, Kubernetes, anything.

    Parameters
    ----------
    client : distributed.Client
        A synchronous client with at least one worker. One without a memory limit counts as having an equal part, with
        all other workers of its host, of what this process could take of this machine.
    pool : str, optional
        Only the workers that offer a resource of this name; the default is all of them. Workers that join later count
        too: a task is bound to what a worker offers, not to its address.
    patience : float
        Seconds to wait for workers once all are lost, or paused.
    memory : int, optional
        Bytes that a worker is to stay within, where its own limit is not less.

    Raises
    ------
    UsageError
        If it is no such client, or has no worker: then nobody can say what fits into one.
    """

    process_bytes = PROCESS_BYTES

    def __init__(
        self, client: Any, pool: str | None = None, *, patience: float = PATIENCE, memory: int | None = None
    ) -> None:
        if not hasattr(client, "submit") or getattr(client, "asynchronous", False):
            raise UsageError(
                f"client is a {type(client).__name__}, not a distributed.Client that can be waited for",
                hint="client=distributed.Client(address)",
            )
        self.client = client
        self.address = client.scheduler.address  # a client that has lost its scheduler no longer knows it
        self.pool = pool
        self.patience = patience
        self._asks: dict[str, Any] = {} if pool is None else {"resources": {pool: 1}}
        self._changed = threading.Event()
        self._deserted: float | None = None
        self._standstill = Standstill(self._of_pool, patience)
        self._seen = -1.0
        self._devices: dict[str, int | None] = {}
        self._look()
        if not self._workers:
            raise UsageError(
                f"the dask cluster at {self.address} has no workers{self._of_pool} yet",
                hint="client.wait_for_workers(1)" if pool is None else f"dask worker --resources {pool}=1 …",
            )
        self.slots_per_process = max(slots_of(worker, pool) for worker in self._workers) or 1
        limits = [w["memory_limit"] or memory or installed() // self._on_host[w.get("host")] for w in self._workers]
        self.memory = min(limits if memory is None else [*limits, memory])
        self.coalescing = all(map(coalesces_there, self._workers))

    def _look(self) -> None:
        """See which workers there are, unless that was seen a moment ago: asking takes as long as a small task."""
        began = time.monotonic()
        if began < self._seen:
            return
        workers = workers_of(self.client)
        # Whoever has no limit shares what its host has with all that are there, of other pools too. The host is taken
        # to be like this machine: its scheduler does not say what it has.
        self._on_host = Counter(worker.get("host") for worker in workers.values())
        self._workers = [
            {**worker, "address": address}
            for address, worker in workers.items()
            if self.pool is None or self.pool in worker.get("resources", {})
        ]
        now = time.monotonic()
        self._seen = now + max(LOOK, 20 * (now - began))

    @property
    def slots(self) -> int:
        """Tasks that can run at the same time, now: workers come and go."""
        return sum(self._slots_by_worker().values()) or 1

    def _slots_by_worker(self) -> dict[str, int]:
        """Return the tasks that each worker can do at the same time, by address."""
        self._look()
        return {worker["address"]: slots_of(worker, self.pool) for worker in self._workers}

    @property
    def driver_memory(self) -> int:
        """Bytes that results may take in this process: what is free here, now."""
        return available()

    def device_memory(self, name: str) -> int | None:
        """Return the bytes of a device that the worker with the least of it may take; asks all of them, once.

        Raises
        ------
        DeviceError
            If one of them does not have it.
        """
        if name not in self._devices:
            self._devices[name] = self._ask_for(name)
        return self._devices[name]

    def _ask_for(self, name: str) -> int | None:
        workers = workers_of(self.client)
        asked = [address for address, w in workers.items() if self.pool is None or self.pool in w.get("resources", {})]
        ask = self.client._run  # what `client.run` waits for, without end
        try:
            found = self.client.sync(
                ask, free_on_worker, name, workers=asked, on_error="ignore", callback_timeout=IMPORTING
            )
        except (OSError, RuntimeError, TimeoutError):  # a worker that is silent says so in its first task
            return None
        for answer in found.values():
            if isinstance(answer, DneuroError):
                raise answer
        return min((answer for answer in found.values() if answer is not None), default=None)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:  # noqa: D102
        # Blocks of an array in memory and the vectors of a kernel are large, and each is sent once.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            key = f"{funcname(function)}-{uuid.uuid4()}"
            future = self.client.submit(run_task, function, *args, pure=False, key=key, **self._asks)
        future.add_done_callback(self._note_change)
        return future

    def _note_change(self, future: Future) -> None:
        self._changed.set()

    def wait(self, futures: Collection[Future]) -> set[Future]:
        """Return those that are done; waits for at least one.

        Raises
        ------
        SchedulerLostError
            If the scheduler has ended, or was restarted.
        DneuroError
            If there is no worker, and none comes within `patience`; or all are paused for as long, their memory full.
        """
        while True:
            self._changed.clear()
            # One that is lost was found, and its worker has died since: dask computes it again.
            if done := {future for future in futures if future.status not in ("pending", "lost")}:
                self._refuse_lost(done)
                self._deserted = None  # somebody was there to do it
                self._standstill.clear()
                return done
            if not self._changed.wait(LOOK):
                self._refuse_deserted()

    def watch(self) -> None:  # noqa: D102
        self._refuse_deserted()

    def stop(self, token: str, futures: Collection[Future]) -> None:
        """Give up tasks that are in flight; returns when no worker that can be reached is at one of them.

        Cancelled tasks are not begun any more, but dask lets those go on that have begun.
        """
        self._at_work(token)  # before any is cancelled: one that begins meanwhile knows at once
        for future in futures:
            future.cancel()
        pause = GLANCE
        while self._at_work(token):
            time.sleep(pause)
            pause = min(2 * pause, LOOK)

    def _at_work(self, token: str) -> bool:
        """Stop tasks on all workers; return whether some are still at work."""
        if self.client.status != "running":
            return False
        try:
            asked = self.client._run  # what `client.run` waits for, without end
            found = self.client.sync(asked, stopping.stop, token, on_error="ignore", callback_timeout=ANSWER)
        except (OSError, RuntimeError, TimeoutError):  # nobody to ask, or a worker that is silent
            return False
        return any(found.values())

    def _refuse_lost(self, futures: Collection[Future]) -> None:
        if any(future.status == "cancelled" for future in futures):
            raise SchedulerLostError(
                f"the dask scheduler at {self.address} has ended, or was restarted",
                hint="the same command again: what is done stays done",
            )

    def _refuse_deserted(self) -> None:
        self._look()
        if self._workers:
            self._deserted = None
            self._standstill.look(self._workers)
            return
        self._deserted = self._deserted or time.monotonic()
        if time.monotonic() - self._deserted > self.patience:
            raise DneuroError(
                f"every worker{self._of_pool} is lost, and for {format_duration(self.patience)} no other has come",
                hint="see the workers' logs; then the same command again: what is done stays done",
            )

    @property
    def _of_pool(self) -> str:
        return "" if self.pool is None else f" of pool {self.pool}"

    def finish(self, collection: Any) -> None:
        """Wait until a persisted collection is there; raises what went wrong with it."""
        from distributed import futures_of

        waiting = futures_of(collection)
        while waiting:
            done = [future for future in waiting if future.status != "pending"]
            self._refuse_lost(done)
            for future in done:
                if future.status == "error":
                    future.result()
            waiting = [future for future in waiting if future.status == "pending"]
            time.sleep(GLANCE if waiting else 0)
            if done:
                self._deserted = None
                self._standstill.clear()
            else:
                self._refuse_deserted()

    def persist(self, array: Any) -> Any:
        """Return a dask array whose chunks are computed and kept by the workers, neighbours by the same one."""
        return persist_evenly(self.client, array, self._slots_by_worker(), self._asks)

    def share(self, thing: Any) -> Any:
        """Return a future of something, which by then the workers hold that were free to fetch it.

        Else all tasks that need it would begin on the one that has it, and the others wait until some are taken away
        from there: seconds, of each pass. Whoever is lost meanwhile, the tasks will find out.
        """
        # A task's result, unlike scattered data, is made again when the worker that holds it is lost.
        shared = self.submit(same, thing)
        addresses = list(self._slots_by_worker())
        if len(addresses) > 1:
            fetching = [
                self.client.submit(fetched, shared, key=f"fetched-{uuid.uuid4()}", workers=address)
                for address in addresses
            ]
            until = time.monotonic() + FETCHING
            while not all(future.done() for future in fetching) and time.monotonic() < until:
                time.sleep(0.002)
        return shared

    def computing(self) -> contextlib.AbstractContextManager[Any]:  # noqa: D102
        there: contextlib.AbstractContextManager[Any] = dask.config.set(scheduler=_PoolClient(self))
        return there


class _PoolClient:
    """What dask takes for a client, by this word in its name, and asks for the workers of one pool."""

    def __init__(self, executor: DaskExecutor) -> None:
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor.client, name)

    def get(self, *args: Any, **settings: Any) -> Any:
        """Compute a graph."""
        return self._executor.client.get(*args, **{**settings, **self._executor._asks})

    def persist(self, *args: Any, **settings: Any) -> Any:
        """Compute collections and keep them."""
        return self._executor.client.persist(*args, **{**settings, **self._executor._asks})


def one_blas_thread(executor: Executor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which each task computes its products on one thread, as on the workers of a cluster.

    More only get in each other's way, and their number shows in the last bits.
    """
    return ONE_BLAS_THREAD if isinstance(executor, ThreadExecutor) else contextlib.nullcontext()


def get_executor(client: Any = None) -> Executor:
    """Return the executor for `client`.

    Parameters
    ----------
    client : distributed.Client, Executor or None
        None takes the dask client that is active in this context, else threads.
    """
    if client is None:
        client = _active_client()
    if client is None:
        return ThreadExecutor()
    if hasattr(client, "slots"):
        return client  # type: ignore[no-any-return]
    return DaskExecutor(client)


def _active_client() -> Any:
    import sys

    if "distributed" not in sys.modules:  # nobody can have made a client
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None
