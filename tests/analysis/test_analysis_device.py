"""Every analysis on a device: the answer that NumPy gives, nothing left behind on the processor, within its plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr

import dneuro as dn
from dneuro.analysis import ACROSS, ANALYSES, COUPLED
from dneuro.engine import ThreadExecutor
from dneuro.engine.device import CUDA_BYTES
from dneuro.errors import MemoryLimitError, NonFiniteError
from dneuro.quantities import GiB, MiB

IMAGES, CHANNELS, SIDE = 90, 6, 4
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))
DEVICES = pytest.mark.parametrize("device", ["torch:cpu", "elsewhere", CUDA])


def values(dtype: str = "f4") -> np.ndarray:
    """Activations as after a ReLU, of few directions of very different strength; channel 4 is dead."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((12, CHANNELS, SIDE, SIDE)) * 0.6 ** np.arange(12)[:, None, None, None]
    x = np.tensordot(rng.standard_normal((IMAGES, 12)), loadings, 1) + 0.05 * rng.standard_normal(
        (IMAGES, CHANNELS, SIDE, SIDE)
    )
    x[:, 4] = 0
    return np.maximum(x + 0.2, 0).astype(dtype)


def layer(dtype: str = "f4", chunks: Any = (25, 3, SIDE, SIDE)) -> xr.DataArray:
    return xr.DataArray(
        da.from_array(values(dtype), chunks=chunks), dims=("image", "channel", "y", "x"),
        coords={"label": ("image", np.arange(IMAGES) % 3)}, attrs={"layer": "conv", "class_names": ["a", "b", "c"]},
    )  # fmt: skip


def flat(dtype: str = "f4", chunks: Any = (30, 96)) -> xr.DataArray:
    return xr.DataArray(da.from_array(values(dtype).reshape(IMAGES, -1), chunks=chunks), dims=("image", "channel"))


def patches(dtype: str = "u1") -> xr.DataArray:
    rng = np.random.default_rng(1)
    mixed = np.einsum("csk,ckyxr->csyxr", rng.laplace(size=(3, 60, 2)), rng.standard_normal((3, 2, 5, 5, 3)))
    x = np.clip(128 + 20 * mixed, 0, 255).astype(dtype)
    counts = {"count": ("channel", [60, 40, 0])}
    return xr.DataArray(x, dims=("channel", "sample", "row", "column", "color"), coords=counts).chunk(channel=2)


def likeness() -> dict[str, xr.Dataset]:
    return {"conv": dn.similarity(layer(), metric=["pearson", "euclidean"])}


def facets_of() -> dict[str, xr.Dataset]:
    return {"conv": dn.selectivity(dn.cooccurrence(layer(), k=5)["count"])}


