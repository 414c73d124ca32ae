"""Names of partial states: which states serve which kernel."""

from __future__ import annotations

import numpy as np
import pytest

from dneuro.kernels import ClassSums, CrossProducts, Energy, ImageMoments, Moments, Scores, Standardise, TopK
from dneuro.kernels.base import key_of, serving
from dneuro.kernels.triangle import Triangle


def test_key__tells_kernels_apart() -> None:
    labels = np.array([0, 1, 1])
    kernels = [Moments(), ImageMoments(), CrossProducts(), TopK(5), TopK(6), TopK(5, largest=False),
               Triangle(Standardise("image")), Triangle(Standardise(None)),
               Energy(Standardise("image")), Energy(Standardise(None)),
               ClassSums(labels, 2), ClassSums(labels, 3),
               ClassSums(labels[::-1], 2)]  # fmt: skip
    keys = [key_of(kernel) for kernel in kernels]
    assert len(set(keys)) == len(keys)
    assert key_of(ClassSums(labels.copy(), 2)) == key_of(ClassSums(labels, 2))


def test_key__is_empty_where_an_earlier_pass_is_needed() -> None:
    centred, scores = Standardise("center", np.zeros(3)), Scores(Standardise(None), np.eye(3))
    for kernel in (Energy(centred), Triangle(centred), Energy(Standardise("neuron")), scores):
        assert key_of(kernel) == ""
        assert serving(kernel, ["", "moments"], 10) is None


def test_serving__a_longer_list_serves_a_shorter_one() -> None:
    keys = ["moments", "top-200", "top-50", "bottom-100"]
    assert serving(TopK(40), keys, 1000) == "top-50"
    assert serving(TopK(100), keys, 1000) == "top-200"
    assert serving(TopK(300), keys, 1000) is None
    assert serving(TopK(300), keys, 60) == "top-200", "a list that holds all images is long enough"
    assert serving(TopK(101, largest=False), keys, 1000) is None
    assert serving(Moments(), keys, 1000) == "moments"
    assert serving(CrossProducts(), keys, 1000) is None


@pytest.mark.parametrize("merged", [True, False])
def test_longer_list__gives_the_first_ranks(merged: bool) -> None:
    table = np.random.default_rng(0).integers(0, 9, (60, 7)).astype(np.float32)
    halves = []
    for rows in (slice(0, 30), slice(30, 60)) if merged else (slice(0, 60),):
        origin = {"image": np.arange(60)[rows]}
        halves.append(TopK(20).update({}, (table[rows],), origin))
    state = TopK(4).merge(halves[0], halves[1]) if merged else halves[0]
    wanted = TopK(4).finalise(TopK(4).update({}, (table,), {"image": np.arange(60)}))
    found = TopK(4).finalise(state)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
