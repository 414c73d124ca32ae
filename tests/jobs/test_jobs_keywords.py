"""A step is named after its function, and its keys are that function's keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import dneuro as dn
from dneuro.analysis import ACROSS, ANALYSES, COUPLED
from dneuro.engine.executors import ThreadExecutor
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.spec.steps import STEPS, AnalysisStep, ReportStep, SelectSpec

MakeJob = Callable[..., JobSpec]

OF_THE_PLACE = {"client", "checkpoint", "out"}
"""What a job decides itself: where it runs, and where states and large matrices lie."""

ARRAYS = {"regression": {"source"}, "connections": {"directions"}}
"""What a function takes as arrays, and a step finds in the store by the name of a layer or of another step."""

OF_THE_STORE = {"name", "workers", "device", "tf32", "layer", "source", "select", "of", "pictures"}
"""What a step says besides: which layers and images of the store are asked, what its results are called, and what
computes them."""

OTHERWISE = {("cooccurrence", "k")}
"""Defaults that are written in another way, and mean the same: 100 where no quantile is given."""

FUNCTIONS: dict[str, Callable[..., Any]] = {**ANALYSES, **COUPLED, **ACROSS}


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {some.name: some.default for some in parameters if some.kind is inspect.Parameter.KEYWORD_ONLY}


def test_steps__are_those_that_there_are_functions_for() -> None:
    assert {kind for kind, step in STEPS.items() if issubclass(step, AnalysisStep)} == set(FUNCTIONS)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_step__has_the_keywords_of_its_function(kind: str) -> None:
    asked, fields = keywords(FUNCTIONS[kind]), STEPS[kind].model_fields
    wanted = set(asked) - OF_THE_PLACE - ARRAYS.get(kind, set())
    assert set(fields) - OF_THE_STORE == wanted
    for name in wanted:
        assert fields[name].is_required() == (asked[name] is inspect.Parameter.empty), name
        if fields[name].is_required() or (kind, name) in OTHERWISE:
            continue
        default = fields[name].default
        assert (tuple(default) if isinstance(default, list) else default) == asked[name], name


def test_select__has_the_keywords_of_its_function() -> None:
    asked = keywords(dn.select)
    assert {name: field.default for name, field in SelectSpec.model_fields.items()} == asked


def test_report__has_the_keywords_of_its_function() -> None:
    asked = keywords(dn.report)
    assert {name: asked[name] for name in ReportStep.model_fields if name != "name"} == {
        name: field.default for name, field in ReportStep.model_fields.items() if name != "name"
    }


PERSISTED: list[Any] = [
    {"svd": {"layer": "fc", "rank": 2}},
    {"svd": {"name": "spectrum", "layer": "fc", "rank": "all"}},
    {"nmf": {"layer": "relu1", "rank": 2, "max_iter": 3, "tol": 0}},
    {"coupled_nmf": {"layer": ["relu1"], "pictures": True, "rank": 2, "max_iter": 3, "tol": 0}},
    {"similarity": {"layer": "fc"}},
    {"kmeans": {"layer": "fc", "count": 3}},
    {"cooccurrence": {"layer": "fc", "quantile": 0.5}},
    {"moments": {"name": "some", "layer": "fc", "select": {"images": [3, 4, 11]}}},
]


def test_persist__is_another_way_to_the_same_result(make_job: MakeJob, threads: ThreadExecutor) -> None:
    first = run_job(make_job(*PERSISTED), threads)
    assert first.computed == 8
    streamed = [
        {kind: {**settings, **({} if kind == "moments" else {"persist": False})}}
        for step in PERSISTED
        for kind, settings in step.items()
    ]
    again = run_job(make_job(*streamed), threads)
    assert (again.computed, again.kept) == (0, 8), "no result depends on it"
    store = dn.open(first.store)
    assert store.results["spectrum"]["fc"].sizes["component"] == 10
    assert store.results["some"]["fc"].attrs["selection"]["images"] == 3


@pytest.mark.parametrize("persist", [True, False])
def test_persist__reaches_the_function(
    make_job: MakeJob, threads: ThreadExecutor, persist: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    for name in ("svd", "similarity", "nmf", "kmeans", "cooccurrence"):
        function = ANALYSES[name]

        def spy(*args: Any, _function: Any = function, **kwargs: Any) -> Any:
            seen.append(kwargs["persist"])
            return _function(*args, **kwargs)

        monkeypatch.setitem(ANALYSES, name, spy)
    steps = [{"svd": {"layer": "fc", "rank": 2, "persist": persist}},
             {"similarity": {"layer": "fc", "persist": persist}},
             {"nmf": {"layer": "relu1", "rank": 2, "max_iter": 2, "tol": 0, "persist": persist}},
             {"kmeans": {"layer": "fc", "count": 3, "persist": persist}},
             {"cooccurrence": {"layer": "fc", "quantile": 0.5, "persist": persist}}]  # fmt: skip
    run_job(make_job(*steps), threads)
    assert seen == [persist] * 5
