from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dneuro.spec import STEPS
from dneuro.spec.job import JobSpec
from dneuro.spec.outline import outline
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.schema import job_schema, profile_schema, write_schemas

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = {"job": job_schema(), "profile": profile_schema()}
TYPES = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool, "integer": int}

JOB = """
name: demo
images: {source: folder, root: /data}
network: {name: dneuro:convnet, preprocessing: {resize: [256, 300], crop: 224, mean: 0.5, std: [1, 1, 2]}}
store: demo.zarr
steps:
  - extract: {layers: {a: {keep: max}, b: }}
  - svd: {rank: 8, layer: a, standardize: null}
  - similarity: {metric: pearson, layer: [a, b]}
  - report
  - moments:
"""


def accepts(schema: dict[str, Any], node: dict[str, Any], value: Any) -> bool:
    """Return whether `value` fits `node`: as much of JSON Schema as the schemas use, written on its own."""
    if "$ref" in node:
        return accepts(schema, schema["$defs"][node["$ref"].split("/")[-1]], value)
    if "anyOf" in node and not any(accepts(schema, part, value) for part in node["anyOf"]):
        return False
    if "oneOf" in node and sum(accepts(schema, part, value) for part in node["oneOf"]) != 1:
        return False
    types = [node["type"]] if isinstance(node.get("type"), str) else node.get("type", [])
    if types and not any(of_type(value, name) for name in types):
        return False
    if ("const" in node and value != node["const"]) or ("enum" in node and value not in node["enum"]):
        return False
    if isinstance(value, dict):
        known = node.get("properties", {})
        other = node.get("additionalProperties", True)
        allowed = node.get("propertyNames", {}).get("enum", list(value))
        return (
            set(node.get("required", [])) <= value.keys() <= {*known, *allowed}
            and node.get("minProperties", 0) <= len(value) <= node.get("maxProperties", 99)
            and all(accepts(schema, known.get(key, other), item) for key, item in value.items()
                    if key in known or isinstance(other, dict))
            and (other is not False or value.keys() <= known.keys())
        )  # fmt: skip
    if isinstance(value, list):
        items = node.get("prefixItems", [node.get("items", {})] * len(value))
        return node.get("minItems", 0) <= len(value) <= node.get("maxItems", 99) and all(
            accepts(schema, part, item) for part, item in zip(items, value, strict=False)
        )
    if isinstance(value, str):
        return re.search(node.get("pattern", ""), value) is not None
    low, high = node.get("exclusiveMinimum", float("-inf")), node.get("maximum", float("inf"))
    return value is None or (low < value <= high and value >= node.get("minimum", value))


def of_type(value: Any, name: str) -> bool:
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def test_schema__accepts_what_is_written() -> None:
    data = yaml.safe_load(JOB)
    JobSpec.model_validate(data)
    assert accepts(SCHEMAS["job"], SCHEMAS["job"], data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rank: 8", "rnak: 8"),
        ("rank: 8", "rank: 0"),
        ("rank: 8, ", ""),
        ("- svd", "- svdd"),
        ("- report", "- svd"),
        ("- report", "- {report: , moments: }"),
        ("- report", "- {}"),
        ("- moments:", "- svd:"),
        ("source: folder, root", "source: digits, root"),
        ("metric: pearson", "metric: spearman"),
        ("keep: max", "keep: maximum"),
        ("{a: {keep: max}, b: }", "[]"),
        ("name: demo", "name: a b"),
        ("crop: 224", "crop: [1, 2, 3]"),
        ("store: demo.zarr", "store: 5"),
    ],
)
def test_schema__refuses_what_the_models_refuse(old: str, new: str) -> None:
    assert JOB.count(old) == 1
    data = yaml.safe_load(JOB.replace(old, new))
    with pytest.raises(ValueError, match="validation error"):
        JobSpec.model_validate(data)
    assert not accepts(SCHEMAS["job"], SCHEMAS["job"], data)


@pytest.mark.parametrize("folder", ["jobs", "cluster"])
def test_schema__accepts_the_shipped_files(folder: str) -> None:
    schema = SCHEMAS["job" if folder == "jobs" else "profile"]
    for path in (REPOSITORY / folder).glob("*.yaml"):
        assert accepts(schema, schema, yaml.safe_load(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_schema__is_whole(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for node in nodes(schema):
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]
    for name, model in {"": schema, **schema["$defs"]}.items():
        assert model["additionalProperties"] is False
        assert model["description"], name
        assert [key for key, node in model["properties"].items() if not node.get("description")] == []
    assert "``" not in json.dumps(schema)


def test_schema__a_step_is_one_of_the_kinds() -> None:
    written, bare = SCHEMAS["job"]["properties"]["steps"]["items"]["anyOf"]
    assert list(written["properties"]) == list(STEPS)
    assert (written["minProperties"], written["maxProperties"], written["additionalProperties"]) == (
        1,
        1,
        False,
    )
    assert set(STEPS) - set(bare["enum"]) == {"coupled_nmf", "extract", "kmeans", "nmf", "svd"}


def test_committed_schemas__are_current(tmp_path: Path) -> None:
    for path in write_schemas(tmp_path):
        committed = REPOSITORY / path.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), (
            "the models have changed: run `python -m dneuro.spec.schema` in the repository"
        )


def test_outline__knows_what_may_stand_where() -> None:
    job, profile = outline(JobSpec), outline(ProfileSpec)
    data = {"images": {"source": "folder"}}
    assert job.keys(("images",), data) == ["sample", "seed", "source", "root", "classes"]
    assert set(job.keys(("images",))) > {"images", "labels", "root"}
    assert job.keys(("steps", 3)) == list(STEPS)
    assert job.choices(("steps", 3, "svd", "standardize")) == ["image", "neuron", "center", "null"]
    assert job.choices(("steps", 0, "extract", "layers", "any.thing", "keep")) == [
        "full",
        "max",
        "mean",
        "stats",
    ]
    assert job.free_keys(("steps", 0, "extract", "layers"))
    assert profile.free_keys(("pools",))
    assert (
        profile.description(("pools", "extract", "threads"))
        == "Units that one worker works on at the same time"
    )
    assert (job.keys(("no", "where")), job.choices(("no",)), job.description(("no",))) == ([], [], "")
