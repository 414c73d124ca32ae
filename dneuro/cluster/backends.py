"""What every kind of machine can do, and which one a profile means.

A **backend** starts workers (`open`) and drivers (`start_driver`), says what it would start (`sizes`, `preview`), and
ends what is left of a job whose driver is dead (`clean_up`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from dneuro.cluster.sizes import WorkerSizes
from dneuro.engine.executors import Executor
from dneuro.spec.profile import ProfileSpec

DriverState = Literal["pending", "running", "ending", "gone", "unknown"]
"""Of a driver: it waits to be started, runs, is being ended (and may be started again), is gone, or nobody can tell."""


@dataclass(frozen=True)
class DriverRef:
    """Where a driver was started; kept as ``driver.json`` in the job's folder.

    Parameters
    ----------
    backend : str
        ``"local"``, ``"slurm"``, ``"kubernetes"`` or ``"address"``.
    id : str
        Process id, Slurm job id, name of the Kubernetes Job.
    details : dict
        What tells it from another one of that id: host and start time of the process, namespace, ….
    """

    backend: str
    id: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Self:
        """Return the reference that `to_dict` made `kept` of."""
        return cls(kept["backend"], kept["id"], dict(kept["details"]))

    @classmethod
    def read(cls, kept: Any) -> Self | None:
        """Return the reference that `to_dict` made `kept` of; None if it is damaged, or nothing was kept."""
        try:
            return cls.from_dict(kept)
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def is_anothers(self) -> bool:
        """Whether another user has started it, as far as that was written down."""
        return self.details.get("user") not in (None, this_user())

    def is_same(self, other: DriverRef) -> bool:
        """Return whether another reference, with other details perhaps, is to this driver too."""
        mine, its = (one.details.get("host") for one in (self, other))
        return (self.backend, self.id, mine) == (other.backend, other.id, its)


@dataclass(frozen=True)
class NeededFile:
    """A file or folder that a job reads or writes.

    Parameters
    ----------
    key : str
        Where the job says so, such as ``"images.root"``.
    path : Path
        Absolute, as seen by whoever plans the job.
    written : bool
        It is made or changed, and so is what lies beside it under the same name (``acts.zarr.units``).
    """

    key: str
    path: Path
    written: bool = False


class Folder(Protocol):
    """A job's folder: a `pathlib.Path`, or an object store's prefix that behaves as one."""

    def __str__(self) -> str: ...
    def __truediv__(self, name: str) -> Any: ...


class Machines(Protocol):
    """An opened profile: a scheduler and its workers."""

    @property
    def client(self) -> Any:
        """A plain synchronous ``distributed.Client``."""
        ...

    def executor(self, pool: str) -> Executor:
        """Return where tasks of a pool run: on the workers of that pool and no others."""
        ...


class Backend(Protocol):
    """One way to get machines."""

    def sizes(self, pool: str) -> WorkerSizes:
        """Return what the workers of a pool have; starts nothing."""
        ...

    def check_files(self, files: Iterable[NeededFile]) -> None:
        """Refuse a job whose files the machines would not find, as far as one can tell before they are there.

        Raises
        ------
        UsageError
            Names the first.
        """
        ...

    def open(self, *, folder: Path | None = None, name: str = "dneuro") -> AbstractContextManager[Machines]:
        """Start the workers of all pools; they end with the block.

        Parameters
        ----------
        folder : Path, optional
            The attempt's folder: logs, keys, and in ``machines.jsonl`` the id of everything that is started outside
            this process. The default is a folder of its own below the profile's ``state``.
        name : str
            What it is for; part of the names under which others see it.

        Raises
        ------
        DneuroError
            If a pool has no worker within its ``start_timeout``, or workers have other versions of what computes.
        """
        ...

    def start_driver(self, job_folder: Folder, command: Sequence[str], name: str) -> DriverRef:
        """Start a driver that outlives this process: ``command``, its output in ``job_folder/driver.log``."""
        ...

    def this_driver(self) -> DriverRef:
        """Return the reference to the driver that this process is, as others ask for it."""
        ...

    def driver_state(self, ref: DriverRef) -> DriverState:
        """Return whether a driver waits, runs, is being ended or gone; ``"unknown"`` where nobody can tell."""
        ...

    def why_waiting(self, ref: DriverRef) -> str:
        """Return why a driver waits, in the words of whoever starts it; nothing if it does not, or nobody says."""
        ...

    def stop_driver(self, ref: DriverRef, *, grace: float) -> None:
        """End a driver: politely, and after `grace` seconds for certain."""
        ...

    def clean_up(self, job_folder: Folder) -> list[str]:
        """End every machine of a job that is left, its driver dead or not; return what was ended."""
        ...

    def preview(self, job_folder: Folder, command: Sequence[str], name: str) -> str:
        """Return what `start_driver` and `open` would send: a command line, sbatch scripts or manifests."""
        ...


_WHERE = {
    "local": "dneuro.cluster.local:LocalBackend",
    "slurm": "dneuro.cluster.slurm:SlurmBackend",
    "kubernetes": "dneuro.cluster.kubernetes:KubernetesBackend",
    "address": "dneuro.cluster.address:AddressBackend",
}


def this_user() -> str:
    """Return the name of the user that others take this process for, whatever the environment calls it."""
    import pwd  # which not every system has

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def backend_of(profile: ProfileSpec) -> Backend:
    """Return the backend of a profile; starts nothing."""
    # Each is imported when it is asked for: nobody needs the clients of all clusters.
    module, _, name = _WHERE[profile.backend].partition(":")
    backend: Backend = getattr(importlib.import_module(module), name)(profile)
    return backend
