from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from dneuro import spec
from dneuro.spec import STEPS, JobSpec, PoolSpec, Preprocessing, ProfileSpec, Step, SvdStep, parse_job
from dneuro.spec.job import AnyStep

JOB = {
    "name": "demo",
    "images": {"source": "digits", "sample": 100},
    "network": {"name": "dneuro:convnet", "weights": "none", "preprocessing": {"color": "grey", "mean": 0.5}},
    "store": "demo.zarr",
    "steps": [
        "train",
        {"extract": {"layers": ["relu1", "fc"], "statistics": ["top_images"]}},
        {"svd": {"rank": 4, "layer": "fc", "standardize": None}},
        {"moments": None},
        {"report": {}},
    ],
}


def job(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(JOB | changes)


def test_steps__one_key_or_bare_kind() -> None:
    assert [(type(step).__name__, step.id) for step in job().steps] == [
        ("TrainStep", "train"),
        ("ExtractStep", "extract"),
        ("SvdStep", "svd"),
        ("MomentsStep", "moments"),
        ("ReportStep", "report"),
    ]


def test_steps__instances_are_taken_as_they_are() -> None:
    step = SvdStep(rank=3, name="three")
    assert job(steps=[JOB["steps"][1], step]).steps[1] is step


def test_train_and_extract__found_by_their_kind() -> None:
    assert job().train == job().steps[0]
    assert job().extract.layers.keys() == {"relu1", "fc"}
    assert job(steps=JOB["steps"][1:]).train is None


def test_step_union__holds_every_step_in_order() -> None:
    members = [get_args(member)[0] for member in get_args(get_args(AnyStep)[0])]
    assert members == list(STEPS.values())
    assert set(STEPS.values()) == leaves(Step)


def leaves(cls: type[Step]) -> set[type[Step]]:
    below = cls.__subclasses__()
    return set().union(*(leaves(sub) for sub in below)) if below else {cls}


def test_job__dump_reads_back() -> None:
    assert parse_job(job().model_dump_json(indent=2)) == job()
    assert JobSpec.model_validate(job().model_dump()) == job()
    assert job().model_dump()["steps"][2]["svd"]["rank"] == 4
    assert job().steps[2].model_dump()["rank"] == 4


def test_profile__dump_reads_back() -> None:
    profile = ProfileSpec.model_validate(
        {
            "backend": "local",
            "start_timeout": "1h30m",
            "pools": {"extract": None, "memory": {"memory": "2 GiB"}},
        }
    )
    assert profile.start_timeout == 5400
    assert profile.pools == {"extract": PoolSpec(), "memory": PoolSpec(memory=2 * 1024**3)}
    assert ProfileSpec.model_validate_json(profile.model_dump_json()) == profile
    assert ProfileSpec.model_validate({"backend": "local", "pools": None}).pools == {}


@pytest.mark.parametrize("amount", ["", "8 parsecs", "-1", -1, True, [1], "1e400", 10**400, float("nan")])
def test_memory__refuses_what_is_no_amount(amount: object) -> None:
    with pytest.raises(ValidationError, match="an amount of memory such as"):
        ProfileSpec.model_validate({"backend": "local", "pools": {"extract": {"memory": amount}}})


def test_models__cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().name = "other"  # type: ignore[misc]


def test_paths__expand_home_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert job(store="~/a.zarr").store == "/home/me/a.zarr"
    assert job(store="$SCRATCH/${SCRATCH}.zarr").store == "/scratch//scratch.zarr"
    assert job(store="s3://bucket/a.zarr").store == "s3://bucket/a.zarr"


def test_preprocessing__one_number_serves_all_channels() -> None:
    assert Preprocessing.model_validate({"mean": 0.5, "std": [0.1, 0.2, 0.3]}).mean == (0.5,)
    assert Preprocessing(resize=256, crop=(224, 200)).crop == (224, 200)


def test_layer__null_is_every_layer_and_none_is_text() -> None:
    found = parse_job(job().model_dump_json()).steps[2]
    assert isinstance(found, SvdStep)
    assert found.standardize is None
    assert found.layers == ["fc"]
    assert job().network.weights == "none"
    assert SvdStep(rank=1).layers == []


def test_public_names__as_listed() -> None:
    assert all(hasattr(spec, name) for name in spec.__all__)
    assert spec.__all__ == sorted(spec.__all__, key=lambda name: (not name.isupper(), name.islower(), name))


def test_import__brings_no_heavy_library() -> None:
    # The package's own __init__ is left out: what it imports is its own affair.
    code = (
        "import sys, types\n"
        "package = sys.modules['dneuro'] = types.ModuleType('dneuro')\n"
        f"package.__path__ = [{str(Path(spec.__file__).parents[1])!r}]\n"
        "import dneuro.spec\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = process.stdout.split()
    assert "pydantic" in loaded
    assert not {"numpy", "torch", "xarray", "zarr", "dask", "matplotlib"} & set(loaded)
