"""Every kernel: any split, any merging, NumPy or torch give what NumPy gives on the whole array."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from dneuro.kernels.base import State, state_to_numpy
from dneuro.kernels.products import PairDistances

Array = Any
PAIRS = np.array([[0, 1], [1, 3], [2, 2]], dtype=np.int32)
LABELS = np.random.default_rng(6).choice([-1, 0, 1, 3], 10_000)
VECTORS = np.random.default_rng(5).standard_normal((4, 2))

KERNELS: dict[str, Kernel] = {
    "moments": Moments(),
    "image_moments": ImageMoments(),
    "top": TopK(3),
    "bottom": TopK(5, largest=False),
    "products": CrossProducts(),
    "pairs": PairDistances(PAIRS),
    "class_sums": ClassSums(LABELS, 4),
    "off_diagonal": OffDiagonal(),
    "gram": Energy(Standardise("image")),
    "step": Step(Standardise(None), VECTORS),
    "triangle": Triangle(Standardise(None)),
    "scores": Scores(Standardise("center", mean=np.arange(4.0)), VECTORS),
}


def whole(name: str, table: Array) -> dict[str, Array]:
    """What NumPy finds in all of images × 4 features."""
    x = table.astype(np.float64)

    def of(axis: int) -> dict[str, Array]:
        return {
            "count": np.full(x.shape[1 - axis], x.shape[axis]),
            "mean": x.mean(axis),
            "std": x.std(axis),
            "variance": x.var(axis),
            "min": x.min(axis),
            "max": x.max(axis),
            "fraction_active": (x > 0).mean(axis),
        }

    def top(k: int, sign: int) -> dict[str, Array]:
        order = np.argsort(sign * x, axis=0, kind="stable")[:k]
        return {"value": np.take_along_axis(table, order, 0) + np.float32(0), "image": order}

    def z() -> Array:
        centred = x - x.mean(1, keepdims=True)
        return centred / np.where(np.ptp(x, axis=1) > 0, x.std(1), np.inf)[:, None]

    def by_class() -> dict[str, Array]:
        member = LABELS[: len(x)] == np.arange(4)[:, None]
        counts = np.broadcast_to(member.sum(1)[:, None], (4, 4))
        return {"count": counts, "sum": member @ x, "squares": member @ x**2}

    def off_diagonal() -> dict[str, Array]:
        others = ~np.eye(*x.shape, dtype=bool)
        return {"count": others.sum(0), "sum": (x * others).sum(0), "squares": (x**2 * others).sum(0)}

    images = np.arange(len(x))
    return {
        "off_diagonal": off_diagonal,
        "class_sums": by_class,
        "moments": lambda: of(0),
        "image_moments": lambda: {"image": images, **of(1)},
        "top": lambda: top(3, -1),
        "bottom": lambda: top(5, 1),
        "pairs": lambda: {"squared": ((x[:, PAIRS[:, 0]] - x[:, PAIRS[:, 1]]) ** 2).sum(0)},
        "gram": lambda: {"total": (z() ** 2).sum(), "product": z().T @ z()},
        "step": lambda: {
            "total": (x**2).sum(), "product": x.T @ (x @ VECTORS), "image": images, "score": x @ VECTORS,
        },
        "scores": lambda: {"image": images, "score": (x - np.arange(4.0)) @ VECTORS},
    }[name]()


def states(kernel: Kernel, table: Array, edges: Sequence[int], make: Callable[[Array], Array]) -> list[State]:
    """One state for each run of images between two edges; every other run is fed image by image."""
    found = []
    for number, (a, b) in enumerate(itertools.pairwise(edges)):
        state = kernel.start()
        for start, stop in [(a, b)] if number % 2 else [(i, i + 1) for i in range(a, b)]:
            origin = {"image": np.arange(start, stop), "channel": np.arange(table.shape[1])}
            state = kernel.update(state, (make(table[start:stop]),), origin)
        found.append(state)
    return found


@st.composite
def tables(draw: st.DrawFn) -> tuple[Array, list[int]]:
    """Images × 4 features with ties, constants and duplicates, and where to cut them."""
    images = draw(st.integers(1, 9))
    kinds = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, 1000.25, 6e4])
    flat = draw(st.lists(kinds, min_size=4 * images, max_size=4 * images))
    table = np.array(flat, dtype=draw(st.sampled_from(["f2", "f4"]))).reshape(images, 4)
    if draw(st.booleans()):
        table[:, 1] = table[:, 0]
        table[:, 2] = table[0, 2]
    inner = draw(st.sets(st.integers(1, images), max_size=images))
    return table, sorted({0, images} | inner)


def check(name: str, found: dict[str, Array], table: Array) -> None:
    if name == "triangle":
        r, x = found["triangle"], table.astype(np.float64)
        np.testing.assert_allclose(r.T @ r, x.T @ x, rtol=0, atol=1e-12 * (np.abs(x).max() ** 2 + 1) * len(x))
        assert (np.tril(r, -1) == 0).all()
        return
    if name == "products":
        x, n = table.astype(np.float64), len(table)
        assert found["count"] == n
        z = x - found["shift"]
        np.testing.assert_allclose(found["sum"], z.sum(0), rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(found["products"], z.T @ z, rtol=1e-12, atol=1e-4)  # of numbers up to 1e10
        assert (found["products"] == found["products"].T).all()
        return
    expected = whole(name, table)
    assert set(found) == set(expected)
    for key, values in expected.items():
        exact = key in ("count", "image", "value", "min", "max")
        scale = float(np.abs(values).max(initial=0)) + 1
        np.testing.assert_allclose(found[key], values, rtol=0, atol=0 if exact else 1e-12 * scale, err_msg=key)


@pytest.mark.parametrize("name", KERNELS)
@given(drawn=tables(), as_torch=st.booleans(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_kernel__any_split_and_any_tree_of_merges(
    name: str, drawn: tuple[Array, list[int]], as_torch: bool, data: st.DataObject
) -> None:
    table, edges = drawn
    kernel = KERNELS[name]
    waiting = states(kernel, table, edges, torch.from_numpy if as_torch else np.asarray)
    waiting.insert(data.draw(st.integers(0, len(waiting))), kernel.start())
    while len(waiting) > 1:
        i = data.draw(st.integers(0, len(waiting) - 2))
        waiting[i : i + 2] = [kernel.merge(waiting[i], waiting[i + 1])]
    check(name, kernel.finalise(waiting[0]), table)


@pytest.mark.parametrize("name", KERNELS)
def test_kernel__torch_gives_what_numpy_gives(name: str) -> None:
    table = np.random.default_rng(2).standard_normal((50, 4)).astype(np.float32)
    kernel = KERNELS[name]
    numpy, tensor = (
        kernel.finalise(kernel.merge(*states(kernel, table, [0, 20, 50], make)))
        for make in (np.asarray, torch.from_numpy)
    )
    assert set(numpy) == set(tensor)
    for key, values in numpy.items():
        assert isinstance(tensor[key], np.ndarray)
        assert tensor[key].dtype == values.dtype
        np.testing.assert_allclose(tensor[key], values, rtol=1e-12, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", KERNELS)
def test_merge__leaves_its_arguments_alone(name: str) -> None:
    table = np.random.default_rng(3).standard_normal((20, 4)).astype(np.float32)
    kernel = KERNELS[name]
    a, b = states(kernel, table, [0, 12, 20], np.asarray)
    for state in (a, b):
        for array in state.values():
            np.asarray(array).flags.writeable = False  # as states are that came over a network
    before = {key: np.array(array) for key, array in a.items()}
    first, again = kernel.merge(a, b), kernel.merge(a, b)
    for key in before:
        np.testing.assert_array_equal(a[key], before[key])
        np.testing.assert_array_equal(np.asarray(first[key]), np.asarray(again[key]))


@pytest.mark.parametrize("name", ["moments", "top", "bottom"])
def test_finalise__keeps_the_shape_of_the_features(name: str) -> None:
    block = np.random.default_rng(4).standard_normal((6, 3, 2, 2)).astype(np.float32)
    kernel = KERNELS[name]
    found = kernel.finalise(kernel.update(kernel.start(), (block,), {"image": np.arange(6)}))
    ranks = {"moments": (), "top": (3,), "bottom": (5,)}[name]
    assert {array.shape for array in found.values()} == {(*ranks, 3, 2, 2)}


def test_finalise__products_and_scores_have_flat_features() -> None:
    block = np.random.default_rng(4).standard_normal((6, 2, 2, 1)).astype(np.float32)
    shapes = {}
    for name in ("products", "gram", "step", "scores", "triangle"):
        state = KERNELS[name].update({}, (block,), {"image": np.arange(6)})
        shapes |= {(name, key): array.shape for key, array in KERNELS[name].finalise(state).items()}
    assert shapes == {
        ("products", "count"): (),
        ("products", "shift"): (4,),
        ("products", "sum"): (4,),
        ("products", "products"): (4, 4),
        ("gram", "total"): (),
        ("gram", "product"): (4, 4),
        ("step", "total"): (),
        ("step", "product"): (4, 2),
        ("step", "image"): (6,),
        ("step", "score"): (6, 2),
        ("triangle", "triangle"): (4, 4),
        ("scores", "image"): (6,),
        ("scores", "score"): (6, 2),
    }


def test_state_to_numpy__is_what_a_file_takes(tmp_path: Any) -> None:
    kernel = KERNELS["top"]
    table = np.random.default_rng(7).standard_normal((9, 4)).astype(np.float32)
    a, b = states(kernel, table, [0, 4, 9], torch.from_numpy)
    np.savez(tmp_path / "a.npz", **state_to_numpy(a))
    with np.load(tmp_path / "a.npz") as loaded:
        check("top", kernel.finalise(kernel.merge(dict(loaded), state_to_numpy(b))), table)
