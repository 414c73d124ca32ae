"""What the plan says before anything is read, and that it comes true."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import ThreadExecutor, plan_pass
from dneuro.engine.executors import PROCESS_BYTES
from dneuro.engine.plan import fit
from dneuro.errors import ArrayError, MemoryLimitError, UsageError
from dneuro.kernels import CrossProducts, Moments, Scores, Standardise
from dneuro.quantities import GiB, MiB

RNG = np.random.default_rng(0)


def empty(images: int, neurons: int, rows: int = 1000) -> xr.DataArray:
    lazy = da.zeros((images, neurons), chunks=(rows, neurons), dtype="f4")
    return xr.DataArray(lazy, dims=("image", "channel"))


def labelled(x: xr.DataArray) -> xr.DataArray:
    return x.assign_coords(label=("image", np.arange(x.sizes["image"]) % 3))


EXACT: list[tuple[str, dict[str, Any]]] = [
    ("moments", {}),
    ("moments", {"per": "image"}),
    ("moments", {"per": "neuron"}),
    ("top_images", {"k": 4}),
    ("top_images", {"k": 4, "pool": "mean"}),
    ("cooccurrence", {"k": 4}),
    ("similarity", {"metric": "pearson"}),
    ("similarity", {"metric": ["pearson", "euclidean"]}),  # the array holds a channel twice
    ("svd", {"rank": 2, "persist": False}),
    ("svd", {"rank": 2, "persist": False, "standardize": "neuron"}),
    ("svd", {"rank": 2, "persist": False, "standardize": "center", "method": "gram"}),
]


@pytest.mark.parametrize(("analysis", "parameters"), EXACT)
def test_plan__passes_are_the_reads_that_happen(counted: Any, analysis: str, parameters: dict[str, Any]) -> None:
    values = RNG.standard_normal((60, 5, 2, 2)).astype("f4")
    values[:, 4] = values[:, 1]
    x, reads = counted(values, (25, 5, 2, 2))
    x = labelled(x)
    plan = dn.plan(analysis, x, **parameters)
    assert not reads, "a plan reads nothing"
    getattr(dn, analysis)(x, **parameters)
    assert len(reads) == 3
    assert set(reads.values()) == {plan.passes}
    assert plan.read_bytes == plan.passes * values.nbytes
    assert plan.operation == analysis


def test_plan__similarity_without_look_alikes_reads_once(counted: Any) -> None:
    x, reads = counted(RNG.standard_normal((60, 5)).astype("f4"), (25, 5))
    dn.similarity(x)
    assert set(reads.values()) == {1}


@pytest.mark.parametrize("standardize", ["image", "neuron"])
def test_plan__krylov_passes_are_a_bound(counted: Any, standardize: Any) -> None:
    values = (RNG.standard_normal((90, 40)) * 0.5 ** np.arange(40)).astype("f4")
    x, reads = counted(values, (25, 40))
    plan = dn.plan("svd", x, rank=2, method="krylov", standardize=standardize)
    result = dn.svd(x, rank=2, method="krylov", standardize=standardize, persist=False)
    assert set(reads.values()) == {result.attrs["passes"]}
    assert 2 <= result.attrs["passes"] <= plan.passes


LARGE: list[tuple[str, dict[str, Any]]] = [
    ("moments", {"per": "neuron"}),
    ("moments", {"per": "image"}),
    ("top_images", {"k": 20}),
    ("cooccurrence", {"k": 20}),
    ("similarity", {}),
    ("svd", {"rank": 3, "method": "gram"}),
    ("svd", {"rank": 3, "method": "krylov"}),
]


@pytest.mark.parametrize(("analysis", "parameters"), LARGE)
def test_analysis__that_does_not_fit_is_refused_before_anything_is_read(
    counted: Any, analysis: str, parameters: dict[str, Any]
) -> None:
    values = np.broadcast_to(np.float32(1), (40, 3000))
    x, reads = counted(values, (20, 3000))
    executor = ThreadExecutor(1, memory=PROCESS_BYTES + 1000)
    plan = dn.plan(analysis, labelled(x), client=executor, **parameters)
    with pytest.raises(MemoryLimitError, match=r"needs .* per worker, the limit is 280 MiB; nothing was") as caught:
        getattr(dn, analysis)(labelled(x), client=executor, **parameters)
    assert f"{plan.operation} needs" in caught.value.message
    assert caught.value.hint
    assert not reads


def test_fit__makes_blocks_smaller_where_the_usual_size_does_not_fit() -> None:
    x = empty(100_000, 1000, rows=100)
    sizes = []
    for memory in (2 * GiB, PROCESS_BYTES + 60 * MiB, PROCESS_BYTES + 30 * MiB):
        grid, peak = fit([x], {"moments": Moments()}, ThreadExecutor(1, memory=memory))
        assert peak <= memory
        sizes.append(grid.block_bytes)
    assert sizes[0] > sizes[1] > sizes[2] > 0
    _, peak = fit([empty(100_000, 1000, rows=50_000)], {"moments": Moments()}, ThreadExecutor(1, memory=300 * MiB))
    assert peak > 300 * MiB, "a chunk is the least that can be read"


def test_fit__counts_every_thread_of_a_process() -> None:
    x = empty(100_000, 100)
    one, four = (fit([x], {"m": Moments()}, ThreadExecutor(n, memory=8 * GiB))[1] - PROCESS_BYTES for n in (1, 4))
    assert 3.5 * one < four < 4.5 * one


def test_fit__few_runs_where_states_are_large() -> None:
    executor = ThreadExecutor(2, memory=64 * GiB)
    many, _ = fit([empty(400_000, 100)], {"p": CrossProducts()}, executor)
    few, _ = fit([empty(100_000, 4000)], {"p": CrossProducts()}, executor)
    assert len(few.runs) <= 16
    assert len(many.runs) == 5, "blocks of 32 MiB"


def test_plan__rows_of_images_are_not_held_by_workers_beyond_a_run() -> None:
    """Scores of all images go to the driver run by run; the plan of svd counts them there."""
    kernel, x = Scores(Standardise("image"), np.broadcast_to(0.0, (500, 50))), empty(2_000_000, 500)
    executor = ThreadExecutor(1, memory=64 * GiB)
    scores = kernel.memory(2_000_000, 1, 500)[0]
    assert plan_pass("svd", [x], {"s": kernel}, executor).worker_bytes - PROCESS_BYTES < scores / 2
    assert dn.plan("svd", x, rank=50, client=executor).driver_bytes > 8 * 50 * 2_000_000


def test_plan__says_what_it_knows_in_one_line() -> None:
    plan = dn.plan("svd", empty(50_000, 1000), rank=10, client=ThreadExecutor(2, memory=4 * GiB))
    assert plan.to_dict()["method"] == plan.method == "gram"
    assert plan.passes == 2
    assert plan.result_bytes == 8 * 10 * (50_000 + 1000 + 3)
    assert str(plan).startswith("svd (gram): 2 passes over 191 MiB, ")
    assert "per worker" in str(plan)
    assert str(dn.plan("moments", empty(10, 10))).startswith("moments: 1 pass over 400 B, 1 tasks each; ")


def test_plan__auto_takes_the_gram_matrix_where_it_fits() -> None:
    x = empty(50_000, 1024)
    roomy, tight = (ThreadExecutor(1, memory=memory) for memory in (8 * GiB, PROCESS_BYTES + 70 * MiB))
    assert dn.plan("svd", x, rank=10, client=roomy).method == "gram"
    plan = dn.plan("svd", x, rank=10, client=tight)
    assert plan.method == "krylov"
    assert plan.worker_bytes <= tight.memory
    assert dn.plan("svd", empty(50_000, 1025), rank=10, client=roomy).method == "krylov"
    for method in ("gram", "krylov"):
        assert dn.plan("svd", x, rank=10, method=method, client=tight).method == method, "never another than asked for"


def test_plan__unknown_analysis_or_argument() -> None:
    x = empty(10, 3)
    with pytest.raises(UsageError, match="unknown analysis 'svdd'") as unknown:
        dn.plan("svdd", x)
    assert unknown.value.hint is not None
    assert "'svd'" in unknown.value.hint
    for parameters, said, hint in [({"rang": 2}, "svd: .*rang", "help(dn.svd)"), ({}, "svd takes one of", "rank=16")]:
        with pytest.raises(UsageError, match=said) as wrong:
            dn.plan("svd", x, **parameters)
        assert wrong.value.hint == hint


def test_plan__refuses_what_the_analysis_would_refuse() -> None:
    x = empty(10, 3)
    for analysis, parameters in [
        ("svd", {"rank": 4}),
        ("svd", {"rank": 1, "standardize": "rows"}),
        ("top_images", {"k": 0}),
        ("similarity", {"metric": "manhattan"}),
        ("moments", {"per": "class"}),
        ("moments", {"pool": "sum"}),
    ]:
        with pytest.raises(ArrayError):
            dn.plan(analysis, x, **parameters)
        with pytest.raises(ArrayError):
            getattr(dn, analysis)(x, **parameters)
