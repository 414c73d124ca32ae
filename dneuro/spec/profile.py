"""A profile: where to compute."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dneuro.spec.base import Bytes, OrBlank, PathText, Positive, Seconds, Spec

Pool = Literal["extract", "memory"]


class PoolSpec(Spec):
    """One kind of worker."""

    workers: Positive | None = None
    """Number of worker processes; the default is one per core."""
    threads: Positive = 1
    """Units that one worker works on at the same time."""
    cpus: Positive | None = None
    """Cores per worker for the threads inside torch and BLAS; the default shares the machine's cores out."""
    memory: Bytes | None = None
    """Memory per worker; the default shares 80 % of what the machine has free."""


class ProfileSpec(Spec):
    """The machine that a job runs on."""

    backend: Literal["local"]
    """``local``: worker processes on this machine, reachable over loopback only."""
    state: PathText = ".dneuro"
    """Folder for the states of jobs: attempts, progress, logs."""
    pools: Annotated[dict[Pool, Annotated[PoolSpec, OrBlank()]], OrBlank()] = Field({})
    """Kinds of workers; on one machine ``extract`` and ``memory`` are the same workers."""
    start_timeout: Seconds = 60.0
    """How long to wait for the first worker."""
