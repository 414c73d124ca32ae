"""Several networks on the command line: plan and layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dneuro.cli import app
from dneuro.errors import UsageError


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over two sets of random weights."""
    one = {"name": "dneuro:convnet", "weights": "none"}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({
        "name": "two", "images": {"source": "digits", "sample": 40}, "store": str(tmp_path / "two.zarr"),
        "networks": {"a": one, "b": {**one, "seed": 1}},
        "steps": [{"extract": {"layers": ["relu1", "fc"], "images_per_unit": 16}}],
    }))  # fmt: skip
    return path


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_plan__sums_up_the_members(job: Path) -> None:
    found: dict[str, Any] = json.loads(call("plan", job, "--json"))
    assert list(found["members"]) == ["a", "b"]
    assert found["disk_bytes"] == sum(plan["disk_bytes"] for plan in found["members"].values())
    assert found["forecasts"] == {}
    assert "drive" in found["sent"]
    shown = call("plan", job)
    for words in ("a:", "two-b: 40 images", "two: 2 members, one after the other; on disk"):
        assert words in shown
    assert not list(job.parent.glob("*.zarr"))


def test_layers__of_a_job_whose_members_are_one_network(job: Path) -> None:
    assert json.loads(call("layers", job, "--json"))[0]["name"] == "conv1"
    several = job.read_text().replace('"b": {"name": "dneuro:convnet"', '"b": {"name": "torchvision:alexnet"')
    job.write_text(several)
    with pytest.raises(UsageError, match="about several networks"):
        call("layers", job)
