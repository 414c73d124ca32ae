from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from dneuro.nets import axes
from dneuro.nets.axes import UNKNOWN, dims, grid, name_of, view
from dneuro.nets.calls import dry_run, empty_images
from dneuro.nets.describe import layers, trace
from dneuro.nets.follow import Follower, receptive_fields
from dneuro.nets.taps import tap
from dneuro.spec.network import NetworkSpec


def names(found: axes.Axes | None) -> list[str]:
    assert found is not None
    return [name_of(axis) for axis in found]


IMAGE = grid(2, 6, 4, 9)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(2, 6, 36)], ["batch", "channel", "token"]),
        ([(2, 6, 36), (2, 6, 4, 9)], ["batch", "channel", "y", "x"]),
        ([(12, 4, 3, 3)], [UNKNOWN, "y", UNKNOWN, UNKNOWN]),
        ([(12, 4, 3, 3), (2, 6, 2, 2, 9), (2, 6, 4, 9)], ["batch", "channel", "y", "x"]),
        ([(2, 2, 3, 4, 9)], ["batch", "channel", "channel", "y", "x"]),
        ([(2, 6 * 4 * 9)], ["batch", UNKNOWN]),
        ([(2, 6, 1, 4, 9, 1)], ["batch", "channel", "", "y", "x", ""]),
        ([(432,), (2, 6, 4, 9)], ["batch", "channel", "y", "x"]),
    ],
)
def test_view__cuts_and_joins_axes(shapes: list[tuple[int, ...]], expected: list[str]) -> None:
    found: Any = IMAGE
    for shape in shapes:
        found = view(found, shape)
    assert names(found) == expected


def test_view__does_not_follow_cuts_across_axes() -> None:
    assert view(IMAGE, (2, 6, 9, 4)) is None
    assert view(IMAGE, (2, 6, 6, 6)) is None
    assert names(view(grid(2, 6, 4, 8), (2, 6, 8, 4))) == ["batch", "channel", UNKNOWN, UNKNOWN]


def test_view__rows_in_another_order_are_no_axis() -> None:
    batch, channel, y, x = IMAGE
    cut = view((batch, channel, y, x), (2, 6, 2, 2, 9))
    assert cut is not None
    shuffled = view((cut[0], cut[1], cut[3], cut[2], cut[4]), (2, 6, 4, 9))
    assert names(shuffled) == ["batch", "channel", UNKNOWN, "x"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("c", ("channel",)),
        ("cyx", ("channel", "y", "x")),
        ("yxc", ("y", "x", "channel")),
        ("cxy", None),
        ("ycx", None),
        ("cy", None),
        ("c11", ("channel", "y", "x")),
        ("tc", ("token", "channel")),
        ("ct", None),
        ("ttc", None),
    ],
)
def test_dims__are_one_of_four_kinds(order: str, expected: tuple[str, ...] | None) -> None:
    letters = {"c": "channel", "y": "y", "x": "x", "t": "token"}
    found = tuple(axes.named(letters.get(letter, ""), 1 if letter == "1" else 5) for letter in order)
    assert dims(found) == expected


def follow(what: Any, shape: tuple[int, int, int] = (6, 4, 9)) -> tuple[list[str] | None, tuple[str, ...] | None]:
    """Return the names of the axes that `what` leaves of images, and their dims per image."""
    images = empty_images(shape)
    with Follower(images) as follower, torch.inference_mode():
        output = what(images)
    found = follower._of(output).axes
    return found and names(found), follower.dims(output)


CONV = nn.Conv2d(6, 8, 3, padding=1, device="meta")
LINEAR = nn.Linear(6, 10, device="meta")
ATTENTION = nn.MultiheadAttention(6, 2, batch_first=True, device="meta").eval()


