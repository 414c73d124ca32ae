"""A device without room: said with the numbers and the way out, before it is begun where that can be known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dneuro.errors import DeviceError
from dneuro.nets.convnet import ConvNet
from dneuro.nets.device import check_room, free_bytes, room_on
from dneuro.nets.load import load
from dneuro.nets.running import Runner
from dneuro.quantities import GiB
from dneuro.spec.network import NetworkSpec

CARD = torch.device("cuda")
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 8 GiB"


class Full(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("kind", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_runner__names_device_batch_and_bytes_where_there_is_no_room(kind: type[Exception]) -> None:
    network = load(NetworkSpec(name="dneuro:convnet", weights="none"))
    assert isinstance(network.module, ConvNet)
    network.module.pool2 = Full(kind(SAID))  # type: ignore[assignment]
    with Runner(network, ["relu2"], to_end=False) as runner, pytest.raises(DeviceError) as caught:
        runner.start(np.zeros((12, 28, 28, 1), np.uint8))
    assert caught.value.message == (
        "device cpu has no room for a batch of 12 images: CUDA out of memory. Tried to allocate 2.00 GiB."
    )
    assert str(caught.value.hint).startswith("extract: {batch: 6}, ")


def test_runner__leaves_other_errors_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^sizes differ$"), room_on(CARD, 4):
        raise RuntimeError("sizes differ")


def test_load__names_the_weights_where_there_is_no_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def attach(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError(SAID)

    monkeypatch.setattr("dneuro.nets.load.attach", attach)
    with pytest.raises(DeviceError, match="device cpu has no room for the network's weights: CUDA out of memory"):
        load(NetworkSpec(name="dneuro:convnet", weights="none"))


def test_room__that_is_known_to_lack_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(torch.device("cpu")) is None
    check_room(torch.device("cpu"), 10**15, 16)  # nobody knows
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GiB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GiB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GiB, 8 * GiB))
    assert free_bytes(CARD) == 6 * GiB, "what torch keeps and does not use is free, too"
    check_room(CARD, 6 * GiB, 128)
    said = r"device cuda has 6 GiB free, the network with batches of 128 needs 7 GiB of it"
    with pytest.raises(DeviceError, match=said) as caught:
        check_room(CARD, 7 * GiB, 128)
    assert str(caught.value.hint).startswith("extract: {batch: 64}, ")
