from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from dneuro.errors import NetworkError
from dneuro.nets.convnet import ConvNet
from dneuro.nets.load import load
from dneuro.nets.taps import tap
from dneuro.nets.weights import save_state, state_sha256
from dneuro.spec.network import NetworkSpec, Preprocessing

CONVNET = NetworkSpec(name="dneuro:convnet", weights="none")
SQUEEZENET = NetworkSpec(name="torchvision:squeezenet1_1", weights="none", memory_format="contiguous")
FEATURES = "features.12"


def spec_of(name: str, **settings: Any) -> NetworkSpec:
    return NetworkSpec(name=f"torchvision:{name}", **settings)


@pytest.fixture
def convnet_file(tmp_path: Path) -> Path:
    path = tmp_path / "convnet.safetensors"
    save_state(load(CONVNET).module.state_dict(), path)
    return path


def test_load__random_weights_are_torchvisions_for_that_seed() -> None:
    network = load(SQUEEZENET.model_copy(update={"seed": 5}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        reference = models.squeezenet1_1(weights=None).eval()
    assert network.weights_sha256 == state_sha256(reference.state_dict())
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(network.module(images), reference(images))
    assert network.notes == ["the weights are random (seed 5)"]
    assert network.class_names is None
    assert network.weights_sha256 != load(SQUEEZENET).weights_sha256


def test_load__gives_a_quiet_network_and_leaves_torchs_random_state(convnet_file: Path) -> None:
    before = torch.get_rng_state()
    for weights in ("none", str(convnet_file)):
        module = load(CONVNET.model_copy(update={"seed": 7}), weights=weights).module
        assert not any(part.training for part in module.modules())
        assert not any(tensor.requires_grad or tensor.is_meta for tensor in module.parameters())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells which files are in memory, on Linux only")
def test_load__keeps_no_file_in_memory_of_which_most_was_copied(convnet_file: Path) -> None:
    in_memory = {}
    for memory_format in ("channels_last", "contiguous"):
        network = load(CONVNET.model_copy(update={"weights": str(convnet_file), "memory_format": memory_format}))
        in_memory[memory_format] = str(convnet_file) in Path("/proc/self/maps").read_text()
        assert network.weights_sha256 == state_sha256(network.module.state_dict())
        del network
    assert in_memory == {"channels_last": False, "contiguous": True}


def test_load__convnet_takes_grey_pictures_of_28_pixels() -> None:
    network = load(CONVNET)
    assert network.name == "dneuro:convnet"
    assert network.preprocessing == Preprocessing(resize=(28, 28), color="grey", mean=(0,), std=(1,))
    assert network.input_shape == (1, 28, 28)
    assert network.classes == 10
    assert load(CONVNET.model_copy(update={"classes": 26})).classes == 26


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", {"resize": 256, "crop": 224, "interpolation": "bilinear"}),
        ("swin_t", {"resize": 232, "crop": 224, "interpolation": "bicubic"}),
        ("efficientnet_b0", {"resize": 256, "crop": 224, "interpolation": "bicubic"}),
        ("inception_v3", {"resize": 342, "crop": 299, "interpolation": "bilinear"}),
        ("vit_h_14", {"resize": 518, "crop": 518, "interpolation": "bicubic"}),
    ],
)
def test_find__preprocessing_is_that_of_torchvisions_weights(name: str, expected: dict[str, Any]) -> None:
    from dneuro.nets.catalogue import find

    architecture = find(spec_of(name, weights="/some/file.pth"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert architecture.preprocessing == Preprocessing(**expected, color="rgb", mean=mean, std=std)
    assert architecture.input_shape == (3, expected["crop"], expected["crop"])


def test_find__a_file_named_as_torchvisions_brings_its_settings() -> None:
    from dneuro.nets.catalogue import find

    swag = models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    name = Path(swag.url).name
    architecture = find(spec_of("vit_b_16", weights=f"/somewhere/{name}"))
    assert architecture.input_shape == (3, 384, 384)
    assert architecture.build_shapes().image_size == 384
    assert find(spec_of("vit_b_16", weights=f"/somewhere/{Path(name).stem}.safetensors")).standard is swag


def test_load__own_preprocessing_wins() -> None:
    own = Preprocessing(resize=(96, 64), mean=(0.5,), std=(0.25,))
    network = load(SQUEEZENET.model_copy(update={"preprocessing": own}))
    assert network.preprocessing == own
    assert network.input_shape == (3, 96, 64)


def test_load__same_weights_from_either_file(tmp_path: Path, convnet_file: Path) -> None:
    reference = load(CONVNET)
    torch.save({"state_dict": reference.module.state_dict()}, tmp_path / "convnet.pth")
    for path in (convnet_file, tmp_path / "convnet.pth"):
        network = load(CONVNET, weights=str(path))
        images = torch.rand(3, 1, 28, 28)
        with torch.inference_mode():
            assert torch.equal(network.module(images), reference.module(images))
        assert network.weights_sha256 == reference.weights_sha256
        assert network.notes == []
        assert network.class_names is None


def test_load__half_precision_files_are_used_in_single_and_it_says_so(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in load(CONVNET).module.state_dict().items()}
    save_state(state, tmp_path / "half.safetensors")
    network = load(CONVNET, weights=str(tmp_path / "half.safetensors"))
    assert {tensor.dtype for tensor in network.module.parameters()} == {torch.float32}
    assert torch.equal(network.module.fc.weight, state["fc.weight"].float())
    assert network.notes == ["weights stored as torch.float16 are used as float32"]


def put_into_cache(folder: Path, name: str, state: dict[str, torch.Tensor]) -> Path:
    path = folder / "hub" / "checkpoints" / Path(models.get_model_weights(name).DEFAULT.url).name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "googlenet", "densenet121", "mnasnet0_5", "regnet_x_400mf"]
)
def test_load__default_weights_are_used_as_torchvision_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    extra: dict[str, Any] = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    state = models.get_model(name, weights=None, **extra).state_dict()
    if name == "densenet121":  # the published file has the names of an old torchvision
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
        kept = [key for key in state if not key.endswith("num_batches_tracked")]
        state = {old.sub(r"\1.\2.", key): state[key] for key in kept}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    path = put_into_cache(tmp_path, name, state)
    reference = models.get_model(name, weights="DEFAULT").eval()  # from the same cache
    network = load(spec_of(name, memory_format="contiguous"))  # as the reference, to the last bit
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), reference(images), rtol=0, atol=0)
    assert network.weights_sha256 == state_sha256(reference.state_dict())
    assert network.classes == 1000
    assert network.class_names is not None
    assert network.class_names[0] == "tench"
    # The same from a path, and from safetensors, which carry no version numbers.
    assert load(spec_of(name), weights=str(path)).weights_sha256 == network.weights_sha256
    save_state(state, tmp_path / "own.safetensors")
    other = load(spec_of(name, weights=str(tmp_path / "own.safetensors")))
    assert other.weights_sha256 == network.weights_sha256
    assert other.class_names == network.class_names


