"""A profile: where to compute. One kind of machine, its pools of workers, and how they are started."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from dneuro.errors import UsageError, nearest, suggest
from dneuro.spec.base import Memory, Name, OrBlank, Positive, SomeSeconds, Spec, no_bool
from dneuro.spec.problems import Problem, ProblemsError, refusal, shown
from dneuro.spec.sites import (
    FILES_HINT,
    AddressSpec,
    Directive,
    DriverSpec,
    KubernetesSpec,
    SecuritySpec,
    SlurmSpec,
    StateText,
    Text,
)

Backend = Literal["local", "slurm", "kubernetes", "address"]

EXTRACT, MEMORY = "extract", "memory"
"""The pools that every profile has: steps name them, whatever the machine."""

START_TIMEOUT = {"local": 60.0, "slurm": 900.0, "kubernetes": 900.0, "address": 60.0}
"""Seconds to wait for the first worker of a pool where the profile does not say: queues take longer than forks."""


def _check_pool_name(name: str) -> str:
    meant = nearest(name, (EXTRACT, MEMORY), 1)
    if meant and not name.startswith(meant[0]):  # extract-a100 is a name of its own, extrct is not
        raise refusal(f"unknown pool {name!r}", f"did you mean {meant[0]!r}? any other name makes a pool of its own")
    return name


# A plain text in the schema: with a pattern, what may stand below a name would no longer be found by its key.
PoolName = Annotated[Name, AfterValidator(_check_pool_name), WithJsonSchema({"type": "string"})]


def _refuse_flag(value: object) -> object:
    if isinstance(value, bool):
        raise refusal(f"must be text or a number, not {shown(value)}",
                      f'write the text that is meant in quotes: "{shown(value)}"')  # fmt: skip
    return value


Variable = Annotated[str | int | float, BeforeValidator(_refuse_flag)]
"""Value of an environment variable."""


def _check_variables(env: dict[str, str | int | float]) -> dict[str, str | int | float]:
    for name, value in env.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise refusal(f"{shown(name)} is no name of an environment variable", "letters, digits and `_`")
        if "\0" in str(value):
            raise refusal(f"{shown(value)} has a null character in it, which no environment variable can hold",
                          "take it away", (name,))  # fmt: skip
    return env


class PoolSpec(Spec):
    """One kind of worker."""

    workers: Positive | None = None
    """Number of worker processes; the default is one per core (or per GPU) on this machine, else one."""
    threads: Positive = 1
    """Units that one worker works on at the same time."""
    cpus: Positive | None = None
    """Cores per worker; torch and BLAS use them all for one unit, or share them among `threads` units."""
    memory: Memory | None = None
    """Memory per worker; the default, on this machine only, shares 80 % of what it has free."""
    gpus: Annotated[int, Field(ge=0, le=1), no_bool] = 0
    """GPUs per worker, 0 or 1: a process drives one GPU, several GPUs are several workers."""
    env: Annotated[dict[str, Variable], AfterValidator(_check_variables), OrBlank()] = Field({})
    """Environment variables of the workers, set before Python starts."""
    start_timeout: SomeSeconds | None = None
    """How long to wait for the first worker of this pool, on this machine for all of them; the default is the
    profile's."""

    partition: Text | None = None
    """Slurm partition (queue) of this pool."""
    walltime: SomeSeconds | None = None
    """Time limit of one worker; one that reaches it is replaced. The default is the partition's."""
    constraint: Text | None = None
    """Slurm features that a node must have, such as `a100`."""
    gres: Text | None = None
    """Slurm generic resources, such as `nvme:1`; beside `gpus: 1` in place of `gpu:1`, such as `gpu:a100:1`."""
    directives: tuple[Directive, ...] = ()
    """Further options of sbatch, each as on its command line, such as `--exclude=node7`."""

    node_selector: Annotated[dict[str, str], OrBlank()] = Field({})
    """Labels that a Kubernetes node must have."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints of Kubernetes nodes that are tolerated, as in a pod's manifest."""

    resource: Text | None = None
    """At an existing scheduler: this pool is the workers that offer this resource (`dask worker --resources GPU=1`)."""
    names: Text | None = None
    """At an existing scheduler: this pool is the workers whose names match, such as `gpu-*`."""


_KEYS_OF: dict[Backend, tuple[str, ...]] = {
    "slurm": ("partition", "walltime", "constraint", "gres", "directives"),
    "kubernetes": ("node_selector", "tolerations"),
    "address": ("resource", "names"),
}
_SECTIONS: tuple[Backend, ...] = ("slurm", "kubernetes", "address")


