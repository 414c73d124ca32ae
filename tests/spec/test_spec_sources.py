"""Steps about two layers, and what a job file may say of them."""

from __future__ import annotations

import pytest

from dneuro.errors import SpecError
from dneuro.spec import parse_job, parse_study
from dneuro.spec.series import SeriesSpec

HEAD = (
    "name: a\nimages: {source: digits}\nnetwork: {name: 'dneuro:convnet', weights: none}\nstore: a.zarr\n"
    "steps:\n  - extract: {layers: [relu1, relu2, fc]}\n"
)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("regression: {source: relu9}", "does not store layer 'relu9'"),
        ("regression: {ridge: -1}", "greater than or equal to 0|at least 0"),
        ("connections: {of: svd}", "no svd step named 'svd' comes before"),
        ("single_neurons: {standardize: neuron}", "neuron"),
        ("svd: {rank: 3, threshold_images: 6000}", "scales a threshold"),
        ("similar_places: {neighbours: 0}", "greater than 0|at least 1|more than 0"),
    ],
)
def test_steps__refuse_what_cannot_be(step: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_job(f"{HEAD}  - {step}\n", "a.yaml")


def test_steps__read_back_what_they_write() -> None:
    steps = (
        "  - svd: {threshold: 200, threshold_images: 6000}\n  - regression: {layer: fc, source: relu1, folds: 0}\n"
        "  - connections: {of: svd}\n  - similar_places\n  - single_neurons: {standardize: null}\n"
    )
    job = parse_job(HEAD + steps, "a.yaml")
    assert parse_job(job.model_dump_json(), "b.yaml") == job


def test_members__without_a_source_leave_the_step_out() -> None:
    text = (
        "name: a\nimages: {source: digits}\nnetworks:\n"
        "  one: {name: 'dneuro:convnet', weights: none}\n"
        "  other: {name: 'dneuro:convnet', weights: none, layers: [relu2, fc]}\nstore: a.zarr\n"
        "steps:\n  - extract: {layers: [relu1, fc]}\n  - svd: {layer: relu1, rank: 2}\n"
        "  - regression: {layer: fc, source: relu1}\n  - connections: {of: svd}\n"
    )
    series = parse_study(text, "a.yaml")
    assert isinstance(series, SeriesSpec)
    kinds = {name: [step.kind for step in job.steps] for name, job in series.members.items()}
    assert kinds == {"one": ["extract", "svd", "regression", "connections"], "other": ["extract"]}
