"""Memory is given out again once nobody refers to it, and never before."""

from __future__ import annotations

import numpy as np
import torch

from dneuro.nets.load import load
from dneuro.nets.rooms import Rooms
from dneuro.nets.running import Runner
from dneuro.spec.network import NetworkSpec


def test_rooms__give_the_same_memory_once_it_is_free() -> None:
    rooms = Rooms(4, pinned=False)
    first = rooms.array((4, 3), torch.float32)
    place = first.ctypes.data
    part = first[1:, 1:]
    del first
    other = rooms.array((4, 3), torch.float32)
    assert other.ctypes.data != place, "a part of it is still in use"
    del part
    fewer = rooms.array((2, 3), torch.float32)
    assert fewer.ctypes.data == place
    assert fewer.shape == (2, 3)
    assert rooms.array((4, 3), torch.uint8).dtype == np.uint8
    assert rooms.array((6, 3), torch.float32).shape == (6, 3), "longer than was said"


def test_runner__does_not_write_over_outputs_that_are_in_use() -> None:
    network = load(NetworkSpec(name="dneuro:convnet", weights="none"))
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), np.uint8)
    with Runner(network, ["relu1"], to_end=False, batch=4) as runner:
        runner.furnish((28, 28, 1), 2, [((10, 12, 12), 2)])
        found = [runner.start(images[i : i + 4]).result()[0]["relu1"] for i in (0, 4, 8)]
        places = {part.ctypes.data for part in found}
        assert len(places) == 3
        del found[1:]
        again = runner.start(images[4:8]).result()[0]["relu1"]
        assert again.ctypes.data in places
    with Runner(network, ["relu1"], to_end=False) as runner:
        whole = runner.start(images).result()[0]["relu1"]
    np.testing.assert_allclose(found[0], whole[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again, whole[4:8], rtol=1e-5, atol=1e-6)