class ProfileSpec(Spec):
    """The machine that a job runs on."""

    backend: Backend
    """``local``: this machine, over loopback; ``slurm``; ``kubernetes``; ``address``: a dask scheduler that runs."""
    state: StateText = ".dneuro"
    """Folder for the states of jobs (attempts, progress, logs); on a cluster one that all its machines see."""
    pools: Annotated[dict[PoolName, Annotated[PoolSpec, OrBlank()]], OrBlank()] = Field({})
    """Kinds of workers; ``extract`` and ``memory`` always exist, and one left empty has the workers of the other."""
    start_timeout: SomeSeconds | None = None
    """How long to wait for the first worker of each pool; 1 minute on this machine, 15 minutes in a queue."""
    security: Annotated[SecuritySpec, OrBlank()] = SecuritySpec()
    """Who may reach the scheduler and the workers."""
    driver: Annotated[DriverSpec, OrBlank()] = DriverSpec()
    """The process that runs a submitted job and holds its scheduler."""
    slurm: Annotated[SlurmSpec, OrBlank()] | None = None
    """How this site's Slurm is used."""
    kubernetes: Annotated[KubernetesSpec, OrBlank()] | None = None
    """Where in Kubernetes, and from which image."""
    address: Annotated[AddressSpec, OrBlank()] | None = None
    """The scheduler to use."""

    @property
    def groups(self) -> dict[str, PoolSpec]:
        """The worker groups there are: every pool with settings of its own, else ``extract`` with the defaults."""
        own = {name: pool for name, pool in self.pools.items() if pool != PoolSpec()}
        return own or {EXTRACT: PoolSpec()}

    def group(self, pool: str) -> str:
        """Return the name of the worker group that serves a pool.

        Raises
        ------
        UsageError
            If the profile has no such pool.
        """
        known = list(dict.fromkeys((EXTRACT, MEMORY, *self.pools)))
        if pool not in known:
            raise UsageError(f"the profile has no pool {pool!r}", hint=suggest(pool, known))
        return next(name for name in (pool, EXTRACT, MEMORY, *self.groups) if name in self.groups)

    def timeout(self, pool: str) -> float:
        """Return how many seconds to wait for the first worker of a pool."""
        own = self.groups[self.group(pool)].start_timeout
        every = START_TIMEOUT[self.backend] if self.start_timeout is None else self.start_timeout
        return every if own is None else own

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problems := [*self._out_of_place(), *self._missing()]:
            raise ProblemsError(*problems)
        return self

    def _out_of_place(self) -> Iterator[Problem]:
        for section in _SECTIONS:
            if section != self.backend and getattr(self, section) is not None:
                yield Problem(f"is for `backend: {section}`, this is `backend: {self.backend}`",
                              f"take it away, or write `backend: {section}`", (section,))  # fmt: skip
        if self.backend == "local" and self.security.bind is not None:
            yield Problem("workers of this machine listen on loopback only", "take it away", ("security", "bind"))
        blank = PoolSpec()
        for name, pool in self.pools.items():
            for backend, keys in _KEYS_OF.items():
                for key in keys if backend != self.backend else ():
                    if getattr(pool, key) == getattr(blank, key):
                        continue
                    yield Problem(f"is for `backend: {backend}`, this is `backend: {self.backend}`", "take it away",
                                  ("pools", name, key))  # fmt: skip

    def _missing(self) -> Iterator[Problem]:
        if self.backend in ("slurm", "kubernetes"):
            if not any(pool != PoolSpec() for pool in self.pools.values()):
                yield Problem("there must be a pool with its size", "pools: {extract: {workers: 2, memory: 8GiB}}",
                              ("pools",))  # fmt: skip
            for name, pool in self.groups.items() if self.pools else ():
                if pool.memory is None and pool != PoolSpec():
                    yield Problem("missing: how much memory each of its workers is given", "add `memory: 8GiB`",
                                  ("pools", name, "memory"))  # fmt: skip
        if self.backend == "address" and self.address is None:
            hint = "address: {scheduler: tls://host:8786, ca: …, cert: …, key: …}"
            yield Problem("missing: the scheduler to use", hint, ("address",))
        if self.backend == "address" and self.address is not None and (missing := self.address.missing):
            yield Problem(f"{self.address.scheduler} needs {', '.join(missing)}", FILES_HINT, ("address",))
        if self.backend == "kubernetes" and (self.kubernetes is None or self.kubernetes.image is None):
            yield Problem("missing: the image that all pods run", "kubernetes: {image: registry/dneuro@sha256:…}",
                          ("kubernetes",))  # fmt: skip


