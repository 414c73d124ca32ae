"""`memory` bounds what a kernel really allocates."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from dneuro.kernels import (
    ClassSums,
    CrossProducts,
    Energy,
    ImageMoments,
    Kernel,
    Moments,
    OffDiagonal,
    Scores,
    Standardise,
    Step,
    TopK,
    Triangle,
)
from dneuro.kernels.base import State
from dneuro.kernels.nmf import Alternate, Totals
from dneuro.kernels.paired import PairedProducts, PairedRows
from dneuro.kernels.products import PairDistances

LABELS = np.random.default_rng(2).integers(-1, 10, 900_000)
PAIRS = np.random.default_rng(0).integers(0, 300, (40_000, 2), dtype=np.int32)


def vectors(features: int, columns: int) -> Any:
    return np.random.default_rng(0).standard_normal((features, columns))


CASES: list[tuple[str, Kernel, int, int, str]] = [
    ("moments, tall", Moments(), 300_000, 8, "f4"),
    ("moments, wide", Moments(), 20, 200_000, "f4"),
    ("moments, half", Moments(), 5000, 300, "f2"),
    ("image moments", ImageMoments(), 20_000, 100, "f4"),
    ("top, tall", TopK(100), 100_000, 20, "f4"),
    ("top, wide", TopK(100), 16, 40_000, "f4"),
    ("top, many kept", TopK(2000), 3000, 200, "f2"),
    ("products", CrossProducts(), 3000, 700, "f4"),
    ("products, narrow", CrossProducts(), 200_000, 8, "f2"),
    ("pairs", PairDistances(PAIRS), 3000, 300, "f4"),
    ("class sums, tall", ClassSums(LABELS, 10), 300_000, 8, "f4"),
    ("class sums, in slices", ClassSums(LABELS, 10), 20_000, 1000, "f4"),
    ("class sums, small", ClassSums(LABELS, 10), 64, 500, "f4"),
    ("moments, small", Moments(), 64, 500, "f4"),
    ("top, small", TopK(10), 64, 500, "f4"),
    ("class sums, wide", ClassSums(LABELS, 200), 500, 5000, "f2"),
    ("off the diagonal", OffDiagonal(), 3000, 3000, "f4"),
    ("off the diagonal, wide", OffDiagonal(), 8, 300_000, "f8"),
    ("gram, rows", Energy(Standardise("image")), 3000, 600, "f4"),
    ("gram, wide", Energy(Standardise("image")), 100, 2000, "f4"),
    ("krylov", Step(Standardise("neuron", np.zeros(5000), np.ones(5000)), vectors(5000, 60), True), 1000, 5000, "f4"),
    ("krylov, raw", Step(Standardise(None), vectors(5000, 60)), 1000, 5000, "f8"),
    ("krylov, half", Step(Standardise("image"), vectors(300, 20), True), 20_000, 300, "f2"),
    ("triangle", Triangle(Standardise("image")), 3000, 600, "f4"),
    ("triangle, narrow", Triangle(Standardise("neuron", np.zeros(8), np.ones(8))), 200_000, 8, "f4"),
    ("triangle, wide", Triangle(Standardise(None)), 100, 2000, "f4"),
    ("scores", Scores(Standardise("center", np.zeros(500)), vectors(500, 50)), 20_000, 500, "f4"),
]


FOLDS = np.arange(9000) % 4
PAIRED: list[tuple[str, Kernel, int, int, int]] = [
    ("products, wide", PairedProducts(FOLDS, 4, 900, 700), 3000, 900, 700),
    ("products, of one fold", PairedProducts(0 * FOLDS, 1, 700, 300), 3000, 700, 300),
    ("products, narrow", PairedProducts(FOLDS, 4, 5, 3), 3000, 5, 3),
    ("rows", PairedRows(4 * 1600), 3000, 900, 700),
]


def traced(work: Any) -> tuple[Any, int]:
    """Return a result, and the most that was allocated at a time while it was made."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    result = work()
    return result, tracemalloc.get_traced_memory()[1] - before


def size(state: State) -> int:
    return sum(np.asarray(array).nbytes for array in state.values())


