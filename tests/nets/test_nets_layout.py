from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from dneuro.errors import NetworkError
from dneuro.nets.load import Network, load
from dneuro.nets.taps import tap
from dneuro.spec.network import NetworkSpec, Preprocessing


def small(name: str, **settings: str) -> Network:
    preprocessing = Preprocessing(crop=64)
    return load(NetworkSpec(name=f"torchvision:{name}", weights="none", preprocessing=preprocessing, **settings))  # type: ignore[arg-type]


def is_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_channels_last__changes_rounding_alone(name: str) -> None:
    plain, fast = small(name, memory_format="contiguous"), small(name)
    assert (plain.memory_format, fast.memory_format) == ("contiguous", "channels_last")
    assert fast.weights_sha256 == plain.weights_sha256
    convolutions = [part for part in fast.module.modules() if isinstance(part, nn.Conv2d)]
    assert any(is_channels_last(part.weight) for part in convolutions)
    wanted = [layer for layer, dims in plain.dims.items() if dims is not None]
    images = torch.randn(3, 3, 64, 64)
    with tap(plain.module, wanted, to_end=True) as one, tap(fast.module, wanted, to_end=True) as other:
        (expected, end), (found, fast_end) = one(images), other(images)
    assert end is not None
    assert fast_end is not None
    for layer in wanted:
        assert found[layer].is_contiguous(), layer  # channel by channel, whatever the network works in
        scale = float(expected[layer].abs().max()) + 1e-12
        torch.testing.assert_close(found[layer] / scale, expected[layer] / scale, rtol=0, atol=1e-4)
    torch.testing.assert_close(fast_end, end, rtol=1e-3, atol=1e-5)


def test_channels_last__activations_really_are(tmp_path: Path) -> None:
    network = small("squeezenet1_1")
    seen: list[bool] = []
    for part in network.module.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _part, _args, output: seen.append(is_channels_last(output)))
    network.module(torch.randn(2, 3, 64, 64))
    assert len(seen) == 26
    assert all(seen)


def test_auto__leaves_a_network_without_convolutions_alone(tmp_path: Path) -> None:
    path = tmp_path / "dense.py"
    path.write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))\n")
    spec = NetworkSpec(name=f"python:{path}:make", preprocessing=Preprocessing(resize=(4, 4)))
    assert load(spec).memory_format == "contiguous"


VIEWS = """
    from torch import nn

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4 * 6 * 6, 5)

        def forward(self, x):
            x = self.conv(x)
            return self.fc(x.{how}(len(x), -1))
"""


def test_auto__a_network_that_relies_on_the_order_in_memory_keeps_it(tmp_path: Path) -> None:
    for how, expected in (("view", "contiguous"), ("reshape", "channels_last")):
        path = tmp_path / f"{how}.py"
        path.write_text(textwrap.dedent(VIEWS.replace("{how}", how)))
        spec = NetworkSpec(name=f"python:{path}:Views", preprocessing=Preprocessing(resize=(8, 8)))
        network = load(spec)
        assert network.memory_format == expected
        images = torch.randn(2, 3, 8, 8)
        plain = load(spec.model_copy(update={"memory_format": "contiguous"}))
        torch.testing.assert_close(network.module(images), plain.module(images))
        wanted = spec.model_copy(update={"memory_format": "channels_last"})
        if how == "view":
            with pytest.raises(NetworkError, match=r"Views cannot work channels last: .*view") as caught:
                load(wanted)
            assert caught.value.hint == "network: {memory_format: auto}"
        else:
            assert load(wanted).memory_format == "channels_last"


def test_contiguous__is_torchvisions_own_to_the_last_bit() -> None:
    network = small("resnet18", memory_format="contiguous")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = models.resnet18(weights=None).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.module(images), reference(images))