def attend(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return ATTENTION(tokens, tokens, tokens, need_weights=False)[0]


def write_into(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, :2] = x[:, :, 2:]
    return out


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (CONV, ["batch", "channel", "y", "x"]),
        (lambda x: CONV(x).permute(0, 2, 3, 1), ["batch", "y", "x", "channel"]),
        (lambda x: LINEAR(x.movedim(1, 3)), ["batch", "y", "x", "channel"]),
        (lambda x: LINEAR(x.flatten(2).mT), ["batch", "token", "channel"]),
        (lambda x: torch.cat([torch.zeros(5, 1, 6, device="meta"), x.flatten(2).mT], 1), ["batch", "token", "channel"]),
        (attend, ["batch", "token", "channel"]),
        (lambda x: attend(x).mT.unflatten(2, (4, 9)), ["batch", "channel", "y", "x"]),
        (lambda x: x.roll((1, 2), (2, 3)), ["batch", "channel", "y", "x"]),
        (lambda x: x[:, :, ::2, 1:5], ["batch", "channel", "y", "x"]),
        (lambda x: x.mean((2, 3)), ["batch", "channel"]),
        (lambda x: x.mean((2, 3), keepdim=True), ["batch", "channel", "", ""]),
        (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), ["batch", "channel", "y", "x"]),
        (lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), ["batch", "channel", "y", "x"]),
        (lambda x: nn.functional.pad(x, (1, 2, 3, 4)), ["batch", "channel", "y", "x"]),
        (lambda x: torch.einsum("bcyx,dc->bdyx", x, torch.zeros(7, 6, device="meta")), ["batch", "channel", "y", "x"]),
        (lambda x: torch.stack([x[:, 0], x[:, 1]], 3), ["batch", "y", "x", UNKNOWN]),
        (lambda x: LINEAR(x.flatten(2).mT).mT @ torch.zeros(36, 3, device="meta"), ["batch", "channel", UNKNOWN]),
        (lambda x: x[..., :4] + x[..., :4].mT, ["batch", "channel", UNKNOWN, UNKNOWN]),
        (lambda x: x.flatten(2).sort(-1)[0], None),
        (write_into, None),
        (lambda x: CONV(write_into(x)), ["batch", "channel", "y", "x"]),  # a convolution knows
    ],
)  # fmt: skip
def test_follower__knows_what_the_axes_are(what: Any, expected: list[str] | None) -> None:
    assert follow(what)[0] == expected


def test_follower__rows_and_columns_that_changed_places_are_not_taken_for_each_other() -> None:
    assert follow(lambda x: x.transpose(2, 3))[1] is None
    assert follow(lambda x: CONV(x.transpose(2, 3)))[1] is None
    assert follow(lambda x: CONV(x.transpose(2, 3)).transpose(2, 3))[1] == ("channel", "y", "x")


def kinds_of(name: str, shape: tuple[int, int, int], **settings: Any) -> dict[Any, int]:
    with torch.device("meta"):
        module = models.get_model(name, weights=None, **settings).eval()
    counted: dict[Any, int] = {}
    for layer in trace(module, shape).layers.values():
        counted[layer.dims] = counted.get(layer.dims, 0) + 1
    return counted


def test_layers__of_transformers_and_convnext_say_what_their_axes_are() -> None:
    found = layers(NetworkSpec(name="torchvision:swin_t"))
    assert found["features.0.0"].dims == ("channel", "y", "x")
    last = found["features.7.1.mlp.1"]
    assert (last.shape, last.dims, last.stored) == ((7, 7, 3072), ("y", "x", "channel"), (3072, 7, 7))
    assert found["permute"].dims == ("channel", "y", "x")
    assert None not in {layer.dims for layer in found.values()}
    assert not any(".attn." in name for name in found)  # they have a row per window

    found = layers(NetworkSpec(name="torchvision:vit_b_16"))
    block = found["encoder.layers.encoder_layer_11.mlp.1"]
    assert (block.shape, block.dims, block.stored) == ((197, 3072), ("token", "channel"), (3072, 197, 1))
    assert {layer.dims for layer in found.values()} == {("channel", "y", "x"), ("token", "channel"), ("channel",)}

    found = layers(NetworkSpec(name="torchvision:convnext_tiny"))
    assert found["features.1.0.block.0"].dims == ("channel", "y", "x")
    assert found["features.1.0.block.3"].dims == ("y", "x", "channel")
    assert found["features.1.0.block.5"].dims == ("y", "x", "channel")
    assert found["features.1.0.block.6"].dims == ("channel", "y", "x")


def test_layers__windows_of_maxvit_are_not_taken_for_channels() -> None:
    found = layers(NetworkSpec(name="torchvision:maxvit_t"))
    windows = found["blocks.0.layers.0.layers.window_attention.partition_op"]
    assert (windows.shape, windows.dims, windows.stored) == ((64, 49, 64), None, None)
    back = found["blocks.0.layers.0.layers.window_attention.departition_op"]
    assert (back.shape, back.dims) == ((64, 56, 56), ("channel", "y", "x"))


