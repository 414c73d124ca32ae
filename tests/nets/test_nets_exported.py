from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.describe import layers, trace
from dneuro.nets.load import Network, load
from dneuro.nets.taps import tap
from dneuro.nets.train import train
from dneuro.nets.weights import save_state, state_sha256
from dneuro.spec.network import NetworkSpec, Preprocessing

PREPROCESSING = Preprocessing(resize=(16, 24))
Document = dict[str, Any]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn(self.conv(self.relu(x + 1)))
        branch += x
        return self.relu(branch)


class Whole(nn.Module):
    """A bit of everything: repeated modules, work in place, functional operations, constants, attention, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = Block(8)
        self.drop = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))
        self.register_buffer("scale", torch.full((8, 1, 1), 0.5), persistent=False)
        self.shift = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images) * self.scale + self.shift * torch.tensor([2.0])
        x = self.drop(self.block(self.block(x)))
        first, second = x.chunk(2, dim=1)
        x = torch.cat([nn.functional.gelu(first), second], 1)
        tokens = x.flatten(2).transpose(1, 2)
        mask = torch.zeros(tokens.shape[1], tokens.shape[1], device=x.device)
        tokens = tokens + self.attention(tokens, tokens, tokens, attn_mask=mask)[0]
        return self.head(tokens.reshape(images.shape[0] * 12, 8, 8).mean(1).view(images.shape[0], 12, 8)).mean(1)


def export(module: nn.Module, path: Path, *, dynamic: bool = True, batch: int = 2, **settings: Any) -> Path:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(module, (torch.randn(batch, 3, 16, 24),), dynamic_shapes=shapes)
    if settings.pop("decompose", False):
        program = program.run_decompositions()
    torch.export.save(program, path, **settings)
    return path


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Whole().eval()


@pytest.fixture(scope="module")
def file(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(module, tmp_path_factory.mktemp("exported") / "whole.pt2")


def spec(path: Path, **settings: Any) -> NetworkSpec:
    return NetworkSpec(name=f"export:{path}", **{"preprocessing": PREPROCESSING, **settings})


@pytest.fixture(scope="module")
def network(file: Path) -> Network:
    return load(spec(file, memory_format="contiguous"))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_export__computes_what_the_original_does(network: Network, module: nn.Module, batch: int) -> None:
    images = torch.randn(batch, 3, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), module(images), rtol=1e-5, atol=1e-6)


def test_export__layers_have_their_old_names_and_values(network: Network, module: nn.Module, file: Path) -> None:
    own, found = trace(module, (3, 16, 24), shapes=False).layers, layers(spec(file))
    known = ("Block", "Sequential")  # by their operations in the file
    own = {name: layer for name, layer in own.items() if layer.kind not in known}
    assert {"block.relu", "block.relu_1", "block.relu_2", "block.relu_3", "block.conv_1"} <= own.keys() <= found.keys()
    for name, layer in own.items():
        assert found[name].shape == layer.shape, name
        assert (found[name].kind, found[name].dims, found[name].field) == (layer.kind, layer.dims, layer.field), name
    assert [name for name in found if name in own] == list(own)
    images = torch.randn(3, 3, 16, 24)
    with tap(module, own) as one, tap(network.module, own) as other:
        expected, outputs = one(images)[0], other(images)[0]
    for name in own:
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert (expected["block.bn"] < 0).any()  # seen before the sum and the ReLU work in place


def test_export__operations_outside_modules_are_layers_too(network: Network, file: Path) -> None:
    found = layers(spec(file))
    kinds = {layer.kind for name, layer in found.items() if "." not in name}
    assert {"gelu", "mul", "add", "cat", "mean", "MultiheadAttention"} <= kinds
    assert not {"view", "permute", "transpose", "chunk", "sym_size"} & kinds
    gelu = next(name for name, layer in found.items() if layer.kind == "gelu")
    assert (found[gelu].shape, found[gelu].dims) == ((4, 8, 12), ("channel", "y", "x"))
    assert found["attention"].shape == (96, 8)  # a tuple in the original, of which one part is used
    images = torch.randn(2, 3, 16, 24)
    with tap(network.module, ["drop", gelu]) as tapped:
        outputs, _ = tapped(images)
    assert torch.equal(outputs[gelu], nn.functional.gelu(outputs["drop"][:, :4]))


def test_export__stops_after_the_last_wanted_layer(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    from dneuro.nets.program import Step

    ran: list[str] = []
    original = Step.run
    monkeypatch.setattr(Step, "run", lambda step, arguments: ran.append(step.name) or original(step, arguments))
    with tap(network.module, ["block.conv"]) as tapped:
        tapped(torch.randn(2, 3, 16, 24))
    assert ran[-1].startswith("conv2d")
    assert sum(name.startswith("conv2d") for name in ran) == 2


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.11 warns of itself
def test_export__decomposed_graphs_work_too(module: nn.Module, tmp_path: Path) -> None:
    path = export(module, tmp_path / "core.pt2", decompose=True)
    network = load(spec(path, memory_format="contiguous"))
    images = torch.randn(3, 3, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), module(images), rtol=1e-4, atol=1e-5)
    assert {"stem", "block.bn", "block.relu_3", "head.1"} <= network.dims.keys()


def test_export__weights_are_the_originals(network: Network, module: nn.Module, file: Path, tmp_path: Path) -> None:
    assert network.weights_sha256 == state_sha256(module.state_dict())
    assert network.module.state_dict().keys() == module.state_dict().keys()
    assert network.classes == 5
    assert network.notes == []
    assert layers(spec(file))["block.bn"].parameters == ("block.bn.weight", "block.bn.bias")
    other = Whole().state_dict()
    save_state(other, tmp_path / "other.safetensors")
    assert load(spec(file), weights=str(tmp_path / "other.safetensors")).weights_sha256 == state_sha256(other)


class Viewed(nn.Module):
    """Sees its activations as rows, and may write into these."""

    def __init__(self, write: bool) -> None:
        super().__init__()
        self.conv, self.write = nn.Conv2d(3, 4, 3), write

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        rows = x.view(x.shape[0], -1)
        if self.write:
            rows += 1
        return x.mean((2, 3)) + rows.amax(1, keepdim=True)


@pytest.mark.parametrize(("write", "expected"), [(False, "channels_last"), (True, "contiguous")])
def test_export__a_view_becomes_a_copy_only_if_nothing_is_written(tmp_path: Path, write: bool, expected: str) -> None:
    module = Viewed(write).eval()
    network = load(spec(export(module, tmp_path / "viewed.pt2")))
    assert network.memory_format == expected
    images = torch.randn(2, 3, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(network.module(images), module(images))


def test_export__identity_is_the_graph_not_the_weights(file: Path, network: Network, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt2"
    copy.write_bytes(file.read_bytes())
    assert load(spec(copy)).identity == network.identity
    changed = rewrite(file, tmp_path / "changed.pt2", lambda document: gelu_to(document, "torch.ops.aten.silu.default"))
    other = load(spec(changed))
    assert other.weights_sha256 == network.weights_sha256
    assert other.identity != network.identity


def test_export__input_and_preprocessing(file: Path) -> None:
    bare = spec(file, preprocessing=None)
    assert layers(bare)["stem"].shape == (8, 8, 12)  # the file says for what size
    with pytest.raises(NetworkError, match="how a picture becomes the input"):
        load(bare)
    with pytest.raises(NetworkError, match="exported for images of 16×24, preprocessing makes 32×32") as caught:
        load(spec(file, preprocessing=Preprocessing(crop=32)))
    assert "dynamic height and width" in str(caught.value.hint)
    with pytest.raises(NetworkError, match="takes images of 3 colour channels"):
        load(spec(file, preprocessing=Preprocessing(resize=(16, 24), color="grey")))
    with pytest.raises(NetworkError, match="has 5 outputs, the job says classes: 7"):
        load(spec(file, classes=7))


def test_export__cannot_be_random_nor_trained(file: Path) -> None:
    with pytest.raises(NetworkError, match="comes with its weights"):
        load(spec(file, weights="none"))
    with pytest.raises(NetworkError, match="nor be trained"):
        import numpy as np

        images = np.zeros((4, 3, 16, 24), np.float32)
        train(spec(file), images, np.arange(4), epochs=1, batch=2, learning_rate=0.1, seed=0)


@pytest.mark.parametrize(("batch", "said"), [(1, "exactly 1 image$"), (4, "exactly 4 images$")])
def test_export__for_one_number_of_images_is_refused(tmp_path: Path, batch: int, said: str) -> None:
    path = export(nn.Conv2d(3, 4, 3).eval(), tmp_path / "fixed.pt2", dynamic=False, batch=batch)
    with pytest.raises(NetworkError) as caught:
        layers(spec(path))
    assert caught.value.message.split("\n")[0].endswith(said.strip("$"))
    assert "Dim.DYNAMIC" in str(caught.value.hint)


def test_export__limits_of_the_batch_are_kept(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 16, 24)
    most = torch.export.Dim("batch", max=6)
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (images,), dynamic_shapes={"input": {0: most}})
    torch.export.save(program, tmp_path / "six.pt2")
    network = load(spec(tmp_path / "six.pt2"))
    assert network.module(torch.randn(6, 3, 16, 24)).shape == (6, 4, 14, 22)
    with pytest.raises(NetworkError, match="exported for batch 0 to 6, not 7") as caught:
        network.module(torch.randn(7, 3, 16, 24))
    assert caught.value.hint == "extract: {batch: 6}"


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (Two(), 2, "takes 2 inputs, not one batch of images"),
        (Drops(), 1, "training mode"),
        (nn.Sequential(nn.BatchNorm2d(3)).train(), 1, "changes its own state|training mode"),
        (Branches(), 1, "not among the operators"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_export__says_why_a_network_cannot_be_used(
    tmp_path: Path, module: nn.Module, inputs: int, message: str
) -> None:
    images = tuple(torch.randn(2, 3, 16, 24) for _ in range(inputs))
    torch.export.save(torch.export.export(module, images), tmp_path / "odd.pt2")
    with pytest.raises(NetworkError, match=message):
        layers(spec(tmp_path / "odd.pt2"))


# What a hostile file may try.


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[Document], object] | None = None,
    records: dict[str, bytes] | None = None,
    compress: bool = False,
) -> Path:
    """Copy an archive with its graph changed and records added or replaced."""
    records = records or {}
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            content = records.pop(name.partition("/")[2], old.read(name))
            if name.endswith("models/model.json") and change is not None:
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            new.writestr(name, content)
        for name, content in records.items():
            new.writestr(f"{root}/{name}", content)
    return target


def nodes(document: Document) -> list[Document]:
    return document["graph_module"]["graph"]["nodes"]


def gelu_to(document: Document, target: str, **arguments: Any) -> None:
    node = next(node for node in nodes(document) if "gelu" in node["target"])
    node["target"] = target
    node["inputs"] += [{"name": name, "arg": argument, "kind": 2} for name, argument in arguments.items()]


class Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch evil-was-here",))


COMMAND = "__import__('os').system('touch evil-was-here')"


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",  # maps any file, and makes it
        "torch.ops.aten.save.default",  # TorchScript's: writes files
        "torch.ops.aten.set_.source_Storage_storage_offset",
        "torch.ops.aten._print.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.prims.device_put.default",
        "torch.ops.higher_order.cond",
        "torch.ops.aten.gelu.default.__call__",
        "torch.load",
        "torch.hub.load",
        "os.system",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.__loader__",
        "builtins.eval",
        COMMAND,
    ],
)
def test_export__calls_nothing_but_known_operators(
    file: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewrite(file, tmp_path / "calls.pt2", lambda document: gelu_to(document, target))
    with pytest.raises(NetworkError, match="not among the operators that dneuro runs") as caught:
        load(spec(path))
    assert target in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["calls.pt2"]


def test_export__runs_no_code_that_torch_would_run(
    file: Path, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def poison(document: Document) -> None:
        document["guards_code"] = [COMMAND]
        for value in document["graph_module"]["graph"]["sym_int_values"].values():
            if "as_expr" in value:
                value["as_expr"]["expr_str"] = COMMAND
        for node in nodes(document):
            node["metadata"]["torch_fn"] = COMMAND
            node["metadata"]["from_node"] = COMMAND
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = COMMAND

    path = rewrite(file, tmp_path / "code.pt2", poison, {"data/sample_inputs/model.pt": pickle.dumps(Evil())})
    images = torch.randn(2, 3, 16, 24)
    with torch.inference_mode():
        assert torch.equal(load(spec(path, memory_format="contiguous")).module(images), network.module(images))
    assert not Path("evil-was-here").exists()


def test_export__refuses_what_is_pickled(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO()
    torch.save(Evil(), content)
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        for folder in ("weights", "constants"):
            config = json.loads(archive.read(f"{root}/data/{folder}/model_{folder}_config.json"))
            first = next(iter(config["config"].values()))
            first["use_pickle"] = True
            records = {
                f"data/{folder}/model_{folder}_config.json": json.dumps(config).encode(),
                f"data/{folder}/{first['path_name']}": content.getvalue(),
            }
            path = rewrite(file, tmp_path / f"{folder}.pt2", records=records)
            with pytest.raises(NetworkError, match="is pickled, and unpickling may run any code"):
                load(spec(path))
    assert not Path("evil-was-here").exists()


def out_of_bounds(document: Document) -> None:
    for meta in document["config"].values():
        for size in meta["tensor_meta"]["sizes"][:1]:
            size["as_int"] = 10**9


@pytest.mark.parametrize(
    "what", ["short", "text", "empty", "zip", "compressed", "bounds", "compiled", "older", "schema", "nested"]
)
def test_export__names_a_file_it_cannot_use(file: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / f"{what}.pt2"
    if what == "short":
        path.write_bytes(file.read_bytes()[:-200])
    elif what in ("text", "empty"):
        path.write_bytes(b"" if what == "empty" else b"not a network\n" * 100)
    elif what == "zip":
        torch.save({"a": torch.zeros(3)}, path)
    elif what == "compressed":
        rewrite(file, path, compress=True)
    elif what == "bounds":
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("model_weights_config.json"))
            config = json.loads(archive.read(name))
        out_of_bounds(config)
        rewrite(file, path, records={"data/weights/model_weights_config.json": json.dumps(config).encode()})
    elif what == "compiled":
        rewrite(file, path, records={"data/aotinductor/model/code.so": b"\x7fELF"})
    elif what == "older":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("serialized_exported_program.json", "{}")
    elif what == "schema":
        rewrite(file, path, lambda document: document["schema_version"].update(major=9))
    else:
        rewrite(file, path, records={"models/model.json": b"[" * 100_000})
    with pytest.raises(NetworkError, match=rf"cannot use .*{what}\.pt2: ") as caught:
        load(spec(path))
    assert "export" in str(caught.value.hint)


def test_export__says_what_is_wrong_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"none\.pt2 does not exist"):
        load(spec(tmp_path / "none.pt2"))
    with pytest.raises(NetworkError, match="is a folder"):
        load(spec(tmp_path))
