"""Singular value decomposition where it is hard: falling spectra, lost ranks, wide arrays."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import MemoryLimitError

METHODS = pytest.mark.parametrize("method", ["tsqr", "gram", "krylov"])
MODES = pytest.mark.parametrize("standardize", ["image", "neuron", "center", None])


def labelled(values: np.ndarray, chunks: Any = 250) -> xr.DataArray:
    lazy = da.from_array(values, chunks=(chunks, *values.shape[1:]))
    return xr.DataArray(lazy, dims=("image", "channel", "y", "x")[: values.ndim])


def falling(images: int, neurons: int) -> tuple[np.ndarray, np.ndarray]:
    """A float32 matrix with singular values 1000/i, and its real ones."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, neurons)))[0] for n in (images, neurons))
    values = ((left * (1000 / np.arange(1, neurons + 1))) @ right.T).astype("f4")
    return values, np.linalg.svd(values.astype("f8"), compute_uv=False)


@METHODS
def test_svd__falling_spectrum_in_float32(method: Any) -> None:
    """Power iteration that is not orthonormalised is wrong by 80 % here, subspace iteration with 5 reads by 0.5 %."""
    values, true = falling(1500, 400)
    found = dn.svd(labelled(values), rank=20, standardize=None, method=method)
    accuracy = 1e-5 if method == "krylov" else 1e-10  # which multiplies float32 in float32
    np.testing.assert_allclose(found["singular_value"], true[:20], rtol=accuracy)
    assert found.attrs["passes"] <= 8
    z = values.astype("f8")
    np.testing.assert_allclose(
        z @ found["vector"].values.T, found["score"] * found["singular_value"], atol=accuracy * true[0]
    )


@MODES
def test_svd__krylov_and_gram_agree(standardize: Any) -> None:
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((900, 8)) @ (rng.standard_normal((8, 60)) / 2.0 ** np.arange(8)[:, None])
    values = np.maximum(factors + 0.1 * rng.standard_normal((900, 60)), 0).astype("f4")
    values[:, 7] = 0
    gram, krylov = (
        dn.svd(labelled(values), rank=5, standardize=standardize, method=method) for method in ("gram", "krylov")
    )
    np.testing.assert_allclose(gram["singular_value"], krylov["singular_value"], rtol=1e-5)
    for name in ("vector", "score"):
        np.testing.assert_allclose(gram[name], krylov[name], atol=5e-3)  # signs too
    np.testing.assert_allclose(gram.attrs["total_variance"], krylov.attrs["total_variance"], rtol=1e-6)
    np.testing.assert_allclose(gram.attrs["reconstruction_error"], krylov.attrs["reconstruction_error"], rtol=1e-5)


