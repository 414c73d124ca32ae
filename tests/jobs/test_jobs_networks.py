"""Jobs over networks of the user's own: their layers arrive labelled, and other code is another network."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import FingerprintError, NetworkError
from dneuro.images.preprocess import to_input, view
from dneuro.images.sources import open_source
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.store.opening import open_store

MakeJob = Callable[..., JobSpec]

CODE = """
import torch
from torch import nn


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.norm = nn.LayerNorm(6)
        self.embed = nn.Linear(6, 4)
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        last = self.norm(self.conv(images).permute(0, 2, 3, 1))
        tokens = self.embed(last.flatten(1, 2))
        return self.head(tokens.mean(1))


def make():
    return Mixed()
"""


FOURIER = """
class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x)


"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def settings(file: Path, *layers: str) -> dict[str, Any]:
    preprocessing = {"color": "grey", "resize": [28, 28]}
    return {"network": {"name": f"python:{file}:make", "preprocessing": preprocessing}, "layers": list(layers)}


def reference(file: Path, job: JobSpec) -> tuple[nn.Module, Tensor]:
    """The same network, made by hand, and its input."""
    source, how = open_source(job.images), job.network.preprocessing
    assert how is not None
    images = np.stack([to_input(view(source.read(i)[0], how), how) for i in range(len(source.manifest))])
    scope: dict[str, Any] = {"__name__": "mine"}
    exec(file.read_text(), scope)
    torch.manual_seed(0)
    return scope["make"]().eval(), torch.from_numpy(images)


def test_job__of_a_python_file_stores_layers_with_their_channels_first(
    make_job: MakeJob, threads: ThreadExecutor, file: Path
) -> None:
    job = make_job(**settings(file, "norm", "embed", "head"))
    run_job(job, threads)
    store = open_store(job.store)
    module, images = reference(file, job)
    with torch.inference_mode():
        norm = module.norm(module.conv(images).permute(0, 2, 3, 1))
        embed = module.embed(norm.flatten(1, 2))
        expected = {
            "norm": norm.permute(0, 3, 1, 2),  # (image, channel, y, x)
            "embed": embed.transpose(1, 2)[..., None],  # tokens along y
            "head": module.head(embed.mean(1)),
        }
    for name, wanted in expected.items():
        layer = store[name]
        assert layer.dims == ("image", "channel", "y", "x")[: wanted.ndim]
        np.testing.assert_allclose(layer.values, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_job__of_a_python_file_that_changed_is_another_network(
    make_job: MakeJob, threads: ThreadExecutor, file: Path
) -> None:
    job = make_job(**settings(file, "head"))
    run_job(job, threads)
    file.write_text(CODE.replace("tokens.mean(1)", "tokens.amax(1)"))
    with pytest.raises(FingerprintError, match="network: python:make"):
        run_job(job, threads)


def test_job__that_finds_other_code_on_a_worker_ends_with_the_reason(
    make_job: MakeJob, threads: ThreadExecutor, file: Path
) -> None:
    from dneuro.jobs.planning import plan_job

    planned = plan_job(make_job(**settings(file, "head")), threads)
    file.write_text(CODE.replace("tokens.mean(1)", "tokens.amax(1)"))
    with pytest.raises(NetworkError, match=r"is another network on .* than where the job was planned"):
        run_job(planned, threads)


def test_job__refuses_a_layer_whose_axes_are_not_known(make_job: MakeJob, threads: ThreadExecutor, file: Path) -> None:
    file.write_text(CODE.replace("last.flatten(1, 2)", "last.reshape(-1, 13, 78).reshape(-1, 169, 6)").replace(
        "self.norm(self", "self.fold(self.norm(self").replace("(0, 2, 3, 1))", "(0, 2, 3, 1)))").replace(
        "self.norm = ", "self.fold = nn.Flatten(2, 3); self.norm = "))  # fmt: skip
    with pytest.raises(NetworkError, match=r"layer fold .Flatten. gives .*which of these are channels"):
        run_job(make_job(**settings(file, "fold")), threads)


def test_plan__refuses_a_layer_of_complex_numbers(make_job: MakeJob, threads: ThreadExecutor, file: Path) -> None:
    from dneuro.jobs.planning import plan_job

    file.write_text(CODE.replace("class Mixed", FOURIER + "class Mixed").replace(
        "self.embed = ", "self.fourier = Fourier(); self.embed = ").replace(
        "self.conv(images)", "self.fourier(self.conv(images)).abs()"))  # fmt: skip
    with pytest.raises(NetworkError, match=r"layer fourier .Fourier. yields complex numbers") as caught:
        plan_job(make_job(**settings(file, "fourier")), threads)
    assert "dneuro layers" in str(caught.value.hint)
    run_job(make_job(**settings(file, "head")), threads)


@pytest.mark.parametrize(
    ("name", "why"),
    [("images", "has a part"), ("statistics", "has a part"), ("labels", "has a part"), ("a/b", "with '/'"),
     ("a\\b", r"with '\\\\'")],
)  # fmt: skip
def test_plan__refuses_a_layer_whose_name_a_store_cannot_have(
    make_job: MakeJob, threads: ThreadExecutor, file: Path, name: str, why: str
) -> None:
    from dneuro.jobs.planning import plan_job

    called = f"getattr(self, {name!r})"
    file.write_text(CODE.replace("self.embed = ", f"self.add_module({name!r}, nn.Identity()); self.embed = ").replace(
        "self.conv(images)", f"{called}(self.conv(images))"))  # fmt: skip
    with pytest.raises(NetworkError, match=f"{re.escape(repr(name))} cannot be kept in a store: .*{why}") as caught:
        plan_job(make_job(**settings(file, "head", name)), threads)
    assert "another name" in str(caught.value.hint)
    assert not Path(make_job().store).exists()
    assert plan_job(make_job(**settings(file, "head")), threads).units == 3


@pytest.mark.parametrize(("asked", "used"), [("auto", "channels_last"), ("contiguous", "contiguous")])
def test_store__names_the_memory_format_that_was_used(
    make_job: MakeJob, threads: ThreadExecutor, asked: str, used: str
) -> None:
    network = {"name": "dneuro:convnet", "weights": "none", "memory_format": asked}
    store = open_store(run_job(make_job(layers=["fc"], network=network), threads).store)
    assert store.tree.attrs["dneuro"]["memory_format"] == used
