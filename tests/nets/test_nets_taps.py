from __future__ import annotations

import doctest
import threading

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from dneuro.errors import NetworkError
from dneuro.nets import taps
from dneuro.nets.convnet import ConvNet
from dneuro.nets.taps import tap


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    return models.alexnet(weights=None).eval()


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_tap__keeps_the_negatives_that_an_inplace_relu_overwrites(alexnet: nn.Module) -> None:
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        reference = alexnet.features[0](images)
    assert alexnet.features[1].inplace
    with tap(alexnet, ["features.0", "features.1"]) as tapped:
        outputs, last = tapped(images)
    assert (outputs["features.0"] < 0).any()
    assert torch.equal(outputs["features.0"], reference)
    assert torch.equal(outputs["features.1"], reference.clamp(min=0))
    assert last is None


@pytest.mark.parametrize("to_end", [False, True])
def test_tap__equals_torchvisions_feature_extraction(to_end: bool) -> None:
    module = models.resnet18(weights=None).eval()
    names = ["layer2.0.relu_1", "maxpool", "layer1.0.relu", "avgpool", "layer1.0.relu_1", "fc"]
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        reference = create_feature_extractor(module, names)(images)
        with tap(module, names, to_end=to_end) as tapped:
            outputs, last = tapped(images)
        assert list(outputs) == names
        for name in names:
            assert torch.equal(outputs[name], reference[name]), name
        assert (last is not None) == to_end
        if last is not None:
            assert torch.equal(last, module(images))


def test_tap__stops_after_the_last_wanted_layer(alexnet: nn.Module) -> None:
    ran: list[str] = []
    watched = {"features.1", "features.3", "classifier.1"}
    handles = [
        part.register_forward_hook(lambda *_args, name=name: ran.append(name))
        for name, part in alexnet.named_modules()
        if name in watched
    ]
    images = torch.zeros(1, 3, 224, 224)
    with tap(alexnet, ["features.2", "features.0"]) as tapped:
        tapped(images)
    assert ran == ["features.1"]
    ran.clear()
    with tap(alexnet, ["features.2", "features.0"], to_end=True) as tapped:
        _, last = tapped(images)
    assert ran == ["features.1", "features.3", "classifier.1"]
    assert last is not None
    assert last.shape == (1, 1000)
    for handle in handles:
        handle.remove()


def test_tap__takes_its_hooks_off() -> None:
    module = ConvNet().eval()
    tapped = tap(module, ["conv1", "fc"])
    assert hooks(module) == 2
    tapped(torch.zeros(1, 1, 28, 28))
    assert hooks(module) == 2
    tapped.close()
    tapped.close()
    assert hooks(module) == 0
    with pytest.raises(NetworkError, match="this tap is closed"):
        tapped(torch.zeros(1, 1, 28, 28))
    with pytest.raises(RuntimeError, match="boom"), tap(module, ["conv1"]):
        raise RuntimeError("boom")
    assert hooks(module) == 0


def test_tap__a_forward_pass_of_somebody_else_goes_on() -> None:
    module = ConvNet().eval()
    images = torch.randn(2, 1, 28, 28)
    expected = module(images)
    with tap(module, ["conv1"]), tap(module, ["relu2"]) as other:
        assert torch.equal(module(images), expected)
        assert other(images)[0]["relu2"].shape == (2, 20, 4, 4)


def test_tap__can_be_used_again_after_a_failed_pass() -> None:
    module = ConvNet().eval()
    with tap(module, ["fc"]) as tapped:
        with pytest.raises(RuntimeError):
            tapped(torch.zeros(1, 3, 28, 28))
        assert tapped(torch.zeros(5, 1, 28, 28))[0]["fc"].shape == (5, 10)
        assert tapped(torch.zeros(0, 1, 28, 28))[0]["fc"].shape == (0, 10)


def test_tap__serves_threads_side_by_side() -> None:
    module = ConvNet().eval()
    batches = [torch.randn(4, 1, 28, 28) for _ in range(8)]
    with torch.inference_mode():
        expected = [module.conv2(module.relu1(module.pool1(module.conv1(batch)))) for batch in batches]
    found: dict[int, Tensor] = {}
    start = threading.Barrier(len(batches))
    with tap(module, ["conv2"]) as tapped:

        def work(number: int) -> None:
            start.wait()
            for _ in range(20):
                found[number] = tapped(batches[number])[0]["conv2"]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, output in enumerate(expected):
        torch.testing.assert_close(found[number], output)


def test_tap__gives_copies_without_gradient(alexnet: nn.Module) -> None:
    module = nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1)).eval()
    images = torch.zeros(1, 1, 2, 2)
    with tap(module, ["0", "0", "1"]) as tapped:
        outputs, _ = tapped(images)
    assert list(outputs) == ["0", "1"]
    assert outputs["0"].data_ptr() != images.data_ptr()
    assert not outputs["1"].requires_grad


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.never = nn.ReLU()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.windows = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.attention(x, x, x)
        return self.relu(self.windows(x.reshape(-1, 2, 4)).reshape(x.shape))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("never", "layer 'never' was not called"),
        ("relu_1", "layer 'relu_1' was not called"),
        ("attention", "layer 'attention' yields a tuple, not one tensor"),
        ("windows", r"layer 'windows' yields shape \(6, 2, 4\), not one row for each of 3 images"),
    ],
)
def test_tap__names_a_layer_that_cannot_be_tapped(layer: str, message: str) -> None:
    with tap(Branches().eval(), [layer]) as tapped, pytest.raises(NetworkError, match=message):
        tapped(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("layer", ["rellu", "", "attention.out_proj.weight"])
def test_tap__names_an_unknown_layer(layer: str) -> None:
    with pytest.raises(NetworkError, match=f"has no layer '{layer}'") as caught:
        tap(Branches(), [layer])
    assert "relu" in str(caught.value.hint)


class Fourier(nn.Module):
    """Ends in complex numbers, unless their sizes are asked for."""

    def __init__(self, *, real: bool) -> None:
        super().__init__()
        self.part = nn.Conv2d(1, 2, 1)
        self.turn = nn.Identity()
        self.real = real

    def forward(self, x: Tensor) -> Tensor:
        turned = self.turn(torch.fft.fft2(self.part(x))).flatten(1)
        return turned.abs() if self.real else turned


def test_tap__names_a_layer_of_complex_numbers() -> None:
    images = torch.ones(3, 1, 4, 4)
    with tap(Fourier(real=True).eval(), ["part"], to_end=True) as tapped:
        assert tapped(images)[1] is not None
    message = r"layer 'turn' yields complex numbers \(torch.complex64\)"
    with tap(Fourier(real=True).eval(), ["turn"]) as tapped, pytest.raises(NetworkError, match=message):
        tapped(images)
    message = r"the network yields complex numbers"
    with tap(Fourier(real=False).eval(), ["part"], to_end=True) as tapped, pytest.raises(NetworkError, match=message):
        tapped(images)


def test_tap__example_in_its_documentation() -> None:
    assert doctest.testmod(taps).failed == 0
    assert doctest.testmod(taps).attempted > 0