def test_svd__center_is_principal_components() -> None:
    values = np.random.default_rng(2).standard_normal((500, 12)) @ np.random.default_rng(3).standard_normal((12, 12))
    found = dn.svd(labelled(values), rank=4, standardize="center")
    pca = PCA(4, svd_solver="full").fit(values)
    np.testing.assert_allclose(found["singular_value"], pca.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(found["explained_variance_ratio"], pca.explained_variance_ratio_, rtol=1e-10)
    overlap = np.abs((found["vector"].values * pca.components_).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-8)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("level", [0.9, 1.3])
def test_svd__residual_bounds_the_error_where_roundings_lean_to_one_side(device: str, level: float) -> None:
    """Rows of two values: in float32 the sum of thousands of like terms is off by more than chance would have it."""
    rng = np.random.default_rng(0)
    common = rng.random(9216) < 0.79
    values = np.where(rng.random((100, 9216)) < 0.02, ~common, common) * np.float32(level)
    x = xr.DataArray(values, dims=("image", "channel")).chunk(image=50)
    z = values.astype("f8")
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    true = np.linalg.svd(z, compute_uv=False)
    with dn.on_device(device):
        found = dn.svd(x, rank=3, method="krylov", persist=False)
    apart = np.abs(true[:, None] - found["singular_value"].values).min(0)
    assert (apart <= found["residual"].values).all()


@METHODS
def test_svd__residual_bounds_the_error_where_it_has_not_converged(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.eigen.MAX_STEPS", 1)
    values = np.random.default_rng(4).standard_normal((800, 300)).astype("f4")
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = dn.svd(labelled(values), rank=5, standardize=None, method=method)
    radius = np.abs(found["singular_value"].values[:, None] - true[None]).min(1)
    assert (radius <= found["residual"].values).all()
    warnings = [event.message for event in seen if event.kind == "warning"]
    if method != "krylov":
        assert found.attrs["converged"]
        assert (found["residual"] <= 1e-8).all()
        assert warnings == []
    else:
        assert not found.attrs["converged"]
        assert (found["residual"] > 1).all(), "it does not claim what it has not"
        assert warnings[0].startswith("not converged after 1 passes: a certificate is ")


@METHODS
@MODES
def test_svd__of_nothing(method: Any, standardize: Any) -> None:
    for values in (np.zeros((300, 20), "f4"), np.full((300, 20), 0.1, "f4"), np.full((300, 20), 0.1)):
        if standardize is None:
            values[:] = 0
        found = dn.svd(labelled(values), rank=3, method=method, standardize=standardize)
        for name in ("singular_value", "explained_variance_ratio", "score"):
            assert (found[name] == 0).all()
        assert found.attrs["converged"]
        assert np.isfinite(found["vector"]).all()
        assert found.attrs["reconstruction_error"] <= 1e-10


@METHODS
@pytest.mark.parametrize(("images", "neurons"), [(400, 50), (30, 500)])
def test_svd__rank_that_is_not_there(method: Any, images: int, neurons: int) -> None:
    rng = np.random.default_rng(5)
    values = (rng.standard_normal((images, 3)) @ rng.standard_normal((3, neurons))).astype("f4").astype("f8")
    left, sizes, right = np.linalg.svd(values, full_matrices=False)
    values = (left[:, :3] * sizes[:3]) @ right[:3]
    found = dn.svd(labelled(values, chunks=20), rank=6, method=method, standardize=None)
    np.testing.assert_allclose(found["singular_value"][:3], sizes[:3], rtol=1e-10)
    assert (found["singular_value"][3:] == 0).all()
    assert (found["score"][:, 3:] == 0).all()
    v = found["vector"].values
    np.testing.assert_allclose(v @ v.T, np.eye(6), atol=1e-10)
    assert found.attrs["converged"]


def made(images: int, sizes: Any) -> np.ndarray:
    """A float64 matrix of 60 neurons with these singular values."""
    rng = np.random.default_rng(8)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(sizes))))[0] for n in (images, 60))
    return (left * np.asarray(sizes)) @ right.T


def test_svd__krylov_ends_where_there_is_nothing_to_add() -> None:
    """A σ that rounding keeps from being certified does not keep it going once the space is exhausted."""
    found = dn.svd(labelled(made(200, [1, 0.5, 3e-7])), rank=3, method="krylov", standardize=None)
    assert found.attrs["converged"]
    assert found.attrs["passes"] <= 4
    np.testing.assert_allclose(found["singular_value"][:2], [1, 0.5], rtol=1e-12)
    np.testing.assert_allclose(found["singular_value"][2], 3e-7, rtol=0.1)


@pytest.mark.parametrize(("unit", "passes"), [(1.0, 1), (1e25, 2)], ids=["rounded", "too large"])
def test_svd__float32_that_proves_too_coarse_in_the_last_pass_has_not_converged(
    unit: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.eigen.MAX_STEPS", 1)
    values = (unit * made(200, [1, 0.5, 1e-5])).astype("f4")
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = dn.svd(labelled(values), rank=3, method="krylov", standardize=None)
    assert not found.attrs["converged"]
    assert found.attrs["passes"] == passes
    warnings = [event.message for event in seen if event.kind == "warning"]
    assert len(warnings) == 1
    assert "no pass was left for float64" in warnings[0]
    radius = np.abs(found["singular_value"].values[:, None] - true[None]).min(1)
    assert (radius <= found["residual"].values).all()


@METHODS
def test_svd__steep_spectrum_keeps_its_vectors_orthonormal(method: Any) -> None:
    sizes = 10.0 ** -(np.arange(40) / 4)
    found = dn.svd(labelled(made(500, sizes)), rank=20, method=method, standardize=None)
    np.testing.assert_allclose(found["singular_value"], sizes[:20], rtol=1e-5)
    for name in ("vector", "score"):
        table = found[name].transpose("component", ...).values
        np.testing.assert_allclose(table @ table.T, np.eye(20), atol=1e-12, err_msg=name)


def test_svd__krylov_of_more_neurons_than_images() -> None:
    """Few images of a wide layer: the neuron × neuron matrix would be out of the question."""
    values = np.random.default_rng(6).standard_normal((40, 3000)).astype("f4")
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)
    found = dn.svd(labelled(values, chunks=16), rank=40, method="krylov", standardize=None)
    assert found.attrs["method"] == "krylov"
    np.testing.assert_allclose(found["singular_value"], true, rtol=1e-6)
    assert found.attrs["passes"] <= 4


