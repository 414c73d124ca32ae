"""Digits, counts above thresholds, chosen images, nearest centres: any split, NumPy or torch, within their memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.kernels import Kernel, Moments, Standardise
from dneuro.kernels.nearest import Gather, Lloyd, Nearest
from dneuro.kernels.quantile import DIGIT, CountAbove, Digits, bits_of, values_of
from dneuro.kernels.standardise import Standardised

RNG = np.random.default_rng(0)
TABLE = RNG.choice(np.array([-2.5, -0.0, 0.0, 1.0, 1.0 + 2**-10, 3e4], "f4"), (40, 3))
LABELS = np.arange(40) % 4 - 1
THRESHOLDS = np.array([0.0, 1.0, -3.0], "f4")
CENTRES = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [3e4, 0.0, 0.0]])


def key_of(values: np.ndarray) -> np.ndarray:
    """The order of float32 values in 32 bits, worked out by sorting all that occur."""
    bits = (values + np.float32(0)).astype("f4").view("u4").astype("i8")
    return np.where(bits >> 31, 0xFFFFFFFF - bits, bits + 2**31)


def digits(table: np.ndarray, found: np.ndarray, below: int) -> np.ndarray:
    keys = key_of(table)
    counts = np.zeros((256, table.shape[1]), int)
    for column, mine in enumerate(keys.T):
        mine = mine[mine >> (below + DIGIT) == found[column]]
        counts[:, column] = np.bincount((mine >> below) & 255, minlength=256)
    return counts


def above(table: np.ndarray) -> np.ndarray:
    return np.stack([(table[LABELS[: len(table)] == c] > THRESHOLDS).sum(0) for c in range(3)])


def standardised(table: np.ndarray) -> np.ndarray:
    z = table.astype("f8") - table.mean(1, keepdims=True, dtype="f8")
    return z / np.where(np.ptp(table, axis=1) > 0, z.std(1), np.inf)[:, None]


def of_nearest(z: np.ndarray, by: float = 1.0) -> dict[str, np.ndarray]:
    nearest = np.linalg.norm(z[:, None] - CENTRES / by, axis=2).argmin(1)
    member = nearest == np.arange(len(CENTRES))[:, None]
    return {"count": member.sum(1), "sum": member @ z}


FOUND = (key_of(TABLE)[0] >> 24).astype("i8")
CASES: dict[str, tuple[Kernel, Callable[[], dict[str, np.ndarray]]]] = {
    "first digit": (Digits(np.zeros(3, "i8"), 24), lambda: {"count": digits(TABLE, np.zeros(3, "i8"), 24)}),
    "second digit": (Digits(FOUND, 16), lambda: {"count": digits(TABLE, FOUND, 16)}),
    "above": (CountAbove(THRESHOLDS, LABELS, 3), lambda: {"count": above(TABLE)}),
    "gather": (
        Gather(Standardise("image"), np.array([3, 8, 30])),
        lambda: {"image": np.array([3, 8, 30]), "z": standardised(TABLE)[[3, 8, 30]]},
    ),
    "nearest": (
        Nearest(Standardise(None), CENTRES),
        lambda: {
            "image": np.arange(40),
            "nearest": np.linalg.norm(TABLE[:, None].astype("f8") - CENTRES, axis=2).argmin(1),
            "squared": (np.linalg.norm(TABLE[:, None].astype("f8") - CENTRES, axis=2) ** 2).min(1),
        },
    ),
    "lloyd": (Lloyd(Standardise(None), CENTRES), lambda: of_nearest(TABLE.astype("f8"))),
    "lloyd of z": (Lloyd(Standardise("image"), CENTRES / 9), lambda: of_nearest(standardised(TABLE), 9)),
    "moments of z": (
        Standardised(Moments(), Standardise("image")),
        lambda: {"mean": standardised(TABLE).mean(0), "variance": standardised(TABLE).var(0)},
    ),
}


def states(kernel: Kernel, edges: list[int], make: Callable[[Any], Any]) -> list[Any]:
    return [
        kernel.update(
            kernel.start(), (make(TABLE[a:b]),), {"image": np.arange(a, b), "channel": np.arange(TABLE.shape[1])}
        )
        for a, b in itertools.pairwise(edges)
    ]


@pytest.mark.parametrize("name", CASES)
@given(inner=st.sets(st.integers(1, 39), max_size=5), as_torch=st.booleans(), items=st.sampled_from([2, 30, 1 << 20]))
@settings(max_examples=30, deadline=None)
def test_kernel__any_split_as_numpy(name: str, inner: set[int], as_torch: bool, items: int) -> None:
    kernel, expected = CASES[name]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("base", "quantile", "nearest", "standardise"):
            patch.setattr(f"dneuro.kernels.{module}.SLICE_ITEMS", items)
        some = states(kernel, sorted({0, 40} | inner), torch.from_numpy if as_torch else np.asarray)
        merged = kernel.start()
        for state in reversed(some):
            merged = kernel.merge(state, merged)
    found = kernel.finalise(merged)
    for key, values in expected().items():
        assert isinstance(found[key], np.ndarray)
        np.testing.assert_allclose(found[key], values, rtol=1e-9, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_values__come_back_from_their_order(dtype: str) -> None:
    values = np.sort(RNG.choice(np.array([-6e4, -6e-8, 0.0, 6e-8, 0.1, 1.0, 6e4]), 30)).astype(dtype)
    bits = bits_of(values)
    found = np.zeros(30, "i8")
    for below in range(bits - DIGIT, -1, -DIGIT):
        kernel = Digits(found, below)
        state = kernel.update({}, (values[None],), {"image": np.arange(1), "channel": np.arange(30)})
        count = kernel.finalise(state)["count"]
        assert (count.sum(0) == 1).all()
        found = (found << DIGIT) | count.argmax(0)
    assert (np.diff(found)[np.diff(values) > 0] > 0).all()
    np.testing.assert_array_equal(values_of(found, bits), values.astype("f4"))


@pytest.mark.parametrize("name", CASES)
def test_merge__leaves_its_arguments_alone(name: str) -> None:
    kernel, _ = CASES[name]
    a, b = states(kernel, [0, 25, 40], np.asarray)
    for state in (a, b):
        for array in state.values():
            array.flags.writeable = False
    first, again = kernel.merge(a, b), kernel.merge(a, b)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])


SIZES: list[tuple[str, Callable[[int, int], Kernel], int, int, str]] = [
    ("digits, tall", lambda n, p: Digits(np.zeros(p, "i8"), 24), 200_000, 8, "f4"),
    ("digits, wide", lambda n, p: Digits(np.zeros(p, "i8"), 8), 20, 60_000, "f2"),
    ("above, tall", lambda n, p: CountAbove(np.zeros(p, "f4"), np.zeros(3 * n, "i8"), 5), 300_000, 8, "f4"),
    ("above, wide", lambda n, p: CountAbove(np.zeros(p, "f4"), np.zeros(3 * n, "i8"), 1000), 50, 20_000, "f4"),
    ("gather", lambda n, p: Gather(Standardise("image"), np.arange(0, 3 * n, 7)), 3000, 700, "f4"),
    ("nearest", lambda n, p: Nearest(Standardise("image"), RNG.random((40, p))), 20_000, 300, "f4"),
    ("nearest, wide", lambda n, p: Nearest(Standardise(None), RNG.random((40, p))), 30, 50_000, "f2"),
    ("lloyd", lambda n, p: Lloyd(Standardise("image"), RNG.random((40, p))), 20_000, 300, "f4"),
    ("lloyd, wide", lambda n, p: Lloyd(Standardise(None), RNG.random((40, p))), 30, 50_000, "f2"),
    ("moments of z", lambda n, p: Standardised(Moments(), Standardise("image")), 2000, 3000, "f4"),
    ("moments of wide z", lambda n, p: Standardised(Moments(), Standardise("image")), 10, 200_000, "f4"),
]


@pytest.mark.parametrize(("make", "rows", "features", "dtype"), [c[1:] for c in SIZES], ids=[c[0] for c in SIZES])
def test_memory__bounds_update_and_merge(
    make: Callable[[int, int], Kernel], rows: int, features: int, dtype: str
) -> None:
    kernel = make(rows, features)
    block = np.random.default_rng(1).standard_normal((rows, features), np.float32).astype(dtype)

    def update(state: Any, start: int) -> Any:
        return kernel.update(state, (block,), {"image": np.arange(start, start + rows), "c": np.arange(features)})

    def traced(work: Callable[[], Any]) -> tuple[Any, int]:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        return work(), tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        a, first = traced(lambda: update(kernel.start(), 0))
        state, work = kernel.memory(rows, rows, features)
        assert sum(np.asarray(array).nbytes for array in a.values()) <= state
        assert first <= state + work
        a, second = traced(lambda: update(a, rows))
        assert second <= sum(kernel.memory(2 * rows, rows, features))
        b = update(kernel.start(), 2 * rows)
        merged, third = traced(lambda: kernel.merge(a, b))
    finally:
        tracemalloc.stop()
    state, work = kernel.memory(3 * rows, rows, features)
    assert sum(np.asarray(array).nbytes for array in merged.values()) <= state
    assert third <= work