def test_rename_key__vision_transformers_of_old() -> None:
    from dneuro.nets.vision import rename_key

    layer = "encoder.layers.encoder_layer_3.mlp"
    assert rename_key(f"{layer}.linear_1.weight") == f"{layer}.0.weight"
    assert rename_key(f"{layer}.linear_2.bias") == f"{layer}.3.bias"
    assert rename_key("AuxLogits.conv0.conv.weight") is None


def test_load__file_without_batch_counters_is_complete(tmp_path: Path) -> None:
    # Files from before torch 0.4.1 have none; only training uses them.
    module = models.resnet18(weights=None)
    whole = module.state_dict()
    state = {key: whole[key] for key in whole if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet.pth")
    network = load(spec_of("resnet18"), weights=str(tmp_path / "resnet.pth"))
    assert network.weights_sha256 == state_sha256(module.state_dict())


def test_load__convnet_has_no_default_weights() -> None:
    with pytest.raises(NetworkError, match="dneuro:convnet comes without weights") as caught:
        load(NetworkSpec(name="dneuro:convnet"))
    assert "train: {epochs: 2}" in str(caught.value.hint)
    assert "weights: none" in str(caught.value.hint)


def test_load__default_weights_have_their_own_number_of_classes() -> None:
    with pytest.raises(NetworkError, match="are for 1000 classes, the job says classes: 7"):
        load(spec_of("alexnet", classes=7))


def altered(change: Any) -> dict[str, torch.Tensor]:
    state = dict(ConvNet().state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda s: s.pop("fc.bias"), r"misses fc\.bias$", "of this one"),
        (
            lambda s: [s.pop(key) for key in list(s)[:5]],
            r"misses conv1\.weight, conv1\.bias, conv2\.weight, … \(5 in all\)$",
            "of this one",
        ),
        (
            lambda s: s.update(more=torch.zeros(1)),
            "has more, which the network does not have$",
            "of this one",
        ),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(10, 3, 5, 5)}),
            r"has conv1\.weight of shape \(10, 3, 5, 5\) where \(10, 1, 5, 5\) is needed$",
            "of this one",
        ),
        (
            lambda s: s.update({"fc.weight": torch.zeros(5, 320), "fc.bias": torch.zeros(5)}),
            r"fc\.weight of shape \(5, 320\) where \(10, 320\) is needed; has fc\.bias of shape \(5,\)",
            "classes: 5",
        ),
        (
            lambda s: s.update({"fc.bias": torch.tensor(0.0)}),
            r"has fc\.bias of shape \(\) where \(10,\)",
            "of this one",
        ),
        (
            lambda s: s.update({"fc.bias": torch.zeros(10, dtype=torch.int8)}),
            r"has fc\.bias as torch\.int8 where torch\.float32 is needed",
            "of this one",
        ),
        (
            lambda s: s.update({"fc.bias": torch.zeros(10, dtype=torch.complex64)}),
            r"has fc\.bias as torch\.complex64",
            "of this one",
        ),
        (
            lambda s: s.update(
                {"fc.weight": torch.zeros(1).expand(10**6, 10**6)}
            ),  # a terabyte, if it were read
            r"has fc\.weight of shape \(1000000, 1000000\)",
            "of this one",
        ),
    ],
)
def test_load__says_why_weights_do_not_fit(tmp_path: Path, change: Any, message: str, hint: str) -> None:
    path = tmp_path / "wrong.pth"
    torch.save(altered(change), path)
    with pytest.raises(NetworkError) as caught:
        load(CONVNET, weights=str(path))
    assert re.search(message, caught.value.message), caught.value.message
    assert caught.value.message.startswith(f"{path} does not fit dneuro:convnet: the file ")
    assert hint in str(caught.value.hint)


