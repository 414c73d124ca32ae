"""What an iteration of a coupled factorisation costs beside a read; multiplicative updates, as the papers have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.factorisations import ITERATIONS, above, our_nmf, relative_error, their_nmf
from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question, analysis
from benchmarks.reading import read
from benchmarks.setting import Setting

READS = 10
"""Iterations, and bare reads, of which the cost is compared."""


def multiplicative(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the updates of the paper."""
    return our_nmf(setting, clock, ITERATIONS, "mu")


def scikit_learn_mu(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn for multiplicative updates."""
    return their_nmf(setting, clock, "mu")


def coupled(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro to couple the two halves of the neurons, from a random start: one read of each per iteration."""
    x, half = setting.lazy(), _half(setting)
    xs = {"one": x[:, :half], "other": x[:, half:]} if half else {"one": x}
    call = analysis("coupled_nmf", xs, clock, rank=setting.rank, init="random", max_iter=READS, tol=0)
    return lambda: call().attrs["passes"]


def _half(setting: Setting) -> int:
    """Return a border of chunks near the middle; 0 where there is none."""
    import zarr

    width = int(zarr.open_array(setting.path, mode="r").chunks[1])
    return max(1, setting.neurons // (2 * width)) * width if width < setting.neurons else 0


def reads(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Read the array as often."""
    once = read(setting, clock)
    return lambda: [once() for _ in range(READS)] and READS


QUESTIONS = (
    Question(
        f"coupled NMF, rank {{rank}}: {READS} iterations beside {READS} reads",
        (
            Candidate("dneuro coupled_nmf", coupled, "threads"),
            Candidate("as many bare reads", reads, "threads"),
            Candidate("dneuro coupled_nmf", coupled, "cluster"),
            Candidate("as many bare reads", reads, "cluster"),
        ),
        large=True,
    ),
    Question(
        f"NMF, rank {{rank}}, multiplicative updates, {ITERATIONS} iterations: error above that of the first",
        (
            Candidate("dneuro nmf, mu", multiplicative, "threads"),
            Candidate("scikit-learn NMF, mu", scikit_learn_mu, "memory"),
        ),
        error=above,
        digest=relative_error,
    ),
)