@pytest.mark.parametrize(("kernel", "rows", "features", "dtype"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_memory__bounds_update_and_merge(kernel: Kernel, rows: int, features: int, dtype: str) -> None:
    block = np.random.default_rng(1).standard_normal((rows, features), np.float32).astype(dtype)
    places = np.zeros((rows, features), np.int32)
    blocks = (block, places) if isinstance(kernel, TopK) else (block,)
    tracemalloc.start()
    try:
        a, first = traced(lambda: kernel.update(kernel.start(), blocks, {"image": np.arange(rows)}))
        state, work = kernel.memory(rows, rows, features)
        assert size(a) <= state
        assert first <= state + work
        a, second = traced(lambda: kernel.update(a, blocks, {"image": np.arange(rows, 2 * rows)}))
        assert second <= sum(kernel.memory(2 * rows, rows, features))
        b = kernel.update(kernel.start(), blocks, {"image": np.arange(2 * rows, 3 * rows)})
        merged, third = traced(lambda: kernel.merge(a, b))
    finally:
        tracemalloc.stop()
    state, work = kernel.memory(3 * rows, rows, features)
    assert size(merged) <= state
    assert third <= work
    assert state + work <= 20 * (size(merged) + block.nbytes) + 2**27, "a bound that refuses everything is no use"


def test_memory__bounds_an_update_of_which_every_value_enters() -> None:
    kernel, rows, features = TopK(10), 512, 1000
    block = np.random.default_rng(1).standard_normal((rows, features), np.float32)
    tracemalloc.start()
    try:
        full = kernel.update(kernel.start(), (block,), {"image": np.arange(rows)})
        _, took = traced(lambda: kernel.update(full, (block + 100,), {"image": np.arange(rows, 2 * rows)}))
    finally:
        tracemalloc.stop()
    assert took <= block.nbytes + sum(kernel.memory(2 * rows, rows, features))


@pytest.mark.parametrize(("kernel", "rows", "sources", "targets"), [c[1:] for c in PAIRED], ids=[c[0] for c in PAIRED])
def test_memory__bounds_update_and_merge_of_pairs(kernel: Kernel, rows: int, sources: int, targets: int) -> None:
    blocks = [np.random.default_rng(1).standard_normal((rows, some), np.float32) for some in (sources, targets)]
    origins = [{"image": np.arange(start, start + rows)} for start in (0, rows, 2 * rows)]
    tracemalloc.start()
    try:
        a, first = traced(lambda: kernel.update(kernel.start(), blocks, origins[0]))
        assert size(a) <= kernel.memory(rows, rows, sources)[0]
        assert first <= sum(kernel.memory(rows, rows, sources))
        a, second = traced(lambda: kernel.update(a, blocks, origins[1]))
        assert second <= sum(kernel.memory(2 * rows, rows, sources))
        b = kernel.update(kernel.start(), blocks, origins[2])
        merged, third = traced(lambda: kernel.merge(a, b))
    finally:
        tracemalloc.stop()
    state, work = kernel.memory(3 * rows, rows, sources)
    assert size(merged) <= state
    assert third <= work
    assert work <= 2 * state + 2**27, "a bound that refuses everything is no use"


@pytest.mark.parametrize("images", [300, 70_000])
def test_memory__of_panels_of_neurons_counts_each_position(images: int) -> None:
    """Steps along the array are channels, and a block has a row for each position of them."""
    channels, positions, columns = (8, 400, 20) if images < 1000 else (2, 9, 20)
    rows, rng = channels * positions, np.random.default_rng(1)
    fixed, factor = (rng.random((length, columns), np.float32) for length in (images, rows))
    table = rng.random((rows, images), np.float32).astype("f2")
    kernel = Alternate((fixed,), fixed.T.astype("f8") @ fixed, (1.0,), "hals", positions=positions)
    sizes = (channels, positions * images)
    tracemalloc.start()
    try:
        a, first = traced(lambda: kernel.update(kernel.start(), (table, factor), {"image": np.arange(channels)}))
        merged, second = traced(lambda: kernel.merge(a, a))
        _, third = traced(lambda: Totals(1, positions).update({}, (table, factor), {"image": np.arange(channels)}))
    finally:
        tracemalloc.stop()
    assert size(a) <= kernel.memory(channels, *sizes)[0]
    assert first <= sum(kernel.memory(channels, *sizes))
    state, work = kernel.memory(2 * channels, *sizes)
    assert size(merged) <= state
    assert second <= work
    assert third <= sum(Totals(1, positions).memory(channels, *sizes))
    assert state + work <= 20 * (size(merged) + table.nbytes) + 2**27, "a bound that refuses everything is no use"