@pytest.mark.parametrize(
    "name", ["swin_t", "swin_v2_t", "convnext_tiny", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
)
def test_layers__axes_have_the_proportions_of_the_image(name: str) -> None:
    # Independent of the rules: what is called y must be two thirds of what is called x, and channels neither.
    with torch.device("meta"):
        module = models.get_model(name, weights=None).eval()
    for layer in trace(module, (3, 128, 192)).layers.values():
        assert layer.dims is not None, layer
        if "y" in layer.dims:
            sizes = dict(zip(layer.dims, layer.shape, strict=True))
            assert (sizes["y"], sizes["x"]) == (1, 1) or sizes["y"] * 3 == sizes["x"] * 2, layer


def small_convnext() -> nn.Module:
    torch.manual_seed(0)
    stages = [CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)]
    return ConvNeXt(stages, layer_scale=1.0, num_classes=10).eval()


def test_tap__puts_channels_first() -> None:
    module = small_convnext()
    found = trace(module, (3, 64, 96)).layers
    wanted = ["features.0.0", "features.1.0.block.2", "features.3.0.block.3", "classifier.2"]
    images = torch.randn(2, 3, 64, 96)
    with tap(module, wanted) as plain, tap(module, wanted, dims={name: found[name].dims for name in wanted}) as turned:
        as_made, first = plain(images)[0], turned(images)[0]
    assert {name: tuple(output.shape[1:]) for name, output in first.items()} == {
        name: found[name].stored for name in wanted
    }
    assert all(output.is_contiguous() for output in first.values())
    for name in ("features.1.0.block.2", "features.3.0.block.3"):
        assert torch.equal(as_made[name].movedim(3, 1), first[name])
    assert torch.equal(as_made["classifier.2"], first["classifier.2"])


def test_tap__lays_tokens_along_y() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 4, 8, 8)
            self.mix = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1)

    module = Tokens().eval()
    layer = trace(module, (3, 16, 24)).layers["mix"]
    assert (layer.dims, layer.stored) == (("token", "channel"), (5, 6, 1))
    images = torch.randn(2, 3, 16, 24)
    with torch.inference_mode(), tap(module, ["mix"], dims={"mix": layer.dims}) as tapped:
        tokens = module.mix(module.patches(images).flatten(2).transpose(1, 2))
        assert torch.equal(tapped(images)[0]["mix"], tokens.mT[..., None])


def test_receptive_fields__go_through_channels_last_blocks() -> None:
    # One pixel is changed; a position may change only if its field holds the pixel, and the nearest one does.
    module = small_convnext()
    fields = receptive_fields(module, (3, 64, 96))
    named = trace(module, (3, 64, 96)).layers
    module.double()  # or the last of a large field would be lost to rounding
    wanted = ["features.0.1", "features.1.0.block.0", "features.1.0.block.3", "features.1.1.block.2", "features.2.1"]
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64).repeat(2, 1, 1, 1)
    row, column = 37, 50
    images[1, :, row, column] += 3
    with tap(module, wanted, dims={name: named[name].dims for name in wanted}) as tapped:
        outputs, _ = tapped(images)
    for name, output in outputs.items():
        changed = (output[0] != output[1]).any(0)
        field = fields[name]
        assert field is not None, name
        for y in range(changed.shape[0]):
            for x in range(changed.shape[1]):
                top, left, bottom, right = field.box(y, x)
                assert bool(changed[y, x]) == (top <= row < bottom and left <= column < right), (name, y, x)


def test_follower__forgets_what_is_written_over() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x[:, :, 1:] += x[:, :, :-1].clone()  # a position now sees more than the field of `first`
            return self.last(x)

    assert receptive_fields(Writes().eval(), (1, 9, 9))["last"] is None


def test_follower__keeps_no_tensor_alive() -> None:
    import weakref

    images = torch.zeros(5, 3, 32, 32)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3)).eval()
    kept: list[weakref.ref[Tensor]] = []
    with Follower(images) as follower:
        dry_run(module, images, lambda _name, _part, output: kept.append(weakref.ref(output)))
        assert [reference() is None for reference in kept][:2] == [True, True]
    assert follower.field(images) is not None
