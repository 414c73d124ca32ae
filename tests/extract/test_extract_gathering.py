"""Statistics of rows that wait for one another are those of rows that come one batch after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dneuro.extract import gathering
from dneuro.extract.gathering import Feeding
from dneuro.kernels.base import Kernel, State
from dneuro.kernels.feeds import Feed
from dneuro.kernels.moments import ImageMoments, Moments
from dneuro.kernels.top import TopK

IMAGES, BATCH = 50, 4
NUMBERS = np.random.default_rng(1).permutation(1000)[:IMAGES]


def results(kernel: Kernel, state: State) -> dict[str, Any]:
    return dict(kernel.finalise(state))


@pytest.mark.parametrize("room", [0, 900, 3_000, 1 << 20])  # none waits; a few feedings; all wait for the end
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_feeding__does_not_depend_on_what_waits(room: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GATHERED", room)
    seen = "f2" if dtype == "float16" else "f4"
    values = np.random.default_rng(0).standard_normal((IMAGES, 7)).astype("f2").astype(seen)
    kernels: list[Kernel] = [ImageMoments(), Moments(), TopK(3), TopK(5, largest=False)]
    feeding = Feeding([Feed("neuron", kernel) for kernel in kernels], (7,), dtype, IMAGES)
    for start in range(0, IMAGES, BATCH):
        some = slice(start, start + BATCH)
        feeding.add({"neuron": (values[some].copy(), None)}, NUMBERS[some].copy())
    states = feeding.states()
    for kernel in kernels:
        expected = results(kernel, kernel.update(kernel.start(), (values,), {"image": NUMBERS}))
        found = results(kernel, states[Feed("neuron", kernel).key])
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-12, err_msg=name)


def test_feeding__keeps_positions_beside_their_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GATHERED", 400)
    rng = np.random.default_rng(2)
    values, places = rng.standard_normal((IMAGES, 5)).astype("f4"), rng.integers(0, 9, (IMAGES, 5)).astype("i4")
    top = TopK(4)
    feeding = Feeding([Feed("max", top)], (5, 3, 3), "float32", IMAGES)
    for start in range(0, IMAGES, BATCH):
        some = slice(start, start + BATCH)
        feeding.add({"max": (values[some], places[some])}, np.arange(IMAGES)[some])
    found = results(top, feeding.states()[Feed("max", top).key])
    best = np.argsort(-values, axis=0, kind="stable")[:4]
    np.testing.assert_array_equal(found["image"], best)
    np.testing.assert_array_equal(found["position"], np.take_along_axis(places, best, axis=0))
