"""A compiled network yields what the network yields, or says that it cannot be compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dneuro.errors import NetworkError
from dneuro.nets.convnet import ConvNet
from dneuro.nets.load import Network, load
from dneuro.nets.running import Runner
from dneuro.spec.network import NetworkSpec, Preprocessing

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile takes a C++ compiler on a CPU")
LAYERS = ("relu1", "conv2")


@pytest.fixture(scope="module")
def networks() -> tuple[Network, Network]:
    settings: dict[str, Any] = {"name": "dneuro:convnet", "weights": "none", "seed": 3}
    return load(NetworkSpec(**settings)), load(NetworkSpec(**settings, compile=True))


def pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28, 1), np.uint8)


def run(network: Network, images: NDArray[np.uint8], *, to_end: bool = True) -> tuple[dict[str, Any], Any]:
    with Runner(network, LAYERS, to_end=to_end, batch=8, pooled=["relu1"]) as runner:
        return runner.start(images).result()


@pytest.mark.parametrize("count", [8, 3])  # a batch that is not full is filled up, and nobody sees it
def test_compiled__equals_the_network(networks: tuple[Network, Network], count: int) -> None:
    (expected, classes), (found, found_classes) = (run(network, pixels(count)) for network in networks)
    np.testing.assert_allclose(found["relu1"].values, expected["relu1"].values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["relu1"].positions, expected["relu1"].positions)
    assert found["conv2"].shape == (count, 20, 8, 8)
    np.testing.assert_allclose(found["conv2"], expected["conv2"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found_classes, classes)


def test_compiled__is_made_once_for_all_runners(networks: tuple[Network, Network]) -> None:
    compiled = networks[1]
    run(compiled, pixels(8))
    before = dict(compiled.programs)
    run(compiled, pixels(5))
    assert compiled.programs == before
    assert len(before) == 1


COLOURED = """
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
"""


SPOILT = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 5)

    def forward(self, x):
        found = self.fc(x.flatten(1))
        return torch.where(x.amax((1, 2, 3))[:, None] > 0.99, torch.full_like(found, torch.nan), found)


def make():
    return Network()
"""


def test_compiled__says_which_images_have_no_class(tmp_path: Path) -> None:
    (tmp_path / "spoilt.py").write_text(SPOILT)
    how = Preprocessing(color="grey", resize=8, crop=8)
    network = load(NetworkSpec(name=f"python:{tmp_path}/spoilt.py:make", preprocessing=how, compile=True))
    images = np.random.default_rng(0).integers(0, 250, (5, 8, 8, 1), np.uint8)
    images[3, 2, 2] = 255
    with Runner(network, ["fc"], to_end=True, batch=8) as runner:
        outputs, classes = runner.start(images).result()
    assert classes is not None
    assert (classes < 0).tolist() == [False, False, False, True, False]
    assert np.isfinite(outputs["fc"]).all()


def test_compiled__is_made_once_for_batches_that_are_not_full(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    (tmp_path / "coloured.py").write_text(COLOURED)
    how = Preprocessing(resize=8, crop=8)
    network = load(NetworkSpec(name=f"python:{tmp_path}/coloured.py:make", preprocessing=how, compile=True))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    with Runner(network, ["1"], to_end=False, batch=8) as runner:
        full = runner.start(images).result()[0]["1"].copy()
        before = counters["stats"]["unique_graphs"]
        part = runner.start(images[:5]).result()[0]["1"]
    assert counters["stats"]["unique_graphs"] == before
    np.testing.assert_allclose(part, full[:5], rtol=1e-6, atol=1e-6)


def test_compiled__needs_no_weights_behind_the_last_layer(tmp_path: Path) -> None:
    whole = ConvNet().eval()
    kept = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("fc")}
    save_file(kept, tmp_path / "conv.safetensors")
    spec = NetworkSpec(name="dneuro:convnet", weights=str(tmp_path / "conv.safetensors"), compile=True)
    network = load(spec, partial_for=LAYERS)
    found, classes = run(network, pixels(8), to_end=False)
    assert classes is None
    inputs = torch.from_numpy(pixels(8)).permute(0, 3, 1, 2).float() / 255
    how = network.preprocessing
    with torch.inference_mode():
        expected = whole.conv2(whole.relu1(whole.pool1(whole.conv1((inputs - how.mean[0]) / how.std[0]))))
    np.testing.assert_allclose(found["conv2"], expected.numpy(), rtol=1e-4, atol=1e-4)


BRANCHING = """
from torch import nn


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu1, self.conv2 = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x):
        x = self.relu1(x)
        return self.conv2(x if x.sum() > 0 else -x).flatten(1)


def make():
    return Branching()
"""


def test_compiled__says_what_cannot_be_compiled(tmp_path: Path) -> None:
    (tmp_path / "branching.py").write_text(BRANCHING)
    grey = Preprocessing(color="grey", resize=(28, 28))
    spec = NetworkSpec(name=f"python:{tmp_path}/branching.py:make", preprocessing=grey, compile=True)
    network = load(spec, input_shape=(1, 28, 28))
    with pytest.raises(NetworkError, match="cannot be compiled") as caught:
        run(network, pixels(8), to_end=False)
    assert "from its numbers: leave network.compile out" in str(caught.value.hint)
    assert not network.programs
