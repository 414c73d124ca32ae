"""A question, the candidates that answer it, and how wrong an answer is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks.measure import Clock
from benchmarks.setting import Setting

Answer = Any
Prepare = Callable[[Setting, Clock], Callable[[], Answer]]
"""What a module gives for a candidate: it imports, opens and prepares, and returns the call that is timed."""


def never(setting: Setting) -> str:
    """Return that nothing speaks against trying."""
    return ""


@dataclass(frozen=True)
class Candidate:
    """One way to answer.

    Parameters
    ----------
    name : str
        As the table shows it.
    prepare : callable
        A function of a module (it goes to another process by name): ``prepare(setting, clock)`` returns the call that
        is timed. ``setting.whole(clock)``, inside of it, gets the array into memory.
    where : {"memory", "threads", "cluster"}
        With everything in RAM, on threads of one process, or on the limited workers; for ``"cluster"`` the client
        is already active when `prepare` is called.
    hopeless : callable, optional
        ``hopeless(setting)``: why it is left out of an array of this size, unless all are asked for; empty if it is
        not.
    variables : mapping of str to str
        What its process has in its environment besides.
    """

    name: str
    prepare: Prepare
    where: Literal["memory", "threads", "cluster"]
    hopeless: Callable[[Setting], str] = never
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question; its first candidate is dneuro, and the ratios are dneuro's time over the others'.

    Parameters
    ----------
    name : str
        What is asked; ``{rank}`` and ``{memory}`` are filled in.
    candidates : tuple of Candidate
        dneuro first.
    error : callable, optional
        ``error(answer, reference)``: a number to print.
    reference : callable, optional
        ``reference(setting)``: the truth, made once, outside of all measurements; without it the first
        candidate's answer is what the others are compared with.
    digest : callable, optional
        What is kept of an answer, after the clock has stopped; answers travel between processes.
    large : bool
        Asked also of the array that is larger than all workers together.
    """

    name: str
    candidates: tuple[Candidate, ...]
    error: Callable[[Answer, Answer], float] | None = None
    reference: Callable[[Setting], Answer] | None = None
    digest: Callable[[Answer], Answer] = np.asarray
    large: bool = False


def analysis(name: str, x: Any, clock: Clock, **asked: Any) -> Callable[[], Any]:
    """Return the call of one of dneuro's analyses, and note what its plan says of memory.

    Of threads that is the peak of the one process, of a cluster that of a worker, and in sum of all workers, of the
    process that asks with what it holds, and of its imports. Arrays that lie in memory before count too.
    """
    import dneuro as dn
    from dneuro.engine.executors import PROCESS_BYTES, ThreadExecutor, get_executor

    plan, executor = dn.plan(name, x, **asked), get_executor()
    arrays = x.values() if isinstance(x, Mapping) else [x]
    held = sum(array.nbytes for array in arrays if array.chunks is None)
    if isinstance(executor, ThreadExecutor):
        clock.planned = plan.process_bytes(executor) + held
    else:
        clock.planned_worker = plan.worker_bytes
        processes = executor.slots // executor.slots_per_process
        clock.planned = processes * plan.worker_bytes + plan.driver_bytes + PROCESS_BYTES + held
    return lambda: getattr(dn, name)(x, **asked)


def run(
    clock: Clock, timed: Callable[[Callable[[], Answer]], Answer], setting: Setting, question: Question, which: int
) -> Answer:
    """Run one candidate, in the process made for it."""
    candidate = question.candidates[which]
    place = setting.cluster() if candidate.where == "cluster" else contextlib.nullcontext()
    with place:
        return question.digest(timed(candidate.prepare(setting, clock)))
