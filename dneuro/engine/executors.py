"""Where tasks run: threads of this process, or the workers of any dask client."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import dask
import psutil
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dneuro.errors import UsageError
from dneuro.quantities import MiB

Future = Any

PROCESS_BYTES = 260 * MiB
"""Memory of a worker process before it does anything (interpreter, numpy, dask, zarr, xarray: 219 MiB
measured, and the allocator's slack)."""


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


class Executor(Sizes, Protocol):
    """What the engine needs of a place to compute."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Start ``function(*args)``; an argument may be a future of this executor, once it is done."""
        ...

    def wait(self, futures: Collection[Future]) -> set[Future]:
        """Return those that are done; waits for at least one."""
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
    """

    def __init__(self, slots: int | None = None, memory: int | None = None) -> None:
        self.slots = slots or len(psutil.Process().cpu_affinity() or [0])
        self.slots_per_process = self.slots
        self.memory = memory or psutil.virtual_memory().available
        self._pool = concurrent.futures.ThreadPoolExecutor(self.slots, thread_name_prefix="dneuro")

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:  # noqa: D102
        ready = [a.result() if isinstance(a, concurrent.futures.Future) else a for a in args]
        return self._pool.submit(function, *ready)

    def wait(self, futures: Collection[Future]) -> set[Future]:  # noqa: D102
        return set(concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED).done)

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
        A synchronous client with at least one worker.
    pool : str, optional
        Run tasks only on the workers that offer this resource (``dask worker --resources "extract=1"``), one task for
        each unit of it that they have. The default is all workers.

    Raises
    ------
    UsageError
        If it is no such client, or has no worker: then nobody can say what fits into one.
    """

    def __init__(self, client: Any, pool: str | None = None) -> None:
        if not hasattr(client, "submit") or getattr(client, "asynchronous", False):
            raise UsageError(
                f"client is a {type(client).__name__}, not a distributed.Client that can be waited for",
                hint="client=distributed.Client(address)",
            )
        self.client = client
        self.pool = pool
        workers = self._workers()
        if not workers:
            of_pool = f" of pool {pool}" if pool else ""
            raise UsageError(
                f"the dask cluster at {client.scheduler.address} has no workers{of_pool} yet",
                hint="client.wait_for_workers(1)",
            )
        self.slots_per_process = max(w["nthreads"] for w in workers)
        limits = [w["memory_limit"] for w in workers if w["memory_limit"]]
        self.memory = min(limits) if limits else psutil.virtual_memory().total

    def _workers(self) -> list[dict[str, Any]]:
        every = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return [worker for worker in every if self.pool is None or worker["resources"].get(self.pool)]

    @property
    def slots(self) -> int:
        """Tasks that can run at the same time, now: workers come and go."""
        if self.pool is None:
            return sum(self.client.nthreads().values()) or 1
        return sum(min(w["nthreads"], int(w["resources"][self.pool])) for w in self._workers()) or 1

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:  # noqa: D102
        # Blocks of an array in memory and the vectors of a kernel are large, and each is sent once.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            return self.client.submit(function, *args, pure=False, resources=self._needs)

    def wait(self, futures: Collection[Future]) -> set[Future]:  # noqa: D102
        from distributed import wait

        return set(wait(list(futures), return_when="FIRST_COMPLETED").done)

    def finish(self, collection: Any) -> None:
        """Wait until a persisted collection is there; raises what went wrong with it."""
        from distributed import futures_of, wait

        futures = futures_of(collection)
        wait(futures)
        for future in futures:
            if future.status == "error":
                future.result()

    def share(self, thing: Any) -> Any:  # noqa: D102
        # A task's result, unlike scattered data, is made again when the worker that holds it is lost.
        return self.submit(_same, thing)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:  # noqa: D102
        needs = dask.annotate(resources=self._needs) if self._needs else contextlib.nullcontext()
        with dask.config.set(scheduler=self.client), needs:
            yield

    @property
    def _needs(self) -> dict[str, int] | None:
        return None if self.pool is None else {self.pool: 1}


def _same(thing: Any) -> Any:
    return thing


def one_blas_thread(executor: Executor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which each task computes its products on one thread, as on the workers of a cluster.

    More only get in each other's way, and their number shows in the last bits.
    """
    return threadpool_limits(1, user_api="blas") if isinstance(executor, ThreadExecutor) else contextlib.nullcontext()


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
