"""A start that was iterated on the leading directions is as good as many passes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import NMF

import dneuro as dn
from dneuro import events
from dneuro.analysis.nonnegative import compressed
from dneuro.analysis.nonnegative.compressed import STARTS, Problem, begin
from dneuro.analysis.nonnegative.start import parts
from dneuro.engine import ThreadExecutor, stopping
from dneuro.errors import ArrayError
from dneuro.kernels.nmf import hals

EXECUTOR = ThreadExecutor(2)


def activations(images: int = 400, neurons: int = 90, parts: int = 12) -> np.ndarray:
    """Parts that add up, with noise, cut at zero: nothing of low rank."""
    rng = np.random.default_rng(3)
    hidden = rng.gamma(0.5, size=(images, parts)) @ rng.gamma(0.5, size=(parts, neurons))
    return np.maximum(hidden + rng.normal(size=hidden.shape) - 1, 0).astype("f4")


def error(values: np.ndarray, **asked: Any) -> float:
    """What is left of the activations after a factorisation, chunked both ways."""
    x = xr.DataArray(values, dims=("image", "channel")).chunk(asked.pop("chunks", {"image": 64}))
    return float(dn.nmf(x, rank=6, tol=0, client=EXECUTOR, **asked).attrs["reconstruction_error"])


@pytest.mark.parametrize("chunks", [{"image": 64}, {"channel": 16}])
def test_compressed__is_soon_where_scikit_learn_is_after_fifty_iterations(chunks: dict[str, int]) -> None:
    values = activations()
    theirs = NMF(6, solver="cd", init="nndsvda", max_iter=50, tol=0, random_state=0).fit(values).reconstruction_err_
    assert error(values, max_iter=3, chunks=chunks) <= 1.001 * theirs
    assert error(values, max_iter=3, init="nndsvda", chunks=chunks) > 1.001 * theirs, "it is the start that does it"


def test_compressed__takes_a_sample_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    values = activations()
    whole = error(values, max_iter=3)
    monkeypatch.setattr(compressed, "IMAGES", 150)
    assert error(values, max_iter=3) == pytest.approx(whole, rel=5e-3)
    assert error(values, max_iter=1) < error(values, max_iter=3, init="nndsvda")


def test_compressed__is_the_default_of_hals_and_refused_for_what_cannot_leave_zero() -> None:
    values = activations(60, 20)
    x = xr.DataArray(values, dims=("image", "channel"))
    starts = [dn.nmf(x, rank=2, update=update, max_iter=1, client=EXECUTOR).attrs["parameters"]["init"]
              for update in ("hals", "mu")]  # fmt: skip
    assert starts == ["compressed", "nndsvda"]
    with pytest.raises(ArrayError, match="leaves zeros") as caught:
        dn.nmf(x, rank=2, update="mu", init="compressed", client=EXECUTOR)
    assert "nndsvda" in str(caught.value.hint)


def test_iterate__never_ends_above_where_it_began() -> None:
    values = activations(80, 30).astype("f8")
    left, sizes, right = np.linalg.svd(values, full_matrices=False)
    problem = compressed.Problem(left[:, :20] * sizes[:20], right[:20].T, 0.5)
    images, neurons = problem.factors(4, seed=1)
    target = problem.images @ problem.neurons.T
    reached, found = compressed.iterate(problem, (images, neurons))
    assert reached < 0.5 * np.linalg.norm(target - images @ neurons.T) ** 2
    assert (found >= 0).all()


def test_compressed__of_several_arrays_counts_their_weights() -> None:
    values = activations()
    xs = [xr.DataArray(part, dims=("image", "channel")) for part in (values[:, :40], values[:, 40:])]
    asked: dict[str, Any] = {"rank": 6, "tol": 0, "weights": [4.0, 1.0], "client": EXECUTOR}
    soon, late = (dn.coupled_nmf(xs, max_iter=n, init=init, **asked).attrs["reconstruction_error"]
                  for n, init in ((2, "compressed"), (60, "nndsvda")))  # fmt: skip
    assert soon <= 1.003 * late


@pytest.mark.parametrize(("images", "neurons"), [(200, 9000), (9000, 200)])
def test_start__takes_no_more_than_its_plan(images: int, neurons: int, monkeypatch: Any) -> None:
    """Of the process that asks; what the read in its threads holds is there too, which the plan of workers counts."""
    held: list[int] = []

    def spied(*args: Any) -> Any:
        held.append(tracemalloc.get_traced_memory()[1])
        return parts(*args)

    monkeypatch.setattr("dneuro.analysis.nonnegative.compressed.parts", spied)
    values = np.random.default_rng(0).random((images, neurons), dtype="f4")
    x = xr.DataArray(values, dims=("image", "channel"))
    asked: dict[str, Any] = {"rank": 20, "max_iter": 1, "client": ThreadExecutor(1)}
    planned = dn.plan("nmf", x, **asked).driver_bytes
    monkeypatch.setattr("dneuro.analysis.nonnegative.compressed.ITERATIONS", 1)
    tracemalloc.start()
    try:
        dn.nmf(x, **asked)
    finally:
        tracemalloc.stop()
    assert planned / 3 < held[0] < planned


def test_compressed__can_be_stopped_and_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[events.Event] = []
    x = xr.DataArray(activations().astype("f4"), dims=("image", "channel"))
    with events.listening(seen.append):
        dn.nmf(x, rank=4, max_iter=1, tol=0, client=ThreadExecutor(2))
    told = [event for event in seen if event.step == "nmf start"]
    assert [event.kind for event in told] == ["started", *["progress"] * STARTS, "finished"]
    assert [event.done for event in told if event.kind == "progress"] == list(range(1, 1 + STARTS))

    problem = Problem(np.ones((30, 4)), np.ones((20, 4)), 1.0)
    rounds: list[int] = []

    def stopped_in_the_third(*args: Any) -> Any:
        rounds.append(1)
        if len(rounds) == 6:
            stopping.stop("start-token")
        return hals(*args)

    monkeypatch.setattr("dneuro.analysis.nonnegative.compressed.hals", stopped_in_the_third)
    monkeypatch.setattr("dneuro.analysis.nonnegative.compressed.GAIN", -np.inf)
    assert stopping.Stoppable("start-token", begin)(problem, 3, 0) is None
    assert len(rounds) == 6, "two updates a round: of the fourth nothing is done"
