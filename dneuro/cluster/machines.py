"""An opened profile: its client, and an executor for each pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dneuro.engine.executors import DaskExecutor
from dneuro.spec.profile import ProfileSpec


@dataclass(frozen=True)
class DaskMachines:
    """A scheduler and its workers.

    Parameters
    ----------
    client : distributed.Client
        Of the scheduler, synchronous.
    profile : ProfileSpec
        What was opened. Workers offer the name of their pool as a resource where there are several pools.
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
        group = self.profile.group(pool)
        return DaskExecutor(self.client, pool=group if len(self.profile.groups) > 1 else None)
