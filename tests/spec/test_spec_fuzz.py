"""Whatever a job file or an override holds: a job, or a SpecError with a place; never another error."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.errors import SpecError
from dneuro.spec import JobSpec, parse_job

JOB: dict[str, Any] = {
    "name": "demo",
    "images": {"source": "array", "root": "/data.npz", "class_names": ["a", "b"]},
    "network": {
        "name": "dneuro:convnet",
        "preprocessing": {"resize": [8, 8], "mean": [0.5], "color": "grey"},
    },
    "store": "demo.zarr",
    "steps": [
        {"train": {"learning_rate": 0.01}},
        {"extract": {"layers": {"relu1": {"keep": "max"}, "fc.1": None}, "images_per_unit": 64}},
        {"cooccurrence": {"layer": ["relu1"]}},
        {"similarity": {"of": "cooccurrence", "metric": "pearson"}},
        {"svd": {"rank": 2, "standardize": None}},
        "report",
    ],
}
WORDS = [
    "svd",
    "report",
    "layer",
    "rank",
    "source",
    "folder",
    "digits",
    "keep",
    "none",
    "$X",
    "",
    "relu1",
    "<one>",
    "[key]",
    "0",
]

words = st.sampled_from(WORDS)
scalars = st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | words
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(below for key, value in items for below in paths(value, (*path, key)))]


def yaml_of(value: Any) -> str:
    return json.dumps(value).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def check(text: str, overrides: list[str]) -> None:
    try:
        job = parse_job(text, "j.yaml", overrides)
    except SpecError as error:
        first = error.message.splitlines()[0]
        assert re.match(r"j\.yaml:\d+:\d+: |j\.yaml: (\d+ errors|holds nothing)$|in --set ", first), first
    else:
        assert isinstance(job, JobSpec)


@settings(deadline=None)
@given(st.sampled_from(paths(JOB)), anything, st.none() | words)
def test_job_with_anything_in_it__is_read_or_refused(
    path: tuple[Any, ...], value: Any, extra: str | None
) -> None:
    data = json.loads(json.dumps({"job": JOB}))
    *above, last = ("job", *path)
    node = data
    for step in above:
        node = node[step]
    if extra is not None and isinstance(node[last], dict):
        node[last][extra] = value
    else:
        node[last] = value
    check(yaml_of(data["job"]), [])


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([*paths(JOB), ("steps", "svd"), ("steps", "svd", "rank")]), min_size=1, max_size=2
    ),
    anything,
)
def test_override_with_anything_in_it__is_taken_or_refused(chosen: list[tuple[Any, ...]], value: Any) -> None:
    overrides = [".".join(map(str, path)) + "=" + yaml_of(value) for path in chosen]
    check(yaml_of(JOB), overrides)


@settings(deadline=None)
@given(st.text(alphabet="steps.vdrank0123[]=: {}layermod'", max_size=30))
def test_any_override__is_taken_or_refused(override: str) -> None:
    check(yaml_of(JOB), [override])