Call = Callable[[], Any]
FIND: dict[str, Any] = {"tol": 1e-10, "max_iter": 1000}
PAIRS = ["pearson", "euclidean", "cosine", "covariance"]
CALLS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "moments": ("moments", layer, {}),
    "moments, mean": ("moments", layer, {"pool": "mean"}),
    "moments, neurons": ("moments", layer, {"per": "neuron"}),
    "moments, images": ("moments", layer, {"per": "image"}),
    "top": ("top_images", layer, {"k": 7}),
    "top, neurons": ("top_images", layer, {"k": 7, "per": "neuron"}),
    "cooccurrence": ("cooccurrence", layer, {"k": 9}),
    "cooccurrence, digits": ("cooccurrence", layer, {"quantile": 0.8}),
    "cooccurrence, digits of half": ("cooccurrence", lambda: layer("f2"), {"quantile": 0.8}),
    "selectivity": ("selectivity", layer, {"chance": 0}),
    "facets": ("facets", facets_of, {"k": 2}),
    "svd, tsqr": ("svd", layer, {"rank": 4, "method": "tsqr"}),
    "svd, gram": ("svd", layer, {"rank": 4, "method": "gram", "standardize": "neuron"}),
    "svd, gram, one": ("svd", layer, {"rank": 1, "method": "gram"}),
    "svd, krylov": ("svd", layer, {"rank": 4, "method": "krylov"}),
    "svd, krylov, centred": ("svd", layer, {"rank": 4, "method": "krylov", "standardize": "center"}),
    "svd, krylov, neurons": ("svd", layer, {"rank": 4, "method": "krylov", "standardize": "neuron"}),
    "svd, krylov in float64": ("svd", lambda: layer("f8"), {"rank": 4, "method": "krylov"}),
    "svd, panels": ("svd", lambda: flat(chunks=(IMAGES, 16)), {"rank": 4, "method": "krylov"}),
    "svd, panels, raw": ("svd", lambda: flat(chunks=(IMAGES, 16)), {"rank": 4, "method": "gram", "standardize": None}),
    "random_projections": ("random_projections", layer, {"directions": 5, "k": 3}),
    "single_neurons": ("single_neurons", layer, {"count": 3, "baseline": 2, "k": 4}),
    "nmf": ("nmf", layer, {"rank": 3, "max_iter": 4, "tol": 0}),
    "nmf, papers": ("nmf", lambda: flat("f8"), {"rank": 3, "update": "mu", "max_iter": 4, "tol": 0}),
    "nmf, panels": ("nmf", lambda: flat(chunks=(IMAGES, 8)), {"rank": 3, "init": "random", "max_iter": 4, "tol": 0}),
    "coupled_nmf": ("coupled_nmf", lambda: {"a": layer(), "b": flat("f2")}, {"rank": 3, "max_iter": 3, "tol": 0}),
    "similarity": ("similarity", layer, {"metric": PAIRS}),
    "similarity, tiles": ("similarity", flat, {"metric": PAIRS, "precision": "float32"}),
    "similarity, tiles in float64": ("similarity", lambda: layer("f2"), {"metric": PAIRS, "per": "neuron",
                                                                         "precision": "float64"}),
    "similarity, neighbours": ("similarity", flat, {"metric": "pearson", "neighbours": 3, "precision": "float32"}),
    "similarity, images": ("similarity", layer, {"metric": PAIRS, "per": "image"}),
    "mean_similarity": ("mean_similarity", likeness, {}),
    "similar_places": ("similar_places", layer, {"neighbours": 2}),
    "clusters": ("clusters", layer, {"count": 3}),
    "kmeans": ("kmeans", layer, {"count": 4}),
    "kmeans, images alike": ("kmeans", lambda: flat("f2"), {"count": 4, "standardize": "image", "per": "neuron"}),
    "regression": ("regression", layer, {"source": flat().isel(channel=slice(0, 8)), "folds": 3}),
    "patch_components": ("patch_components", patches, {"k": 60, "rank": 2, "dtype": "float32", **FIND}),
    "ica": ("ica", lambda: patches("f4"), {"rank": 2, "fun": "cube", **FIND}),
    "ica, many samples": ("ica", lambda: patches().isel(color=1, row=2), {"rank": 2, "fun": "exp", **FIND}),
}  # fmt: skip
WITHOUT = {"connections"}
"""Reads the weights of a network, no activations: nothing of it is on a device."""
ON_THE_PROCESSOR = {"facets"}
"""A table of a few numbers for each neuron."""
EVERY = pytest.mark.parametrize("call", CALLS)


def ask(call: str, client: Any) -> Any:
    name, make, settings = CALLS[call]
    x = make()
    return lambda: getattr(dn, name)(x, client=client, **settings)


@pytest.fixture(autouse=True)
def cut_small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Several blocks of these small arrays, slices of these blocks, and tiles."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 12_000)
    monkeypatch.setattr("dneuro.analysis.nonnegative.reads.BLOCK_BYTES", 16)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 24)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 32)
    if "digits" in request.node.name:
        monkeypatch.setattr(sys.modules["dneuro.analysis.cooccurrence"], "LONGEST", 1)
    if "tiles" in request.node.name or "neighbours" in request.node.name:
        monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)


@pytest.fixture
def run_on(request: pytest.FixtureRequest) -> Callable[[str, Call], tuple[Any, Any]]:
    """Return ``run_on(device, call)``: the answer there, and the device that is none where it was that one."""

    def run(device: str, call: Call) -> tuple[Any, Any]:
        seen = request.getfixturevalue("elsewhere") if device == "elsewhere" else None
        with dn.on_device("cuda" if device == "elsewhere" else device):
            return call(), seen

    return run


EXACT = {"top_value", "bottom_value", "threshold"}
ROUNDED = {"iterations", "grey_iterations", "rgb_iterations", "rgb8"}
"""How many iterations it takes is a matter of the last digit, and bytes may be rounded to either side."""


def trees(answer: Any) -> list[xr.Dataset]:
    return [node.to_dataset() for node in answer.subtree] if isinstance(answer, xr.DataTree) else [answer]


def same(found: Any, expected: Any) -> None:
    """Whole numbers are equal, and so is what top images are made of; sums are as rounding allows."""
    for one, other in zip(trees(found), trees(expected), strict=True):
        assert set(one.variables) == set(other.variables)
        for name in one.variables:
            a, b = one[name].values, other[name].values
            assert isinstance(a, np.ndarray)
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            if str(name) in ROUNDED:
                continue
            if a.dtype.kind == "f" and not (str(name) in EXACT and a.dtype == "f4"):
                size = max(1.0, float(np.nanmax(np.abs(b[np.isfinite(b)]), initial=0)))
                np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * size, err_msg=str(name))
            else:
                np.testing.assert_array_equal(a, b, err_msg=str(name))


def test_analyses__are_all_tried_here() -> None:
    assert {name for name, *_ in CALLS.values()} | WITHOUT == {*ANALYSES, *COUPLED, *ACROSS, "ica"}


