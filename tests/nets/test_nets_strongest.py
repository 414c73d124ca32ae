"""The maximum per channel taken on the device equals the one that analyses take of what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dneuro.kernels.base import pool
from dneuro.nets.convnet import ConvNet
from dneuro.nets.strongest import strongest
from dneuro.nets.taps import tap

FORMATS = [torch.channels_last, torch.contiguous_format]


def activations(kind: str) -> Tensor:
    numbers = torch.randn(5, 7, 6, 9, generator=torch.Generator().manual_seed(0))
    return {"relu": (numbers - 1).clamp(min=0), "tied": numbers.round(), "negative": -numbers.abs() - 1}[kind]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["relu", "tied", "negative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strongest__is_the_first_maximum(kind: str, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    output = activations(kind).to(dtype)
    found = strongest(output.contiguous(memory_format=memory_format))
    values, positions = pool(output.float().numpy(), "max")
    np.testing.assert_array_equal(found.values.numpy(), values)
    np.testing.assert_array_equal(found.positions.numpy(), positions)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_strongest__does_not_hide_what_is_not_finite(fault: float, memory_format: torch.memory_format) -> None:
    output = activations("relu")
    output[2, 3, 5, 1] = fault
    values = strongest(output.contiguous(memory_format=memory_format)).values
    assert (~torch.isfinite(values)).nonzero().tolist() == [[2, 3]]


def test_strongest__of_one_position_is_the_output() -> None:
    output = torch.randn(3, 4, 1, 1)
    found = strongest(output)
    assert torch.equal(found.values, output[:, :, 0, 0])
    assert not found.positions.any()


def test_tap__gives_the_maxima_of_pooled_layers_and_all_of_the_others() -> None:
    module, images = ConvNet().eval(), torch.rand(4, 1, 28, 28)
    with tap(module, ["relu1", "conv2"]) as whole, tap(module, ["relu1", "conv2"], pooled=["relu1"]) as some:
        expected, found = whole(images)[0], some(images)[0]
    assert torch.equal(found["relu1"].values, expected["relu1"].amax((2, 3)))  # type: ignore[union-attr]
    assert torch.equal(found["conv2"], expected["conv2"])  # type: ignore[arg-type]
