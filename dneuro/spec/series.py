"""A job over several networks, or several checkpoints of one: one store for each, the same images, the same steps."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from dneuro.spec.base import Name, PathText, Spec
from dneuro.spec.images import ImagesSpec
from dneuro.spec.job import AnyStep, JobSpec
from dneuro.spec.network import NetworkSpec
from dneuro.spec.order import check_order
from dneuro.spec.problems import ProblemsError, refusal, repeated
from dneuro.spec.steps import (
    AcrossStep,
    AnalysisStep,
    ConnectionsStep,
    ExtractStep,
    Layers,
    LayerSpec,
    RowsStep,
    SourceStep,
    Step,
    TrainStep,
)


def member_of(path: str) -> str:
    """Return the name that a checkpoint's file gives its member."""
    stem = PurePosixPath(path).stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in stem).strip("-_.") or "member"


def _check_checkpoints(paths: list[str]) -> list[str]:
    if twice := repeated(map(member_of, paths)):
        hint = "networks: {<name>: {…, weights: <file>}, …}"
        raise refusal(f"several files would give the member {twice[0]!r}", hint)
    return paths


class CheckpointsSpec(NetworkSpec):
    """One network with several files of weights."""

    weights: Annotated[  # type: ignore[assignment]
        list[PathText], Field(min_length=1), AfterValidator(_check_checkpoints)
    ]
    """Files of weights, one member of the job each, named after its file."""

    def member(self, weights: str) -> NetworkSpec:
        """Return the network with one of its files."""
        return NetworkSpec(weights=weights, **{name: getattr(self, name) for name in NetworkSpec.model_fields
                                               if name != "weights"})  # fmt: skip


class MemberSpec(NetworkSpec):
    """One network of several."""

    layers: Layers = Field({})
    """Its layers, where they are others than those of the extract step; written as there."""

    @property
    def network(self) -> NetworkSpec:
        """The network alone."""
        return NetworkSpec(**{name: getattr(self, name) for name in NetworkSpec.model_fields})


class SeriesSpec(Spec):
    """A job over several networks or checkpoints: its steps are done for each of these members."""

    name: Name
    """Name of the job; its members' jobs are called <name>-<member>."""
    images: ImagesSpec
    """Which images: the same for all members."""
    network: CheckpointsSpec | None = None
    """The network, with a list of files as `weights`."""
    networks: Annotated[dict[Name, MemberSpec], Field(min_length=1)] | None = None
    """The networks, by the names that they have in the job; either these or `network`."""
    store: PathText
    """Where the stores go: ``runs/training.zarr`` becomes ``runs/training-<member>.zarr``."""
    steps: Annotated[list[AnyStep], Field(min_length=1)]
    """What to do with each member. A step that names layers is asked of the members that have them."""

    @model_validator(mode="after")
    def _check(self) -> SeriesSpec:
        if (self.network is None) == (self.networks is None):
            raise refusal("a job has either `network:` or `networks:`", "leave one of them out")
        if self.network is not None and any(isinstance(step, TrainStep) for step in self.steps):
            raise refusal("checkpoints are weights that were trained already", "leave out the train step", ("steps",))
        try:
            check_order([self._with_all_layers(step) for step in self.steps])
        except ProblemsError as error:
            raise ProblemsError(*(replace(found, at=("steps", *found.at)) for found in error.problems)) from None
        return self

    def _with_all_layers(self, step: Step) -> Step:
        if not isinstance(step, ExtractStep):
            return step
        own = [member.layers for member in (self.networks or {}).values() if member.layers]
        return step.model_copy(update={"layers": functools.reduce(operator.or_, own, step.layers)})

    @property
    def members(self) -> dict[str, JobSpec]:
        """The job of each member, by its name, in the order of the file."""
        found: dict[str, tuple[NetworkSpec, dict[str, LayerSpec]]]
        if self.network is not None:
            found = {member_of(path): (self.network.member(path), {}) for path in self.network.weights}
        else:
            found = {name: (member.network, member.layers) for name, member in (self.networks or {}).items()}
        return {
            name: JobSpec(
                name=f"{self.name}-{name}", images=self.images, network=network,
                store=member_store(self.store, name), steps=_steps_of(self.steps, layers),
            )
            for name, (network, layers) in found.items()
        }  # fmt: skip


def member_store(store: str, member: str) -> str:
    """Return the store of a member: its name before the suffix, or at the end."""
    store = store.rstrip("/")
    stem = store.removesuffix(".zarr")
    return f"{stem}-{member}{store[len(stem) :]}"


AnyJob = JobSpec | SeriesSpec
"""A job about one network, or about several."""


def members_of(job: AnyJob) -> dict[str, JobSpec]:
    """Return the job of each member; of a job about one network itself, with no name."""
    return job.members if isinstance(job, SeriesSpec) else {"": job}


def store_pattern(job: AnyJob) -> str:
    """Return where a job's store goes; with ``*`` for the name of the member, if it has several."""
    return member_store(job.store, "*") if isinstance(job, SeriesSpec) else job.store


def _steps_of(steps: Sequence[Step], layers: dict[str, LayerSpec]) -> list[Step]:
    """Return the steps for a member with these layers: what is asked of layers that it has not is left out."""
    layers = layers or next(step.layers for step in steps if isinstance(step, ExtractStep))
    found: list[Step] = []
    for step in steps:
        if isinstance(step, ExtractStep):
            found.append(step.model_copy(update={"layers": layers}))
            continue
        if isinstance(step, AnalysisStep) and step.layers:
            there = [layer for layer in step.layers if layer in layers]
            if not there:
                continue
            if len(there) < len(step.layers):
                step = step.model_copy(update={"layer": there})
        if isinstance(step, RowsStep) and step.of != "activation" and step.of not in {earlier.id for earlier in found}:
            continue
        if isinstance(step, SourceStep) and step.source is not None and step.source not in layers:
            continue
        earlier = {before.id for before in found}
        lost = isinstance(step, ConnectionsStep) and step.of not in {"channel", *earlier}
        lost |= isinstance(step, AcrossStep) and step.of not in earlier
        if not lost:
            found.append(step)
    return found