@DEVICES
@EVERY
def test_device__gives_what_the_processor_gives(call: str, device: str, run_on: Any, threads: ThreadExecutor) -> None:
    asked = ask(call, threads)
    expected = asked()
    found, seen = run_on(device, asked)
    same(found, expected)
    if seen is not None:
        assert (seen.put_bytes > 0) == (CALLS[call][0] not in ON_THE_PROCESSOR), "blocks are computed there"


@pytest.mark.parametrize("call", ["moments", "moments, images", "top", "selectivity", "kmeans"])
def test_device__gives_back_less_than_it_got(call: str, run_on: Any, threads: ThreadExecutor) -> None:
    """No block comes back to be reduced on the processor after all."""
    _, seen = run_on("elsewhere", ask(call, threads))
    assert 0 < seen.largest < 12_000 / 2


@EVERY
def test_plan__says_what_lies_on_the_device(call: str, elsewhere: Any, threads: ThreadExecutor) -> None:
    one = ThreadExecutor(1)
    name, make, settings = CALLS[call]
    x = make()
    with dn.on_device("cuda"):
        plan = dn.plan(name, x, client=one, **settings)
        getattr(dn, name)(x, client=one, **settings)
    if name in ON_THE_PROCESSOR:
        assert (plan.device_bytes, elsewhere.peak) == (0, 0)
        return
    assert plan.device == "cuda"
    assert 0 < elsewhere.peak <= plan.device_bytes - CUDA_BYTES
    assert str(plan).count("on its cuda") == 1
    assert elsewhere.live == 0, "nothing stays there"


def test_plan__of_the_processor_names_no_device() -> None:
    plan = dn.plan("moments", layer())
    assert (plan.device, plan.device_bytes) == ("", 0)
    with dn.on_device("torch:cpu"):
        there = dn.plan("moments", layer())
    assert (there.device, there.device_bytes) == ("torch:cpu", 0), "it has no memory of its own"
    assert there.worker_bytes > plan.worker_bytes, "torch takes some too"


def test_plan__that_does_not_fit_into_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(block: Any, block_info: Any = None) -> Any:
        assert not block_info, "nothing is read"
        return block

    data = layer().data.map_blocks(read, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    x = layer().copy(data=data)
    monkeypatch.setattr("dneuro.engine.executors.free_bytes", lambda name: 700 * MiB)
    with dn.on_device("cuda"):
        assert dn.plan("moments", x).device_bytes > 600 * MiB
        dn.plan("moments", x, client=_Stand()).check(_Stand(), hint="", driver_hint="")  # nobody knows: no refusal
        monkeypatch.setattr("dneuro.engine.executors.free_bytes", lambda name: 600 * MiB)
        for call in (dn.moments, dn.similarity, lambda x: dn.svd(x, rank=2)):
            with pytest.raises(MemoryLimitError, match=r"of each worker's device 'cuda', 600 MiB of it are free"):
                call(x)


class _Stand:
    """Workers that are planned for: what their device has nobody knows."""

    slots = slots_per_process = 1
    process_bytes, memory, driver_memory = 280 * MiB, 64 * GiB, 64 * GiB


@DEVICES
def test_nonfinite__is_named_on_a_device_too(device: str, run_on: Any, threads: ThreadExecutor) -> None:
    spoilt = values()
    spoilt[60, 2, 1, 3] = np.nan
    x = layer().copy(data=da.from_array(spoilt, chunks=(25, 3, SIDE, SIDE)))
    for asked in (dn.moments, lambda x, client: dn.svd(x, rank=2, client=client), dn.similarity):
        with pytest.raises(NonFiniteError, match=r"conv: image 60, neuron \(2, 1, 3\) is nan"):
            run_on(device, lambda asked=asked: asked(x, client=threads))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@EVERY
def test_cuda__takes_no_more_than_planned(call: str) -> None:
    asked, one = CALLS[call], ThreadExecutor(1)
    x = asked[1]()
    with dn.on_device("cuda"):
        plan = dn.plan(asked[0], x, client=one, **asked[2])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        getattr(dn, asked[0])(x, client=one, **asked[2])
    assert torch.cuda.max_memory_allocated() - before <= max(0, plan.device_bytes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda__rounds_to_tf32_only_where_asked() -> None:
    x = xr.DataArray(np.random.default_rng(0).random((3000, 600), "f4"), dims=("image", "channel"))
    settings: dict[str, Any] = {"metric": "covariance", "precision": "float32"}
    exact = dn.similarity(x.astype("f8"), metric="covariance")["covariance"].values
    error = {}
    for tf32 in (False, True):
        with dn.on_device("cuda", tf32=tf32):
            found = dn.similarity(x, **settings)["covariance"].values
        error[tf32] = float(np.abs(found - exact).max() / np.abs(exact).max())
    assert error[False] < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert error[True] > error[False]
