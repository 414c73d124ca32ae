from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.errors import SpecError
from dneuro.spec import JobSpec, LayerSpec, parse_job

GOOD = """\
name: demo
images: {source: digits}
network: {name: "dneuro:convnet"}
store: demo.zarr
steps:
  - extract: {layers: [relu1, features.1, features.12]}
  - svd: {rank: 8}
  - svd: {rank: 9, name: wide.v2}
  - report
"""

GOOD_ONES: dict[str, tuple[str, Any]] = {
    "store=/tmp/x.zarr": ("store", "/tmp/x.zarr"),
    "store = a=b.zarr": ("store", "a=b.zarr"),
    "images={source: folder, root: /data}": ("images.root", "/data"),
    "images.sample=10": ("images.sample", 10),
    "network.preprocessing.resize=[8, 9]": ("network.preprocessing.resize", (8, 9)),
    "network.weights=none": ("network.weights", "none"),
    "steps.svd.rank=4": ("steps.1.rank", 4),
    "steps.1.rank=4": ("steps.1.rank", 4),
    "steps[1].svd.rank=4": ("steps.1.rank", 4),
    "steps.svd.standardize=null": ("steps.1.standardize", None),
    "steps.svd={rank: 3}": ("steps.1.rank", 3),
    "steps.svd.layer=[relu1, features.1]": ("steps.1.layer", ["relu1", "features.1"]),
    "steps.wide.v2.rank=5": ("steps.2.rank", 5),
    "steps.report.neurons=3": ("steps.3.neurons", 3),
    "steps.extract.layers.relu1.keep=max": ("steps.0.layers.relu1", LayerSpec(keep="max")),
    "steps.extract.layers.features.12.keep=mean": ("steps.0.layers.features_12", LayerSpec(keep="mean")),
    "steps.extract.layers.features.1={keep: stats}": ("steps.0.layers.features_1", LayerSpec(keep="stats")),
    "steps.extract.layers.features.99.keep=max": ("steps.0.layers.features_99", LayerSpec(keep="max")),
    "steps.extract.layers.conv1.0=": ("steps.0.layers.conv1_0", LayerSpec()),
    "steps=[extract: {layers: [a]}]": ("steps.0.layers.a", LayerSpec()),
}


def value_at(job: JobSpec, path: str) -> Any:
    found: Any = job
    for word in path.split("."):
        if isinstance(found, list):
            found = found[int(word)]
        else:
            found = found[word.replace("_", ".")] if isinstance(found, dict) else getattr(found, word)
    return found


@pytest.mark.parametrize(
    ("override", "path", "value"), [(o, *w) for o, w in GOOD_ONES.items()], ids=GOOD_ONES
)
def test_override__sets_the_value(override: str, path: str, value: Any) -> None:
    assert value_at(parse_job(GOOD, overrides=[override]), path) == value


def test_override__leaves_everything_else() -> None:
    job = parse_job(GOOD, overrides=["steps.extract.layers.features.12.keep=mean"])
    layers = {"relu1": LayerSpec(), "features.1": LayerSpec(), "features.12": LayerSpec(keep="mean")}
    before = parse_job(GOOD)
    assert job.extract.layers == layers
    assert (job.images, job.network, job.store, job.steps[1:]) == (
        before.images,
        before.network,
        before.store,
        before.steps[1:],
    )


def test_overrides__one_after_the_other() -> None:
    overrides = ["steps.svd.name=narrow", "steps.narrow.rank=2", "steps.narrow.rank=3", "steps.1.seed=7"]
    step = parse_job(GOOD, overrides=overrides).steps[1]
    assert (step.id, step.model_dump()["rank"], step.model_dump()["seed"]) == ("narrow", 3, 7)


def test_override__mends_what_the_file_has_wrong() -> None:
    assert parse_job(GOOD.replace("rank: 8", "rank: x"), overrides=["steps.1.rank=8"]) == parse_job(GOOD)


