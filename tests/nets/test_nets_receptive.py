from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from dneuro.nets.convnet import ConvNet
from dneuro.nets.follow import receptive_fields
from dneuro.nets.receptive import ReceptiveField

Shape = tuple[int, int, int]


def average_everywhere(module: nn.Module) -> nn.Module:
    """Let every input matter: equal positive weights, average instead of maximum pools, double precision."""
    module = module.double().to_empty(device="cpu").eval()
    for name, part in list(module.named_modules()):
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(part.weight, 1 / part.weight[0].numel())
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        if isinstance(part, nn.MaxPool2d):
            pool = nn.AvgPool2d(part.kernel_size, part.stride, part.padding, part.ceil_mode)
            module.set_submodule(name, pool)
    return module


def box_with_gradient(output: Tensor, images: Tensor, y: int, x: int) -> tuple[int, int, int, int] | None:
    """Return the rectangle of input pixels that matter to one position; None if it sees only padding."""
    (gradient,) = torch.autograd.grad(output[0, :, y, x].sum(), images, retain_graph=True)
    rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def check_by_gradient(module: nn.Module, shape: Shape, layers: list[str]) -> None:
    fields = receptive_fields(module.eval(), shape)
    extract = create_feature_extractor(average_everywhere(module), layers)
    images = torch.ones((1, *shape), dtype=torch.float64, requires_grad=True)
    for layer, output in extract(images).items():
        field = fields[layer]
        assert field is not None, layer
        bottom, right = output.shape[2] - 1, output.shape[3] - 1
        y = next(y for y in range(bottom) if field.box(y, 0)[0] >= 0)  # the first that sees no padding
        x = next(x for x in range(right) if field.box(0, x)[1] >= 0)
        assert box_with_gradient(output, images, y, x) == field.box(y, x), layer
        for y, x in ((0, 0), (0, right), (bottom, right)):  # borders: the field reaches into the padding
            box, seen = field.box(y, x), box_with_gradient(output, images, y, x)
            if seen is not None:
                assert box[0] <= seen[0] and box[1] <= seen[1] and box[2] >= seen[2] and box[3] >= seen[3], (
                    layer
                )


@pytest.mark.parametrize(
    ("name", "shape", "layers"),
    [
        ("alexnet", (3, 256, 256), ["features.0", "features.2", "features.5", "features.12"]),
        ("squeezenet1_1", (3, 128, 160), ["features.2", "features.4.expand3x3", "features.7.squeeze"]),
        (
            "resnet18",
            (3, 160, 128),
            ["maxpool", "layer1.1.relu_1", "layer2.0.relu_1", "layer2.0.downsample.0"],
        ),
        ("vgg16", (3, 80, 80), ["features.1", "features.4", "features.8", "features.16", "features.18"]),
        (
            "shufflenet_v2_x0_5",
            (3, 160, 128),
            ["stage2.0.branch2.7", "stage2.2.branch2.7", "stage2.3.branch2.7"],
        ),
        ("densenet121", (3, 96, 96), ["features.denseblock1.denselayer3.conv2", "features.transition1.pool"]),
        ("googlenet", (3, 160, 160), ["inception3a.branch4.1.bn", "inception3b.branch2.1.bn"]),
    ],
)
def test_receptive_fields__are_where_the_gradient_is(name: str, shape: Shape, layers: list[str]) -> None:
    extra: dict[str, Any] = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    with torch.device("meta"):
        module = models.get_model(name, weights=None, **extra)
    if name in ("alexnet", "vgg16"):
        module.classifier = nn.Identity()  # a gigabyte that has no positions
    check_by_gradient(module, shape, layers)


def test_receptive_fields__convnet_by_gradient() -> None:
    check_by_gradient(ConvNet().eval(), (1, 28, 28), ["conv1", "pool1", "relu1", "conv2", "pool2", "relu2"])
    assert receptive_fields(ConvNet().eval(), (1, 28, 28))["fc"] is None


def test_receptive_fields__vgg16_as_in_the_paper() -> None:
    with torch.device("meta"):
        module = models.vgg16(weights=None).eval()
    fields = receptive_fields(module, (3, 224, 224))
    after_relu = [name for name, part in module.features.named_children() if isinstance(part, nn.ReLU)]
    sizes = [field.size for field in (fields[f"features.{name}"] for name in after_relu) if field]
    papers = [3, 5, 10, 14, 24, 32, 40, 60, 76, 92, 132, 164, 196]  # Sadeghi, PAPERS section 2
    assert sizes == [(size, size) for size in papers]


