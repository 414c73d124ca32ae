"""An opened profile: its client, and an executor for each pool."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dneuro.engine.executors import DaskExecutor
from dneuro.spec.profile import PoolSpec, ProfileSpec


@dataclass(frozen=True)
class DaskMachines:
    """A scheduler and its workers.

    Parameters
    ----------
    client : distributed.Client
        Of the scheduler, synchronous.
    profile : ProfileSpec
        What was opened. Workers that we start offer the name of their pool as a resource.
    """

    client: Any
    profile: ProfileSpec

    def executor(self, pool: str) -> DaskExecutor:
        """Return where tasks of a pool run.

        Raises
        ------
        UsageError
            If the profile has no such pool, or it has no worker.
        """
        group, patience = self.profile.group(pool), self.profile.timeout(pool)
        spec = self.profile.groups[group]
        if self.profile.backend == "address":
            if spec.names is not None:
                return NamedWorkers(self.client, spec.names, patience=patience, memory=spec.memory)
            return DaskExecutor(self.client, spec.resource, patience=patience, memory=spec.memory)
        return DaskExecutor(self.client, group if len(self.profile.groups) > 1 else None, patience=patience)


class NamedWorkers(DaskExecutor):
    """The workers whose names match a pattern, of a scheduler whose workers offer no resources.

    Parameters
    ----------
    client : distributed.Client
        As of `DaskExecutor`.
    names : str
        Pattern as of a shell, such as ``gpu-*``.
    patience, memory : float, int or None
        As of `DaskExecutor`.
    """

    def __init__(self, client: Any, names: str, *, patience: float, memory: int | None = None) -> None:
        self._names = names
        super().__init__(client, patience=patience, memory=memory)

    def _look(self) -> None:
        super()._look()
        self._workers = [worker for worker in self._workers if fnmatch.fnmatch(str(worker["name"]), self._names)]
        # A task is bound to the workers that there are when it is submitted. Should they all be lost, it may go to any
        # other one: a name cannot be waited for.
        self._asks = {"workers": [worker["name"] for worker in self._workers], "allow_other_workers": True}

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:  # noqa: D102
        self._look()
        return super().submit(function, *args)

    @property
    def _of_pool(self) -> str:
        return f" named {self._names}"


def serves(worker: dict[str, Any], group: str, pool: PoolSpec, backend: str) -> bool:
    """Return whether a worker, as the scheduler describes it, is one of a worker group."""
    resource = pool.resource if backend == "address" else group
    named = pool.names is None or fnmatch.fnmatch(str(worker["name"]), pool.names)
    return named and (resource is None or resource in worker.get("resources", {}))