BAD_ONES = {
    "steps.svdd.rank=4": (
        "steps.svdd: no step is called 'svdd'",
        "did you mean 'svd'? choices: extract, svd",
    ),
    "steps.9.rank=4": ("steps.9: no item 9", "0 … 3"),
    "steps.svd.rnak=4": ("steps[1].svd.rnak: unknown key 'rnak'", "did you mean 'rank'"),
    "steps.svd.rank=abc": ("steps[1].svd.rank: must be a whole number, not 'abc'", "singular triplets"),
    "steps.svd.rank.x=1": ("steps[1].svd.rank: is 8: there is nothing below it to set", ""),
    "steps.svd=": ("steps[1].svd: takes one of rank, threshold and explained_variance, got none", "write `rank: 16`"),
    "steps.svd.layer=relu9": ("steps[1].svd.layer: the extract step does not store layer 'relu9'", "'relu1'"),
    "steps.svd.name=wide.v2": ("steps[2].svd: 2 steps are named 'wide.v2'", "wide.v2-2"),
    "steps.report=3": ("steps[3].report: must be a mapping", "keys: name, neurons"),
    "imges.root=/x": ("imges: unknown key 'imges'", "did you mean 'images'"),
    "images={source: folder}": ("images.root: missing", "add `root: …`"),
    "name=a b": ("name: 'a b' is no name", "a-b"),
    "name.x=1": ("name: is 'demo': there is nothing below it to set", ""),
    "store=": ("store: must be text, not nothing", "Zarr store"),
    "network={": ("the value is not YAML", "close every ["),
    "network={name: a, name: b}": ("key 'name' is given twice", "delete one"),
    "store": ("is not `key=value`", "--set store="),
    "=1": ("is not `key=value`", "--set store="),
    "a..b=1": ("is not `key=value`", "--set store="),
}


@pytest.mark.parametrize(
    ("override", "message", "hint"), [(o, *w) for o, w in BAD_ONES.items()], ids=BAD_ONES
)
def test_bad_override__error_names_it_instead_of_a_line(override: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(GOOD, "jobs/demo.yaml", [override])
    if override != "steps.svd.name=wide.v2":  # the clash shows at the other step, which the file has
        assert caught.value.message.startswith(f"in --set {override}: ")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_override__of_two_steps_of_one_name_wants_the_index() -> None:
    text = GOOD.replace(", name: wide.v2", "")
    with pytest.raises(SpecError, match="2 steps are called 'svd'") as caught:
        parse_job(text, overrides=["steps.svd.rank=4"])
    assert "take the index: steps.1 or steps.2" in str(caught.value)
    assert [step.id for step in parse_job(text, overrides=["steps.2.name=b"]).steps][1:3] == ["svd", "b"]


def test_override__in_a_job_without_steps() -> None:
    with pytest.raises(SpecError, match=r"in --set steps\.svd\.rank=4: steps: must be a list, not nothing"):
        parse_job(GOOD[: GOOD.index("steps:")] + "steps:", overrides=["steps.svd.rank=4"])


layer_names = st.lists(
    st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z0-9_]{1,4}){0,3}", fullmatch=True),
    min_size=1,
    max_size=5,
    unique=True,
)


@settings(deadline=None)
@given(layer_names, st.data(), st.sampled_from(["full", "max", "mean", "stats"]))
def test_override__finds_every_layer_name_with_dots(names: list[str], data: st.DataObject, keep: str) -> None:
    name = data.draw(st.sampled_from(names))
    text = yaml.safe_dump({**yaml.safe_load(GOOD), "steps": [{"extract": {"layers": names}}]})
    layers = parse_job(text, overrides=[f"steps.extract.layers.{name}.keep={keep}"]).extract.layers
    assert {layer: spec.keep for layer, spec in layers.items()} == dict.fromkeys(names, "full") | {name: keep}