class Zoo(nn.Module):
    """One of each thing that moves a field, with different numbers for y and x."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(2, 3))
        self.same = nn.Conv2d(4, 4, (3, 5), padding="same", dilation=2)
        self.pad = nn.ZeroPad2d((3, 1, 2, 0))
        self.ceil = nn.MaxPool2d((2, 3), ceil_mode=True)
        self.wide = nn.Conv2d(4, 4, (1, 5), padding=(0, 2))
        self.tall = nn.Conv2d(4, 4, (5, 1), padding=(2, 0))
        self.join = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.ceil(self.pad(self.same(self.dilated(x))))
        x = torch.cat([self.wide(x) + x, self.tall(x)], dim=1)
        return self.join(x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2))  # shuffled channels


def test_receptive_fields__every_kind_of_window_by_gradient() -> None:
    check_by_gradient(Zoo().eval(), (2, 61, 67), ["dilated", "same", "pad", "ceil", "wide", "tall", "join"])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_receptive_fields__same_padding_of_an_even_kernel() -> None:
    check_by_gradient(nn.Sequential(nn.Conv2d(1, 1, 4, padding="same")).eval(), (1, 12, 12), ["0"])


class Ends(nn.Module):
    """A convolution, `what` (after which the field is unknown or everything), and a ReLU."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2)
        self.part = what if isinstance(what, nn.Module) else nn.Identity()
        self.what = what
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.what(self.first(x)))


@pytest.mark.parametrize(
    "what",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(3),
        nn.ConvTranspose2d(6, 6, 3),
        nn.Upsample(scale_factor=2),
        nn.GroupNorm(2, 6),
        nn.InstanceNorm2d(6),
        nn.Flatten(),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 9 * 9, 6 * 9 * 9), nn.Unflatten(1, (6, 9, 9))),
        lambda x: x * x.mean((2, 3), keepdim=True),
        lambda x: x * nn.functional.max_pool2d(x, 9),  # a field, but spread over all positions
        lambda x: x[:, :, 2:],
        lambda x: x.roll(1, 2),
        lambda x: x.transpose(2, 3),
        lambda x: torch.cat([x, x], dim=2),
        lambda x: x.reshape(-1, 6, 3, 27),
        lambda x: x + nn.functional.max_pool2d(nn.functional.pad(x, (5, 5, 5, 5)), 3, 2),  # strides 2 and 4
    ],
)  # fmt: skip
def test_receptive_fields__none_after_what_mixes_positions(what: Any) -> None:
    fields = receptive_fields(Ends(what).eval(), (1, 19, 19))
    assert fields["first"] == ReceptiveField((3, 3), (2, 2), (0, 0))
    assert fields["last"] is None


@pytest.mark.parametrize(
    "what",
    [
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(9),
        nn.AdaptiveMaxPool2d(9),
        nn.Dropout(),
        nn.Dropout2d(),
        nn.Hardswish(),
        nn.SELU(),
        lambda x: x[:, ::2],
        lambda x: x * torch.ones(6, 1, 1, device=x.device),
        lambda x: x[:, 3].unsqueeze(1),
        lambda x: torch.stack([x, x], dim=1).flatten(1, 2),
        lambda x: x.relu_().clamp(0, 1),
        lambda x: torch.cat(x.chunk(3, dim=1)[::-1], dim=1),
    ],
)  # fmt: skip
def test_receptive_fields__unchanged_by_what_works_position_by_position(what: Any) -> None:
    fields = receptive_fields(Ends(what).eval(), (1, 19, 19))
    assert fields["last"] == ReceptiveField((3, 3), (2, 2), (0, 0))


def test_receptive_fields__say_why_they_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="dneuro.nets.follow")
    receptive_fields(Ends(nn.ConvTranspose2d(6, 6, 3)).eval(), (1, 19, 19))
    assert "no receptive field after convolution: transposed" in caplog.text


def test_box__counts_from_the_start() -> None:
    field = ReceptiveField(size=(7, 5), stride=(4, 2), start=(-3, -1))
    assert field.box(0, 0) == (-3, -1, 4, 4)
    assert field.box(2, 10) == (5, 19, 12, 24)


def test_receptive_fields__leave_a_network_with_weights_as_it_is() -> None:
    module = ConvNet().eval()
    images = torch.randn(2, 1, 28, 28)
    before = module(images)
    receptive_fields(module, (1, 28, 28))
    assert torch.equal(module(images), before)
