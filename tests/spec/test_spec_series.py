"""A job over several networks or checkpoints: which members it has, and what is asked of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from dneuro.errors import SpecError
from dneuro.spec import ExtractStep, JobSpec, SeriesSpec, parse_study, read_study

CHECKPOINTS = """
name: training
images: {source: digits}
network: {name: "dneuro:convnet", weights: [runs/epoch-01.pt, runs/epoch-02.pt], classes: 10}
store: out/training.zarr
steps:
  - extract: {layers: [relu1, fc]}
  - svd: {rank: 2}
"""

NETWORKS = """
name: two
images: {source: digits}
networks:
  small: {name: "dneuro:convnet", weights: none}
  large: {name: "torchvision:alexnet", weights: none, seed: 3, layers: {features.12: {keep: max}, fc: }}
store: out/two
steps:
  - extract: {layers: [relu1, fc], batch: 8}
  - cooccurrence: {k: 5, layer: relu1}
  - similarity: {of: cooccurrence}
  - moments: {layer: [relu1, features.12]}
  - svd: {rank: 2}
"""


def series(text: str) -> SeriesSpec:
    found = parse_study(text)
    assert isinstance(found, SeriesSpec)
    return found


def test_series__checkpoints_are_members_named_after_their_files() -> None:
    members = series(CHECKPOINTS).members
    assert list(members) == ["epoch-01", "epoch-02"]
    first = members["epoch-01"]
    assert (first.name, first.store) == ("training-epoch-01", "out/training-epoch-01.zarr")
    assert (first.network.weights, first.network.classes) == ("runs/epoch-01.pt", 10)
    assert members["epoch-02"].network.weights == "runs/epoch-02.pt"
    assert [step.id for step in first.steps] == ["extract", "svd"]


def test_series__networks_may_have_layers_of_their_own() -> None:
    members = series(NETWORKS).members
    assert [job.store for job in members.values()] == ["out/two-small", "out/two-large"]
    small, large = members["small"], members["large"]
    assert list(small.extract.layers) == ["relu1", "fc"]
    assert {name: layer.keep for name, layer in large.extract.layers.items()} == {"features.12": "max", "fc": "full"}
    assert small.extract.batch == large.extract.batch == 8
    assert large.network.seed == 3
    assert [step.id for step in small.steps] == ["extract", "cooccurrence", "similarity", "moments", "svd"]
    assert [step.id for step in large.steps] == ["extract", "moments", "svd"], "its relu1 is counted by nobody"
    asked = [step.layers for job in (small, large) for step in job.steps if step.id == "moments"]  # type: ignore[attr-defined]
    assert asked == [["relu1"], ["features.12"]]


def test_series__is_told_from_a_job_by_what_it_names(tmp_path: Path) -> None:
    one = CHECKPOINTS.replace("[runs/epoch-01.pt, runs/epoch-02.pt]", "runs/epoch-01.pt")
    assert isinstance(parse_study(one), JobSpec)
    (tmp_path / "job.yaml").write_text(CHECKPOINTS)
    found = read_study(tmp_path / "job.yaml", ["steps.extract.batch=4", "store=elsewhere.zarr"])
    assert isinstance(found, SeriesSpec)
    for job in found.members.values():
        assert next(step for step in job.steps if isinstance(step, ExtractStep)).batch == 4
        assert job.store.startswith("elsewhere-epoch-0")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (CHECKPOINTS.replace("runs/epoch-02.pt", "other/epoch-01.pt"), "would give the member 'epoch-01'", "networks:"),
        (CHECKPOINTS.replace("[runs/epoch-01.pt, runs/epoch-02.pt]", "[]"), "weights: must not be empty", None),
        (NETWORKS.replace("store:", "network: {name: dneuro:convnet, weights: [a.pt]}\nstore:"), "either", "leave one"),
        (NETWORKS.replace("rank: 2", "rank: 2, layer: relu7"), r"steps\[4\].svd.layer: .*'relu7'", "relu1"),
        (NETWORKS.replace("features.12]", "features.13]"), "'features.13'", "features.12"),
        (NETWORKS.replace("  small:", "  a b:"), "is no name", "a-b"),
        (NETWORKS.replace("seed: 3", "sede: 3"), r"networks.large.sede: unknown key", "seed"),
        (CHECKPOINTS.replace("steps:", "steps:\n  - train: {epochs: 1}"), "trained already", "leave out"),
    ],
)
def test_series__says_what_is_wrong(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_study(text, "job.yaml")
    assert hint is None or hint in f"{caught.value.message} {caught.value.hint}"
