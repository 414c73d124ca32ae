from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from dneuro.errors import NetworkError
from dneuro.nets import catalogue
from dneuro.nets.calls import passes_on
from dneuro.nets.describe import classifies, layers, table, trace
from dneuro.spec.network import NetworkSpec, Preprocessing


def test_layers__convnet_has_the_sizes_of_the_paper() -> None:
    found = layers(NetworkSpec(name="dneuro:convnet"))
    assert list(found) == ["conv1", "pool1", "relu1", "conv2", "pool2", "relu2", "flatten", "fc"]
    assert found["relu1"].shape == (10, 12, 12)  # 1,440 numbers
    assert found["relu2"].shape == (20, 4, 4)  # 320 numbers
    assert found["fc"].shape == (10,)
    assert found["conv1"].kind == "Conv2d"
    assert found["conv2"].parameters == ("conv2.weight", "conv2.bias")
    assert found["pool1"].parameters == ()


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_layers__shapes_are_those_of_a_real_pass(name: str) -> None:
    found = layers(NetworkSpec(name=f"torchvision:{name}"))
    module = models.get_model(name, weights=None).eval()
    containers = [layer for layer in found if layer in dict(module.named_modules()) and passes_on(
        module.get_submodule(layer))]  # fmt: skip
    with torch.inference_mode():
        others = [layer for layer in found if layer not in containers]
        outputs = create_feature_extractor(module, others)(torch.zeros(1, 3, 224, 224))
        for layer in containers:  # torchvision gives a container and the last of its parts one name between them
            outputs |= create_feature_extractor(module, [layer])(torch.zeros(1, 3, 224, 224))
    assert {name: layer.shape for name, layer in found.items()} == {
        name: tuple(output.shape[1:]) for name, output in outputs.items()
    }
    own = dict(module.named_parameters())
    assert list(itertools.chain(*(layer.parameters for layer in found.values()))) == list(own)


def test_layers__follow_the_input_shape() -> None:
    spec = NetworkSpec(name="torchvision:vgg16")
    assert layers(spec)["features.30"].shape == (512, 7, 7)
    assert layers(spec, (3, 96, 64))["features.30"].shape == (512, 3, 2)
    small = spec.model_copy(update={"preprocessing": Preprocessing(resize=(32, 64))})
    assert layers(small)["features.1"].shape == (64, 32, 64)


