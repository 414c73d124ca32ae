from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dneuro.errors import NetworkError
from dneuro.nets.calls import LayerNames, check_layers, dry_run, empty_images
from dneuro.nets.describe import trace
from dneuro.nets.taps import tap


def called_layers(module: nn.Module, input_shape: tuple[int, int, int] = (3, 224, 224)) -> list[str]:
    names: list[str] = []
    dry_run(module.eval(), empty_images(input_shape), lambda name, _part, _output: names.append(name))
    return names


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1", "resnet18", "vgg16"])
def test_layer_names__are_those_of_torchvisions_feature_extraction(name: str) -> None:
    with torch.device("meta"):
        module = models.get_model(name, weights=None)
    leaves = {leaf for leaf, part in module.named_modules() if not list(part.children())}
    _, nodes = get_graph_node_names(module)
    of_modules = [node for node in nodes if node in leaves or node.rpartition("_")[0] in leaves]
    blocks = {block for block, part in module.named_modules() if list(part.children())}
    assert [layer for layer in called_layers(module) if layer not in blocks] == of_modules


def test_blocks__are_layers_after_their_parts_where_they_yield_something_of_their_own() -> None:
    with torch.device("meta"):
        squeezenet = models.squeezenet1_1(weights=None)
    names = called_layers(squeezenet)
    assert names.index("features.3") == names.index("features.3.expand3x3_activation") + 1
    assert names.index("features") == names.index("features.12") + 1


def test_tap__of_a_block_is_what_torchvisions_feature_extraction_yields() -> None:
    torch.manual_seed(0)
    squeezenet, images = models.squeezenet1_1(weights=None).eval(), torch.rand(2, 3, 64, 64)
    theirs = create_feature_extractor(squeezenet, ["features.3"])
    with tap(squeezenet, ["features.3"]) as ours, torch.inference_mode():
        torch.testing.assert_close(ours(images)[0]["features.3"], theirs(images)["features.3"], rtol=0, atol=0)


CONTAINERS = {
    "resnet18": ["layer4", "layer3.0.downsample"],
    "mobilenet_v3_small": ["features.0", "features"],
    "efficientnet_b0": ["features.0"],
    "convnext_tiny": ["features.0"],
    "vit_b_32": ["encoder.layers.encoder_layer_0.mlp", "encoder.layers.encoder_layer_0.self_attention"],
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers__are_layers_and_yield_what_the_module_does(name: str) -> None:
    torch.manual_seed(0)
    module, images = models.get_model(name, weights=None).eval(), torch.rand(2, 3, 224, 224)
    found = trace(module, (3, 224, 224)).layers
    theirs: dict[str, Tensor] = {}
    for layer in CONTAINERS[name]:
        module.get_submodule(layer).register_forward_hook(
            lambda _m, _i, out, layer=layer: theirs.update({layer: (out[0] if isinstance(out, tuple) else out).clone()})
        )
    with tap(module, CONTAINERS[name], to_end=True) as ours:
        outputs = ours(images)[0]
    for layer in CONTAINERS[name]:
        assert found[layer].dims is not None
        assert found[layer].shape == theirs[layer].shape[1:]
        torch.testing.assert_close(outputs[layer], theirs[layer], rtol=0, atol=0)


def test_containers__see_what_the_last_of_their_parts_sees() -> None:
    with torch.device("meta"):
        found = trace(models.resnet18(weights=None).eval(), (3, 224, 224)).layers
    assert (found["layer2"].field, found["layer2"].stored) == (found["layer2.1"].field, (128, 28, 28))
    assert found["layer2"].field is not None
    assert found["layer2"].parameters == ()
    assert list(found).index("layer2") == list(found).index("layer2.1") + 1


class Repeats(nn.Module):
    """Calls ``relu`` four times and has a module that is itself called ``relu_2``."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.relu_2 = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(self.relu_2(self.relu(self.relu(x)))))


def test_layer_names__repeated_calls_never_take_a_modules_name() -> None:
    assert called_layers(Repeats(), (1, 2, 2)) == ["relu", "relu_1", "relu_2", "relu_3", "relu_4"]


def test_layer_names__find_undoes_name() -> None:
    names = LayerNames(Repeats())
    for repeat in range(5):
        assert names.find(names.name("relu", repeat)) == ("relu", repeat)
    assert names.find("relu_2") == ("relu_2", 0)


@pytest.mark.parametrize("wrong", ["relo", "relu_", "relu_0", "relu_01", "relu_99999999999", "", "relu_2_x"])
def test_layer_names__find_refuses_what_no_call_has(wrong: str) -> None:
    with pytest.raises(NetworkError, match="has no layer"):
        LayerNames(Repeats()).find(wrong)


def test_leaves__modules_that_use_their_parts_without_calling_them_are_one_layer() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens)[0]

    assert called_layers(Attends(), (4, 3, 3)) == ["attention"]


def test_dry_run__leaves_no_hooks_and_no_shapes_behind() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    weight = module[0].weight
    called_layers(module, (1, 8, 8))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert module[0].weight is weight
    assert not weight.is_meta


def test_dry_run__names_the_shape_that_does_not_fit() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3)).eval()
    with pytest.raises(NetworkError, match="the network cannot take an input of 3×8×9") as caught:
        called_layers(module, (3, 8, 9))
    assert "preprocessing" in str(caught.value.hint)
    assert not module[0]._forward_hooks


def test_check_layers__suggests_the_nearest() -> None:
    check_layers(["conv1", "relu1"], ["relu1"], "net")
    with pytest.raises(NetworkError, match=r"net has no layer 'con1' \(nor 'x'\)") as caught:
        check_layers(["conv1", "relu1"], ["relu1", "con1", "x"], "net")
    assert "did you mean 'conv1'" in str(caught.value.hint)
