from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dneuro.errors import NetworkError
from dneuro.nets.describe import classifies, layers
from dneuro.nets.load import load
from dneuro.nets.taps import tap
from dneuro.nets.train import train
from dneuro.nets.weights import save_state, state_sha256
from dneuro.spec.network import NetworkSpec, Preprocessing

GREY = Preprocessing(resize=(12, 10), color="grey")

SMALL = """
    from __future__ import annotations
    from dataclasses import dataclass
    from torch import nn

    made = []

    @dataclass
    class Widths:
        first: int = 3

    class Net(nn.Module):
        def __init__(self, classes=4):
            super().__init__()
            self.conv = nn.Conv2d(1, Widths().first, 3)
            self.act = nn.ReLU()
            self.fc = nn.Linear(3, classes)
            made.append(self)

        def forward(self, x):
            x = self.act(self.conv(x))
            if float(x.detach().abs().sum()) < 0:  # a decision over numbers: shapes alone are not enough
                return None
            return self.fc(x.amax((2, 3)))

    def make(classes=4):
        return Net(classes)

    def bare():
        return Net()

    def said():
        net = Net()
        net.preprocessing = {"resize": [12, 10], "color": "grey", "mean": 0.5}
        return net

    class Says(Net):
        def preprocessing(self):
            return {"resize": 12, "crop": 8, "color": "grey"}

    network = Net()
    number = 7

    def fails():
        raise ValueError("no weights here")

    def tensor():
        return network.fc.weight

    def wrongly():
        net = Net()
        net.preprocessing = {"resize": 12, "croop": 8}
        return net
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(textwrap.dedent(SMALL))
    return path


def spec(file: Path, factory: str = "make", **settings: Any) -> NetworkSpec:
    return NetworkSpec(name=f"python:{file}:{factory}", **{"preprocessing": GREY, **settings})


def test_python__a_file_with_a_factory(file: Path) -> None:
    network = load(spec(file, weights="none", seed=3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        namespace: dict[str, Any] = {"__name__": "elsewhere"}
        sys.modules["elsewhere"] = type(sys)("elsewhere")
        try:
            exec(compile(file.read_text(), "elsewhere", "exec"), namespace)
            torch.manual_seed(3)
            reference = namespace["make"]().eval()
        finally:
            del sys.modules["elsewhere"]
    images = torch.rand(5, 1, 12, 10)
    with torch.inference_mode():
        assert torch.equal(network.module(images), reference(images))
    assert network.weights_sha256 == state_sha256(reference.state_dict())
    assert (network.classes, network.input_shape, network.preprocessing) == (4, (1, 12, 10), GREY)
    assert network.notes == ["the weights are random (seed 3)"]
    assert not network.module.training
    assert not any(part.requires_grad for part in network.module.parameters())
    with tap(network.module, ["act"], dims=network.dims) as tapped:
        assert tapped(images)[0]["act"].shape == (5, 3, 10, 8)


def test_python__its_layers_are_described(file: Path) -> None:
    found = layers(spec(file))
    assert {name: (layer.shape, layer.dims) for name, layer in found.items()} == {
        "conv": ((3, 10, 8), ("channel", "y", "x")),
        "act": ((3, 10, 8), ("channel", "y", "x")),
        "fc": ((4,), ("channel",)),
    }
    assert found["act"].field is not None
    assert found["act"].field.size == (3, 3)
    assert classifies(spec(file)) == 4


def test_python__default_weights_are_those_it_comes_with(file: Path) -> None:
    network = load(spec(file, "said"))
    assert network.notes == [f"the weights are those that python:{file}:said returns (seed 0)"]
    assert network.weights_sha256 == load(spec(file, "said", weights="none")).weights_sha256


def test_python__weights_from_a_file(file: Path, tmp_path: Path) -> None:
    state = load(spec(file, seed=9)).module.state_dict()
    save_state(state, tmp_path / "w.safetensors")
    network = load(spec(file, weights=str(tmp_path / "w.safetensors")))
    assert network.weights_sha256 == state_sha256(state)
    assert network.notes == []
    save_state({key: state[key] for key in ("conv.weight", "conv.bias")}, tmp_path / "part.safetensors")
    part = spec(file, weights=str(tmp_path / "part.safetensors"))
    with pytest.raises(NetworkError, match=r"misses fc\.weight"):
        load(part)
    network = load(part, partial_for=["act"])
    assert network.classes is None
    assert network.module.fc.weight.is_meta  # not what the factory drew at random
    with tap(network.module, ["act"]) as tapped:
        assert tapped(torch.zeros(2, 1, 12, 10))[0]["act"].shape == (2, 3, 10, 8)


def test_python__classes_are_handed_to_the_factory(file: Path) -> None:
    assert load(spec(file, classes=6)).classes == 6
    assert load(spec(file, "Net", classes=6)).classes == 6
    with pytest.raises(NetworkError, match=r"bare takes no classes=, the job says classes: 6"):
        load(spec(file, "bare", classes=6))


def test_python__its_own_preprocessing(file: Path) -> None:
    said = load(spec(file, "said", preprocessing=None)).preprocessing
    assert said == Preprocessing(resize=(12, 10), color="grey", mean=(0.5,))
    assert load(spec(file, "said")).preprocessing == GREY  # the job's wins
    assert load(spec(file, "Says", preprocessing=None)).input_shape == (1, 8, 8)
    with pytest.raises(NetworkError, match=r"becomes the input of python:.*:make is not known") as caught:
        load(spec(file, preprocessing=None))
    assert "preprocessing: {resize: 256, crop: 224" in str(caught.value.hint)
    with pytest.raises(NetworkError, match=r"own preprocessing\.croop cannot be used"):
        load(spec(file, "wrongly", preprocessing=None))


def test_python__the_size_may_be_left_to_the_pictures(file: Path) -> None:
    free = spec(file, preprocessing=Preprocessing(color="grey"))
    with pytest.raises(NetworkError, match="shape of the input"):
        layers(free)
    assert layers(free, (1, 20, 30))["conv"].shape == (3, 18, 28)
    assert load(free, input_shape=(1, 20, 30)).input_shape == (1, 20, 30)


def test_python__can_be_trained(file: Path) -> None:
    images = np.random.default_rng(0).random((12, 1, 12, 10), dtype=np.float32)
    settings: dict[str, Any] = {"epochs": 1, "batch": 4, "learning_rate": 0.1, "seed": 0}
    state, history = train(spec(file, weights="none"), images, np.arange(12) % 4, **settings)
    assert set(state) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}
    assert len(history) == 1


def test_python__a_module_on_the_path(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "dneuro_test_nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "small.py").write_text(file.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    named = NetworkSpec(name="python:dneuro_test_nets.small:make", weights="none", preprocessing=GREY)
    network = load(named)
    assert network.weights_sha256 == load(spec(file, weights="none")).weights_sha256
    assert network.identity == load(spec(file, weights="none")).identity  # the same code


def test_python__identity_follows_the_code_not_its_place(file: Path, tmp_path: Path) -> None:
    first = load(spec(file)).identity
    assert first == load(spec(file)).identity
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "other.py"
    moved.write_text(file.read_text())
    assert load(spec(moved)).identity == first
    assert load(spec(file, "bare")).identity != first
    moved.write_text(file.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    changed = load(spec(moved))
    assert changed.identity != first
    assert layers(spec(moved))["act"].kind == "Tanh"  # changed within the second, and seen


def test_python__a_file_leaves_other_modules_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "small", sentinel := type(sys)("small"))
    before = set(sys.modules)
    path = list(sys.path)
    load(spec(file))
    load(spec(file))
    added = set(sys.modules) - before
    assert sys.modules["small"] is sentinel
    assert [name.startswith("_dneuro_network_") for name in added] == [True]  # run once
    assert sys.path == path
    assert not (file.parent / "__pycache__").exists()


@pytest.mark.parametrize(
    ("factory", "message", "hint"),
    [
        ("mak", r"there is no 'mak' in it", "did you mean 'make'"),
        ("number", r"number is a int, not a function", "torch.nn.Module"),
        ("network", r"network is a network, not a function", "def make_network(): return network"),
        ("fails", r"calling it failed: ValueError: no weights here", "without arguments"),
        ("tensor", r"returns a Parameter, not a torch\.nn\.Module", "module itself"),
    ],
)
def test_python__says_what_is_wrong_with_a_factory(file: Path, factory: str, message: str, hint: str) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        load(spec(file, factory))
    assert str(file) in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("import sys; sys.exit(3)", "failed: SystemExit: 3", "without arguments"),
        ("1 / 0", "failed: ZeroDivisionError: division by zero", "without arguments"),
        ("def make(:", "failed: SyntaxError", "without arguments"),
        ("import beside", "imports beside, a file beside it", "PYTHONPATH="),
        ("import dneuro_no_such_module", "failed: ModuleNotFoundError: No module named", "without arguments"),
    ],
)
def test_python__says_what_is_wrong_with_a_file(tmp_path: Path, content: str, message: str, hint: str) -> None:
    (tmp_path / "beside.py").touch()
    path = tmp_path / "wrong.py"
    path.write_text(content)
    before = set(sys.modules)
    with pytest.raises(NetworkError, match=message) as caught:
        load(spec(path))
    assert hint in str(caught.value.hint)
    assert not any(name.startswith("_dneuro") for name in set(sys.modules) - before)


def test_python__says_what_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"cannot read .*none\.py: No such file"):
        load(spec(tmp_path / "none.py"))
    with pytest.raises(NetworkError, match="there is no module 'dneuro_nothing' to import") as caught:
        load(NetworkSpec(name="python:dneuro_nothing.nets:make"))
    assert "PYTHONPATH" in str(caught.value.hint)
    assert "python:path/to/nets.py:make" in str(caught.value.hint)
    with pytest.raises(NetworkError, match=r"there is no module 'json\.nothing'"):
        load(NetworkSpec(name="python:json.nothing:make"))


def test_python__a_state_that_is_not_tensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "extra.py"
    path.write_text(textwrap.dedent("""
        from torch import nn

        class Extra(nn.Conv2d):
            def get_extra_state(self):
                return {"anything": 1}
            def set_extra_state(self, state):
                pass

        def make():
            return nn.Sequential(Extra(1, 2, 3))
    """))
    with pytest.raises(NetworkError, match=r"holds 0\._extra_state, which is no tensor"):
        load(spec(path))
