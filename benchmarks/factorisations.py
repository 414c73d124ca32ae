"""Non-negative factorisation: how low in how many seconds; many small ICAs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question, analysis
from benchmarks.setting import Setting

ITERATIONS = 50
"""Of scikit-learn, and of multiplicative updates."""
FEWER = 5
"""Of HALS with ten sweeps, from a start that has been iterated already: 8 reads in all."""
EPOCHS = 20
"""Of scikit-learn's mini batches."""


def hals(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro, ten sweeps per read."""
    return our_nmf(setting, clock, FEWER, "hals")


def hals_as_often(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for as many iterations as the others take."""
    return our_nmf(setting, clock, ITERATIONS, "hals")


def our_nmf(setting: Setting, clock: Clock, iterations: int, update: str) -> Callable[[], Any]:
    """Ask dneuro for so many iterations with a rule."""
    ask = analysis("nmf", setting.lazy(), clock, rank=setting.rank, update=update, max_iter=iterations, tol=0)

    def call() -> Any:
        found = ask()
        return str(setting.path), found["image_weight"].values, found["neuron_weight"].values

    return call


def coordinate_descent(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn with its default solver."""
    return their_nmf(setting, clock, "cd")


def their_nmf(setting: Setting, clock: Clock, solver: str) -> Callable[[], Any]:
    """Ask scikit-learn with a solver."""
    from sklearn.decomposition import NMF

    warnings.simplefilter("ignore")  # that it has not converged is what was asked for

    def call() -> Any:
        x = setting.whole(clock)
        model = NMF(setting.rank, solver=solver, init="nndsvda", max_iter=ITERATIONS, tol=0, random_state=0)
        return str(setting.path), model.fit_transform(x), model.components_

    return call


def mini_batches(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn for its NMF that takes batches."""
    from sklearn.decomposition import MiniBatchNMF

    warnings.simplefilter("ignore")

    def call() -> Any:
        x = setting.whole(clock)
        model = MiniBatchNMF(
            setting.rank, init="nndsvda", max_iter=EPOCHS, tol=0, max_no_improvement=None, random_state=0
        )
        return str(setting.path), model.fit_transform(x), model.components_

    return call


def relative_error(answer: Any) -> float:
    """Return ‖X − FO‖ ÷ ‖X‖, summed in float64: scikit-learn's own sums, in float32, are off by up to a hundredth here.

    What is missed of each entry is not: it is rounded as X itself is, once its factors are.
    """
    import zarr

    path, images, parts = answer
    images, parts = images.astype("f4"), parts.astype("f4")
    x = zarr.open_array(path, mode="r")
    missed = whole = 0.0
    for first in range(0, x.shape[0], x.chunks[0]):
        rows = slice(first, first + x.chunks[0])
        block = np.asarray(x[rows])
        whole += sum_of_squares(block)
        missed += sum_of_squares(block - images[rows] @ parts)
    return float(np.sqrt(missed / whole))


def sum_of_squares(block: Any) -> float:
    """Return the sum of the squares of float32 numbers; of a row at a time in float32."""
    return float(np.sum(np.sum(block * block, axis=1), dtype="f8"))


PROBLEMS, SAMPLES, PIXELS, PARTS = 128, 100, 1_200, 8


def ours_ica(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask dneuro for the components of many neurons' patches."""
    import xarray as xr

    x = xr.DataArray(_patches(), dims=("channel", "sample", "pixel"))
    call = analysis("ica", x, clock, rank=PARTS)
    return lambda: float(call()["converged"].mean())


def their_ica(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Ask scikit-learn, one after the other."""
    from sklearn.decomposition import FastICA

    warnings.simplefilter("ignore")
    patches = _patches().astype("f8")

    def call() -> Any:
        models = (FastICA(PARTS, whiten="unit-variance", whiten_solver="svd", random_state=0) for _ in patches)
        taken = [model.fit(problem).n_iter_ for model, problem in zip(models, patches, strict=True)]
        return float(np.mean(np.asarray(taken) < 200))

    return call


def _patches() -> Any:
    rng = np.random.default_rng(0)
    hidden = rng.laplace(size=(PROBLEMS, SAMPLES, PARTS))
    mixed = hidden @ rng.standard_normal((PROBLEMS, PARTS, PIXELS))
    return (mixed + 0.1 * rng.standard_normal(mixed.shape)).astype("f4")


def above(found: Any, ours: Any) -> float:
    """Return by which share ‖X − FO‖ is above what the first candidate reached; below it is negative."""
    return (float(found) - float(ours)) / float(ours)


def as_found(found: Any, ours: Any) -> float:
    """Return what a candidate found."""
    return float(found)


QUESTIONS = (
    Question(
        f"NMF, rank {{rank}}: error above that of the first, after {ITERATIONS} iterations, and after {FEWER} of HALS",
        (
            Candidate(f"dneuro nmf, hals, {FEWER} iterations", hals, "threads"),
            Candidate(f"dneuro nmf, hals, {FEWER} iterations", hals, "cluster"),
            Candidate(f"dneuro nmf, hals, {ITERATIONS} iterations", hals_as_often, "threads"),
            Candidate(f"scikit-learn NMF, cd, {ITERATIONS} iterations", coordinate_descent, "memory"),
            Candidate(f"scikit-learn MiniBatchNMF, {EPOCHS} epochs", mini_batches, "memory"),
        ),
        error=above,
        digest=relative_error,
    ),
    Question(
        f"ICA of {PROBLEMS} problems, {SAMPLES} samples × {PIXELS:,}, {PARTS} components (share that converged)",
        (
            Candidate("dneuro ica", ours_ica, "threads"),
            Candidate("scikit-learn FastICA, one by one", their_ica, "memory"),
        ),
        error=as_found,
    ),
)