def test_svd__krylov_is_the_same_for_the_same_seed() -> None:
    x = labelled(falling(600, 100)[0])
    first, again, other = (dn.svd(x, rank=3, method="krylov", seed=seed) for seed in (0, 0, 1))
    for name in first:
        assert first[name].values.tobytes() == again[name].values.tobytes()
    assert first["vector"].values.tobytes() != other["vector"].values.tobytes()
    np.testing.assert_allclose(first["singular_value"], other["singular_value"], rtol=1e-6)


def test_svd__zhangs_normalisation_is_of_each_image() -> None:
    """‖Z‖² is images × neurons, and a constant added to or a factor on an image changes nothing."""
    rng = np.random.default_rng(7)
    values = np.maximum(rng.standard_normal((80, 6, 2, 2)), 0).astype("f4")
    found = dn.svd(labelled(values, chunks=30), rank=3)
    assert found.attrs["standardize"] == "image"
    assert found.attrs["total_variance"] == pytest.approx(80 * 24, rel=1e-12)
    moved = values * rng.uniform(1, 9, (80, 1, 1, 1)).astype("f4") + rng.uniform(-9, 9, (80, 1, 1, 1)).astype("f4")
    again = dn.svd(labelled(moved, chunks=30), rank=3)
    np.testing.assert_allclose(found["singular_value"], again["singular_value"], rtol=1e-5)
    assert found["vector"].shape == (3, 6, 2, 2)


def test_svd__workers_need_no_scipy() -> None:
    """What a worker unpickles lies in this package, and SciPy would be 30 MiB of its memory."""
    code = "import sys, dneuro.analysis; print('scipy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_svd__reconstruction_error_is_that_of_the_reconstruction() -> None:
    values = falling(300, 40)[0]
    found = dn.svd(labelled(values), rank=5, standardize=None)
    rebuilt = found["score"].values * found["singular_value"].values @ found["vector"].values
    assert found.attrs["reconstruction_error"] == pytest.approx(np.linalg.norm(values - rebuilt), rel=1e-9)
    left = 1 - (found.attrs["reconstruction_error"] ** 2) / found.attrs["total_variance"]
    assert found["explained_variance_ratio"].sum().item() == pytest.approx(left, rel=1e-12)


@pytest.mark.parametrize("chunks", [(50, 30), (200, 10)])
@pytest.mark.parametrize("method", ["gram", "krylov"])
def test_svd__keeps_in_memory_what_fits_and_finds_the_same(counted: Any, method: Any, chunks: Any) -> None:
    values = np.random.default_rng(5).standard_normal((200, 30)).astype("f4")
    x, reads = counted(values, chunks)
    asked: dict[str, Any] = {"rank": 3, "method": method, "standardize": "neuron"}
    roomy = ThreadExecutor(1)
    kept = dn.svd(x, **asked, client=roomy)
    assert set(reads.values()) == {1}
    np.testing.assert_array_equal(kept["score"], dn.svd(x, **asked, persist=False, client=roomy)["score"])
    plans = [dn.plan("svd", x, **asked, persist=keep, client=roomy) for keep in ("auto", False)]
    assert plans[0].worker_bytes - plans[1].worker_bytes == values.nbytes
    tight = ThreadExecutor(1, memory=plans[1].process_bytes(roomy) + values.nbytes // 2)
    assert dn.plan("svd", x, **asked, client=tight) == dn.plan("svd", x, **asked, persist=False, client=tight)
    with pytest.raises(MemoryLimitError, match=r"persist=True needs"):
        dn.svd(x, **asked, persist=True, client=tight)