class Windows(nn.Module):
    """Looks at quarters of the image one by one, as window attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.quarter = nn.Conv2d(1, 1, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.whole = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        windows = self.quarter(x.reshape(len(x) * 4, 1, 4, 4)).reshape(len(x), 8, 8)
        return self.whole(self.attention(windows, windows, windows)[0])


def test_layers__leave_out_calls_without_one_row_per_image() -> None:
    found = trace(Windows().eval(), (1, 8, 8))
    assert list(found.order) == ["quarter", "attention", "whole"]
    assert list(found.layers) == ["whole"]
    assert found.layers["whole"].shape == (8, 8)
    assert found.classes is None


class Several(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.part = nn.Linear(4, 6)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.part(x.mean((1, 2))))


@pytest.mark.parametrize(
    ("form", "classes"),
    [
        (lambda x: x, 6),
        (lambda x: {"out": x, "aux": x[:, :2]}, 6),
        (lambda x: {"out": x.unsqueeze(2)}, None),
        (lambda x: (x, x), None),
        (lambda x: {"logits": x}, None),
        (lambda x: torch.complex(x, x), None),
        (lambda x: None, None),
    ],
)
def test_trace__a_network_with_several_outputs_has_layers_and_perhaps_classes(form: Any, classes: int) -> None:
    found = trace(Several(form).eval(), (1, 4, 4), "net")
    assert found.layers["part"].shape == (6,)
    assert found.classes == classes


def test_layers__work_where_a_builder_computes_with_tensors() -> None:
    assert layers(NetworkSpec(name="torchvision:regnet_x_400mf"))["fc"].shape == (1000,)


def test_layers__draw_no_random_numbers() -> None:
    before = torch.get_rng_state()
    layers(NetworkSpec(name="torchvision:googlenet"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("dneuro:convnet", None, 10),
        ("dneuro:convnet", 26, 26),
        ("torchvision:squeezenet1_1", None, 1000),
        ("torchvision:resnet18", 7, 7),
    ],
)
def test_classifies__counts_the_outputs(name: str, classes: int | None, expected: int) -> None:
    assert classifies(NetworkSpec(name=name, classes=classes)) == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("torchvision:alexnt", "torchvision:alexnet"),
        ("vgg16", "torchvision:vgg16"),
        ("convnet", "dneuro:convnet"),
    ],
)
def test_find__suggests_the_nearest_network(name: str, meant: str) -> None:
    with pytest.raises(NetworkError, match="unknown network") as caught:
        layers(NetworkSpec(name=name))
    assert meant in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "reason", "way_out"),
    [
        ("fasterrcnn_resnet50_fpn", "yields boxes", "classify or segment"),
        ("r3d_18", "takes films", "classify or segment"),
        ("raft_small", "takes pairs of pictures", "classify or segment"),
        ("quantized_resnet18", "8-bit integers", "torchvision:resnet18"),
    ],
)
def test_find__says_why_a_network_of_torchvision_cannot_be_used(name: str, reason: str, way_out: str) -> None:
    with pytest.raises(NetworkError, match=f"torchvision:{name} .*{reason}") as caught:
        layers(NetworkSpec(name=f"torchvision:{name}"))
    assert way_out in str(caught.value.hint)


def test_names__all_of_torchvision_is_taken_or_refused_with_a_reason() -> None:
    usable = {f"torchvision:{name}" for name in models.list_models()} & set(catalogue.names())
    assert len(usable) > 80
    for name in models.list_models():
        if f"torchvision:{name}" not in usable:
            with pytest.raises(NetworkError, match=f"^torchvision:{name} ") as caught:
                catalogue.find(NetworkSpec(name=f"torchvision:{name}"))
            assert caught.value.hint


def test_layers__of_segmentation_are_the_backbones_and_the_heads() -> None:
    spec = NetworkSpec(name="torchvision:lraspp_mobilenet_v3_large")
    found = layers(spec)
    assert found["backbone.0.0"].shape == (16, 260, 260)
    assert found["classifier.high_classifier"].shape == (21, 65, 65)
    assert found["classifier.high_classifier"].dims == ("channel", "y", "x")
    assert classifies(spec) is None  # a class per pixel
    assert layers(spec.model_copy(update={"classes": 5}))["classifier.high_classifier"].shape == (5, 65, 65)


def test_table__has_the_numbers_of_every_layer() -> None:
    found = layers(NetworkSpec(name="torchvision:alexnet"))
    rows = {row["name"]: row for row in table(found, images=50_000)}
    assert list(rows) == list(found)
    first = rows["features.0"]
    assert (first["kind"], first["shape"], first["dims"]) == ("Conv2d", [64, 55, 55], ["channel", "y", "x"])
    assert first["receptive_field"] == {"size": [11, 11], "stride": [4, 4], "start": [-2, -2]}
    assert first["bytes_per_image"] == 64 * 55 * 55 * 4
    assert first["bytes"] == 64 * 55 * 55 * 4 * 50_000
    assert first["parameters"] == ["features.0.weight", "features.0.bias"]
    assert rows["classifier.6"]["receptive_field"] is None
    assert rows["classifier.6"]["bytes_per_image"] == 4000
    assert {row["bytes"] for row in table(found)} == {None}
    assert json.loads(json.dumps(list(rows.values()))) == list(rows.values())


def test_names__every_network_can_be_described() -> None:
    # One per family; the others differ in width and depth only.
    known = catalogue.names()
    assert len(known) > 70
    for name in (
        "densenet121",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "swin_t",
        "convnext_tiny",
        "vit_b_32",
    ):
        assert f"torchvision:{name}" in known
        assert classifies(NetworkSpec(name=f"torchvision:{name}")) == 1000


@pytest.mark.parametrize(
    ("name", "preprocessing", "message", "hint"),
    [
        (
            "torchvision:alexnet",
            Preprocessing(crop=224, color="grey"),
            "takes images of 3 colour channels",
            "rgb",
        ),
        ("dneuro:convnet", Preprocessing(resize=(28, 28)), "takes images of 1 colour channel,", "grey"),
        ("dneuro:convnet", Preprocessing(crop=32, color="grey"), "cannot take an input of 1×32×32", "pre"),
        ("torchvision:alexnet", Preprocessing(crop=16), "cannot take an input of 3×16×16", "preprocessing"),
        ("torchvision:vit_b_32", Preprocessing(crop=96), "cannot take an input of 3×96×96", "pre"),
    ],
)
def test_layers__refuse_a_preprocessing_that_does_not_fit(
    name: str, preprocessing: Preprocessing, message: str, hint: str
) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        layers(NetworkSpec(name=name, preprocessing=preprocessing))
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("preprocessing", [Preprocessing(), Preprocessing(resize=64)])
def test_layers__take_the_usual_size_where_the_pictures_decide(preprocessing: Preprocessing) -> None:
    found = layers(NetworkSpec(name="torchvision:vgg16", preprocessing=preprocessing))
    assert found["features.0"].shape == (64, 224, 224)
    grey = Preprocessing(color="grey")
    assert layers(NetworkSpec(name="dneuro:convnet", preprocessing=grey))["conv1"].shape == (10, 24, 24)
