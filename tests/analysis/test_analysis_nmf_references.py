"""Non-negative factorisations against the paper's updates in plain NumPy, and against scikit-learn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import NMF
from small_layers import Array, coupled, labelled, parts, product, small_blocks

import dneuro as dn
from dneuro.engine import ThreadExecutor

EXECUTOR = ThreadExecutor(2)
EPSILON = 1e-12
CUTS = pytest.mark.parametrize("chunks", [(40, 24), (7, 5), (40, 3), (1, 24), None], ids=str)


@pytest.fixture(autouse=True)
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


def started(seed: int, rank: int, images: int, *neurons: int) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(seed)
    return rng.random((images, rank)), [rng.random((count, rank)) for count in neurons]


def papers_updates(xs: list[Array], weights: list[float], rank: int, iterations: int) -> tuple[Array, list[Array]]:
    """F ← F ∗ Σ XO / (Σ F OᵀO + ε), then each O ← O ∗ XᵀF / (O FᵀF + ε)."""
    f, os = started(0, rank, len(xs[0]), *(x.shape[1] for x in xs))
    for _ in range(iterations):
        above = sum(w * x @ o for w, x, o in zip(weights, xs, os, strict=True))
        below = sum(w * f @ (o.T @ o) for w, o in zip(weights, os, strict=True))
        f = f * above / (below + EPSILON)
        os = [o * (x.T @ f) / (o @ (f.T @ f) + EPSILON) for x, o in zip(xs, os, strict=True)]
    return f, os


def plain_hals(x: Array, rank: int, iterations: int, sweeps: int) -> tuple[Array, Array]:
    """Every column to its best given the others, F first."""
    f, (o,) = started(0, rank, *x.shape)

    def sweep(one: Array, other: Array, table: Array) -> None:
        for _, k in itertools.product(range(sweeps), range(rank)):
            rest = table - np.delete(one, k, 1) @ np.delete(other, k, 1).T
            one[:, k] = np.maximum(rest @ other[:, k] / (other[:, k] @ other[:, k]), 0)

    for _ in range(iterations):
        sweep(f, o, x)
        sweep(o, f, x.T)
    return f, o


@CUTS
def test_nmf__mu_is_the_papers(chunks: Any) -> None:
    values = parts()
    found = dn.nmf(labelled(values, chunks), rank=3, update="mu", init="random", max_iter=7, tol=0, client=EXECUTOR)
    f, (o,) = papers_updates([values], [1.0], 3, 7)
    np.testing.assert_allclose(product(found), f @ o.T, rtol=1e-10)
    sizes = np.linalg.norm(f, axis=0) * np.linalg.norm(o, axis=0)
    order = np.argsort(-sizes)
    np.testing.assert_allclose(found["image_weight"], (f / np.linalg.norm(f, axis=0))[:, order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["size"], sizes[order], rtol=1e-10)
    np.testing.assert_allclose(found["loss"][-1], ((values - f @ o.T) ** 2).sum(), rtol=1e-9)
    assert found["loss"].sizes == {"iteration": 7}


@CUTS
def test_nmf__hals_is_column_by_column(chunks: Any) -> None:
    values = parts()
    found = dn.nmf(labelled(values, chunks), rank=3, init="random", sweeps=2, max_iter=5, tol=0, client=EXECUTOR)
    f, o = plain_hals(values, 3, 5, 2)
    np.testing.assert_allclose(product(found), f @ o.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weights", [None, [1.0, 0.25]])
@pytest.mark.parametrize("chunks", [((40, 2), (40, 10)), ((7, 2), (7, 10)), ((7, 1), (5, 3)), ((40, 1), (40, 2))])
def test_coupled__is_the_papers(weights: Any, chunks: Any) -> None:
    pixels, layer = coupled()
    xs = {"pixels": labelled(pixels, chunks[0]), "conv": labelled(layer, chunks[1])}
    tree = dn.coupled_nmf(
        xs, rank=3, weights=weights, update="mu", init="random", max_iter=6, tol=0, client=EXECUTOR
    )
    tables = [pixels.reshape(40, -1), layer]
    f, os = papers_updates(tables, weights or [1.0, 1.0], 3, 6)
    shared = tree.to_dataset()
    for j, (name, o) in enumerate(zip(("pixels", "conv"), os, strict=True)):
        part = shared.drop_vars("loss").merge(tree[name].to_dataset())
        np.testing.assert_allclose(product(part), f @ o.T, rtol=1e-9)
        error = np.linalg.norm(tables[j] - f @ o.T)
        assert tree[name].attrs["reconstruction_error"] == pytest.approx(error, rel=1e-8)
        assert tree[name]["loss"][-1] == pytest.approx(error**2, rel=1e-8)
        assert tree[name].attrs["weight"] == (weights or [1, 1])[j]
    assert tree["pixels/neuron_weight"].dims == ("component", "channel", "y", "x")
    weighted = sum(w * tree[name]["loss"].values for w, name in zip(weights or [1, 1], ("pixels", "conv"), strict=True))
    np.testing.assert_allclose(shared["loss"], weighted, rtol=1e-12)
    assert tree.attrs["reconstruction_error"] == pytest.approx(np.sqrt(weighted[-1]), rel=1e-12)


def test_coupled__is_nmf_of_the_arrays_side_by_side() -> None:
    pixels, layer = coupled()
    side_by_side = np.hstack([pixels.reshape(40, -1), 2 * layer])
    tree = dn.coupled_nmf(
        [labelled(pixels, (9, 2)).rename("a"), labelled(layer, (9, 10)).rename("b")],
        rank=3, weights=[1, 4], max_iter=10, tol=0, client=EXECUTOR,
    )  # fmt: skip
    one = dn.nmf(labelled(side_by_side, (9, 34)), rank=3, max_iter=10, tol=0, client=EXECUTOR)
    np.testing.assert_allclose(tree["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(tree["image_weight"], one["image_weight"], atol=1e-5)
    np.testing.assert_allclose(tree["size"], one["size"], rtol=1e-5)


@pytest.mark.parametrize("solver", ["cd", "mu"])
def test_nmf__is_no_worse_than_scikit_learn(solver: str) -> None:
    values = parts(120, 50)
    theirs = NMF(4, solver=solver, init="nndsvda", max_iter=50, tol=0, random_state=0).fit(values).reconstruction_err_
    ours = dn.nmf(labelled(values, (30, 50)), rank=4, max_iter=50, tol=0, client=EXECUTOR)
    assert ours.attrs["reconstruction_error"] <= theirs * 1.001
    sooner = dn.nmf(labelled(values, (30, 50)), rank=4, max_iter=25, tol=0, client=EXECUTOR)
    assert sooner.attrs["reconstruction_error"] <= theirs * 1.005


def test_nmf__start_is_scikit_learns() -> None:
    """After one multiplicative update of each factor; scikit-learn updates W first too."""
    values = parts(60, 30)
    theirs = NMF(3, solver="mu", init="nndsvda", max_iter=1, tol=0, random_state=0)
    left = theirs.fit_transform(values)
    ours = dn.nmf(labelled(values, (20, 30)), rank=3, update="mu", max_iter=1, tol=0, client=EXECUTOR)
    expected = left @ theirs.components_
    assert np.linalg.norm(product(ours) - expected) <= 0.02 * np.linalg.norm(expected)


def test_nmf__of_rank_1_is_the_first_singular_pair() -> None:
    values = parts(50, 20)
    found = dn.nmf(labelled(values, (9, 20)), rank=1, tol=1e-12, client=EXECUTOR)
    u, s, v = np.linalg.svd(values)
    np.testing.assert_allclose(product(found), s[0] * np.outer(np.abs(u[:, 0]), np.abs(v[0])), atol=1e-5)
    assert found.attrs["converged"]
