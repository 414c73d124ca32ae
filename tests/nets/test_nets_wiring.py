"""Weights between layers against what the network does with a single impulse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import dneuro as dn
from dneuro.errors import NetworkError

CODE = """
from torch import nn
def make():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(6 * 3 * 3, 5), nn.ReLU(),
    )
class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
    def forward(self, x):
        return self.three(self.one(x) + 1) + 0 * self.two(x)
def branch():
    return Branched()
"""
PREPROCESSING = {"resize": [8, 8]}


@pytest.fixture
def network(tmp_path) -> dict:  # type: ignore[no-untyped-def, type-arg]
    (tmp_path / "mine.py").write_text(CODE)
    return {"name": f"python:{tmp_path / 'mine.py'}:make", "weights": "none", "preprocessing": PREPROCESSING}


def test_weights_between__grouped_convolutions_are_written_out(network: dict) -> None:  # type: ignore[type-arg]
    found = dn.weights_between(network, source="1", target="4")
    assert found.attrs["groups"] == 2
    assert found.shape == (6, 4, 3, 3)
    assert not found.values[:3, 2:].any()
    assert not found.values[3:, :2].any()
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(found.values))
    from dneuro.nets.load import load
    from dneuro.spec import NetworkSpec

    module = load(NetworkSpec.model_validate(network)).module
    x = torch.rand(2, 4, 6, 6)
    with torch.no_grad():
        its = module.get_submodule("3")(module.get_submodule("2")(x))
        zero = module.get_submodule("3")(module.get_submodule("2")(torch.zeros_like(x)))
        torch.testing.assert_close(its - zero, conv(x), rtol=1e-4, atol=1e-5)


def test_weights_between__a_linear_layer_behind_positions_keeps_them(network: dict) -> None:  # type: ignore[type-arg]
    found = dn.weights_between(network, source="5", target="9")
    assert found.sizes == {"channel": 5, "source_channel": 6, "y": 3, "x": 3}
    from dneuro.nets.load import load
    from dneuro.spec import NetworkSpec

    weight = load(NetworkSpec.model_validate(network)).module.get_submodule("8").weight
    np.testing.assert_array_equal(found.values.reshape(5, -1), weight.numpy().astype("f8"))


def test_weights_between__refuses_what_is_no_single_step(network: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(NetworkError, match="2 modules with weights"):
        dn.weights_between(network, source="1", target="9")
    with pytest.raises(NetworkError, match="does not come before"):
        dn.weights_between(network, source="4", target="1")
    branched = {**network, "name": network["name"].replace("make", "branch")}
    with pytest.raises(NetworkError, match="is not made of"):
        dn.weights_between(branched, source="one", target="three")


def test_connections__lists_the_strongest_sources() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 7, 3, 3))
    weights = xr.DataArray(values, dims=("channel", "source_channel", "y", "x"))
    found = dn.connections(weights, k=3)
    strength = np.linalg.norm(values.reshape(5, 7, 9), axis=2)
    np.testing.assert_allclose(found["strength"], strength)
    np.testing.assert_array_equal(found["strongest"], np.argsort(-strength, axis=1)[:, :3])
    signed = values.sum(axis=(2, 3))[np.arange(5), strength.argmax(axis=1)]
    np.testing.assert_allclose(found["strongest_signed"][:, 0], signed)
    np.testing.assert_allclose(found["share"], np.sort(strength**2)[:, -3:].sum(1) / (strength**2).sum(1))


def test_connections__follow_directions_back() -> None:
    rng = np.random.default_rng(1)
    weights = xr.DataArray(rng.normal(size=(4, 6, 3, 3)), dims=("channel", "source_channel", "y", "x"))
    vector = xr.DataArray(rng.normal(size=(2, 4, 5, 5)), dims=("component", "channel", "y", "x"))
    found = dn.connections(weights, directions=vector)
    back = np.einsum("kc,csyx->ksyx", vector.values.mean(axis=(2, 3)), weights.values)
    np.testing.assert_allclose(found["strength"], np.sqrt((back**2).sum(axis=(2, 3))))
    np.testing.assert_allclose(found["signed"], back.sum(axis=(2, 3)))
    with pytest.raises(dn.DneuroError, match="do not fit"):
        dn.connections(weights, directions=vector[:, :3])
