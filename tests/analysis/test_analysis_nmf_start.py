"""A start that was iterated on the leading directions is as good as many passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import NMF

import dneuro as dn
from dneuro.analysis.nonnegative import compressed
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError

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