def test_load__another_networks_weights_list_only_the_first_keys(convnet_file: Path) -> None:
    with pytest.raises(
        NetworkError, match=r"misses features\.0\.weight, .* \(52 in all\); has conv1"
    ) as caught:
        load(SQUEEZENET, weights=str(convnet_file))
    assert len(caught.value.message) < 400 + len(str(convnet_file))


@pytest.fixture
def headless_file(tmp_path: Path) -> Path:
    """Return AlexNet's weights without the fully connected layers, which are 94 % of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = models.alexnet(weights=None).features
    path = tmp_path / "headless.pth"
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, path)
    return path


def test_load__partial_weights_serve_the_layers_before_the_gap(headless_file: Path) -> None:
    spec = spec_of("alexnet", weights=str(headless_file))
    with pytest.raises(NetworkError, match=r"misses classifier\.1\.weight"):
        load(spec)
    with pytest.raises(NetworkError) as caught:
        load(spec, partial_for=["features.12", "classifier.2"])
    missing = "misses classifier.1.weight, classifier.1.bias, needed by layer classifier.2"
    assert caught.value.message.endswith(missing)
    assert caught.value.hint == (
        "leave classifier.2 out of `layers:` (features.12 can be had with this file), or give the weights of the whole "
        "network, such as weights: DEFAULT"
    )
    with pytest.raises(NetworkError, match=r"needed by layers classifier\.2, classifier\.5") as caught:
        load(spec, partial_for=["classifier.2", "classifier.5"])
    assert "weights of this one" in str(caught.value.hint)
    network = load(spec, partial_for=[FEATURES, "avgpool", "features.0"])
    assert network.classes is None
    assert network.class_names is None
    assert len(network.notes) == 1
    assert "classifier.1, classifier.4, classifier.6" in network.notes[0]
    assert network.module.classifier[1].weight.is_meta  # takes no memory
    with tap(network.module, [FEATURES]) as tapped:
        outputs, _ = tapped(torch.zeros(1, 3, 224, 224))
    assert outputs[FEATURES].shape == (1, 256, 6, 6)
    with pytest.raises(
        NetworkError, match=r"cannot run to its end: there are no weights for classifier\.1\.weight"
    ):
        tap(network.module, [FEATURES], to_end=True)


def test_load__partial_has_the_same_fingerprint_as_the_same_file_again(headless_file: Path) -> None:
    spec = spec_of("alexnet", weights=str(headless_file))
    first = load(spec, partial_for=[FEATURES]).weights_sha256
    assert load(spec, partial_for=["features.0"]).weights_sha256 == first


def test_load__partial_follows_the_order_of_execution(tmp_path: Path) -> None:
    # In a ResNet the shortcut comes after the branch; layer2.0.relu_1 needs it, layer2.0.bn2 does not.
    module = models.resnet18(weights=None)
    early = ("conv1", "bn1", "layer1", "layer2.0.conv", "layer2.0.bn")
    state = {key: value for key, value in module.state_dict().items() if key.startswith(early)}
    save_state(state, tmp_path / "w.safetensors")
    spec = spec_of("resnet18", weights=str(tmp_path / "w.safetensors"))
    assert load(spec, partial_for=["layer2.0.bn2"]).classes is None
    with pytest.raises(NetworkError, match=r"misses layer2\.0\.downsample\.0\.weight"):
        load(spec, partial_for=["layer2.0.relu_1"])


def test_load__partial_needs_parts_that_are_used_without_being_called(tmp_path: Path) -> None:
    # Swin's attention takes the weights of its linear layers, whose forward never runs.
    spec = spec_of("swin_t", preprocessing=Preprocessing(crop=64))
    state = dict(models.swin_t(weights=None).state_dict())
    used = "features.1.0.attn.qkv.weight"
    first = {key: value for key, value in state.items() if key.startswith(("features.0", "features.1.0"))}
    save_state(first, tmp_path / "a.safetensors")
    save_state({key: value for key, value in state.items() if key != used}, tmp_path / "b.safetensors")
    wanted = ["features.1.0.mlp.0"]
    assert load(spec, weights=str(tmp_path / "a.safetensors"), partial_for=wanted).classes is None
    with pytest.raises(NetworkError, match=f"misses {re.escape(used)}"):
        load(spec, weights=str(tmp_path / "b.safetensors"), partial_for=wanted)


def test_load__partial_with_all_weights_still_classifies(convnet_file: Path) -> None:
    network = load(CONVNET, weights=str(convnet_file), partial_for=["relu1"])
    assert network.classes == 10
    assert network.notes == []


def test_load__partial_names_an_unknown_layer(convnet_file: Path) -> None:
    with pytest.raises(NetworkError, match="dneuro:convnet has no layer 'relu3'") as caught:
        load(CONVNET, weights=str(convnet_file), partial_for=["relu3"])
    assert "relu1" in str(caught.value.hint)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_load__never_takes_another_device(device: str) -> None:
    with pytest.raises(NetworkError, match="device") as caught:
        load(CONVNET.model_copy(update={"device": device}))
    assert caught.value.hint == "device: cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_load__on_a_gpu(convnet_file: Path, headless_file: Path) -> None:
    here = load(CONVNET, weights=str(convnet_file))
    spec = CONVNET.model_copy(update={"device": "cuda"})
    there = load(spec, weights=str(convnet_file))
    assert there.weights_sha256 == here.weights_sha256 == load(spec).weights_sha256
    images = torch.rand(4, 1, 28, 28)
    with tap(here.module, ["relu2"]) as one, tap(there.module, ["relu2"]) as other:
        outputs = other(images)[0]["relu2"]
        assert outputs.is_cuda
        torch.testing.assert_close(outputs.cpu(), one(images)[0]["relu2"], rtol=1e-2, atol=1e-3)
    partial = load(spec_of("alexnet", weights=str(headless_file), device="cuda"), partial_for=[FEATURES])
    with tap(partial.module, [FEATURES]) as tapped:
        assert tapped(torch.zeros(1, 3, 224, 224))[0][FEATURES].is_cuda
