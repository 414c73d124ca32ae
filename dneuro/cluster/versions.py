"""The versions of what computes, which must be the same wherever a job runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from typing import Any

from dneuro import events
from dneuro.engine.workers import workers_of
from dneuro.errors import DneuroError
from dneuro.quantities import format_duration

PACKAGES = ("dneuro", "torch", "dask", "distributed", "zarr", "numpy")

BUILDS = ("torch",)
"""Of those, whose local label (``2.14.1+cpu``, ``+cu128``) names what it was built for: the version is the same."""

MISSING = "missing"

PATIENCE = 60.0
"""Seconds within which a worker says which versions it has."""

AT_ONCE = 64
"""Workers that are asked at the same time: each question is a connection to the scheduler."""

POLL = 5.0
"""Seconds between two looks for workers that have joined."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes, here."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = MISSING
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return what is not the same, in words; two builds of one version are the same."""
    return [f"{name} {there.get(name, MISSING)} instead of {version}" for name, version in here.items()
            if _counts(name, there.get(name, MISSING)) != _counts(name, version)]  # fmt: skip


def _counts(name: str, version: str) -> str:
    """Return what counts of a version."""
    return version.partition("+")[0] if name in BUILDS else version


def check_versions(client: Any, workers: Collection[str] | None = None) -> None:
    """Refuse workers that have other versions than this process, or do not say which.

    Parameters
    ----------
    client : distributed.Client
        Of their scheduler, synchronous.
    workers : collection of str, optional
        Their addresses; the default is all there are.

    Raises
    ------
    DneuroError
        Names the first of them and what is not the same.
    """
    here, names = versions(), tuple(versions())

    def probe() -> dict[str, str]:
        # Sent whole: a worker without dneuro could not import it to say that it has none.
        import sys
        from importlib import metadata

        found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        for package in names:
            if package != "python":
                try:
                    found[package] = metadata.version(package)
                except metadata.PackageNotFoundError:
                    found[package] = "missing"
        return found

    asked = sorted(_there(client) if workers is None else workers)
    # What is sent whole kills a Python of another version, so that dask's own question comes first.
    own = _ask(client, client.scheduler.broadcast, asked, msg={"op": "versions"}, on_error="return_pickle")
    pythons = {worker: ".".join(said["host"]["python"].split(".")[:2]) for worker, said in own.items()
               if isinstance(said, dict)}  # fmt: skip
    wrong = {worker: differences({"python": here["python"]}, {"python": python}) for worker, python in pythons.items()}
    same = [worker for worker, found in wrong.items() if not found]
    answers = _ask(client, client._run, same, probe, on_error="return")
    wrong |= {worker: differences(here, said) for worker, said in answers.items() if isinstance(said, dict)}
    there = _there(client)  # one that has left meanwhile owes no answer
    failed = {worker: error for worker, error in answers.items() if isinstance(error, Exception) and worker in there}
    wrong |= {worker: [f"not said which: {type(error).__name__}: {error}"] for worker, error in failed.items()}
    bad = {worker: found for worker, found in sorted(wrong.items()) if found}
    if bad:
        worker, found = next(iter(bad.items()))
        raise DneuroError(
            f"{len(bad)} workers have other versions than this process; {worker} has {', '.join(found)}",
            hint="the same environment on all machines: slurm.setup, the image, or pip install on the workers",
        )
    if silent := [worker for worker in asked if worker in there and not isinstance(answers.get(worker), dict)]:
        raise DneuroError(
            f"{len(silent)} of {len(asked)} workers do not say which versions they have; no answer from "
            f"{', '.join(silent[:3])}{', …' if len(silent) > 3 else ''} within {format_duration(PATIENCE)}",
            hint="such a worker may be busy or stopped: look at its log, end it if it stands still, then try again",
        )


def _there(client: Any) -> set[str]:
    return set(workers_of(client))


def _ask(
    client: Any, question: Callable[..., Any], workers: Collection[str], *args: Any, **settings: Any
) -> dict[str, Any]:
    """Return the answers of workers, each asked on its own; those that are silent for too long are not in it."""

    async def every() -> list[dict[str, Any]]:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(worker: str) -> dict[str, Any]:
            async with turns:
                try:
                    return await asyncio.wait_for(question(*args, workers=[worker], **settings), PATIENCE)
                except TimeoutError:
                    return {}

        return await asyncio.gather(*map(one, workers))

    return {worker: said for answer in client.sync(every) for worker, said in answer.items()}


@contextlib.contextmanager
def watched_for_others(client: Any) -> Iterator[None]:
    """Warn of workers with other versions that join while the block runs: nobody asks those of somebody else's."""
    over, known = threading.Event(), _there(client)

    def look() -> None:
        while not over.wait(POLL):
            try:
                there = _there(client)
                new = there - known
                known.clear()
                known.update(there)
                if new:
                    check_versions(client, new)
            except DneuroError as error:
                events.emit("warning", message=f"joined since the work began: {error.message}")
            except (OSError, RuntimeError, TimeoutError):
                continue  # the scheduler is away, which whoever waits for it says

    # In this context: whoever listens to events here hears what the thread says.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(look,), name="dneuro-versions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=POLL)


def dask_setup(nanny: Any) -> None:
    """Refuse to start a worker beside others of other versions; dask runs this as a preload of the nanny.

    What it must have stands in the settings that it was given, ``dneuro.versions``.
    """
    import dask

    if found := differences(dask.config.get("dneuro.versions", {}), versions()):
        # Anything less than an exit is logged by dask, and the worker started all the same.
        raise SystemExit(f"error: this worker has other versions than its driver: {', '.join(found)}")
