"""A step of a job that names a device: where it runs, what it computes with, what its result depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dneuro as dn
from dneuro.analysis import ANALYSES, COUPLED
from dneuro.engine.device import Device, chosen
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DeviceError, SpecError
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec
from dneuro.spec.steps import MomentsStep, SvdStep

MakeJob = Callable[..., JobSpec]

STEPS: list[dict[str, Any]] = [
    {"svd": {"layer": "relu1", "rank": 2}},
    {"coupled_nmf": {"layer": ["relu1"], "rank": 2, "max_iter": 2, "tol": 0}},
    {"kmeans": {"layer": "fc", "count": 3}},
]


def on(device: str, **more: Any) -> list[dict[str, Any]]:
    return [{kind: {**own, "device": device, **more}} for step in STEPS for kind, own in step.items()]


def test_step__runs_on_its_device_and_the_others_do_not(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Device | None] = {}
    for table in (ANALYSES, COUPLED):
        for name, function in list(table.items()):

            def spy(*args: Any, _name: str = name, _function: Any = function, **settings: Any) -> Any:
                seen[_name] = chosen()
                return _function(*args, **settings)

            monkeypatch.setitem(table, name, spy)
    with dn.on_device("cuda"):  # what a job says holds, whoever runs it
        run_job(make_job(*on("torch:cpu"), {"similarity": {"layer": "fc", "of": "activation"}}), threads)
    there = Device("torch:cpu")
    assert seen == {"svd": there, "coupled_nmf": there, "kmeans": there, "similarity": None}


def test_result__is_the_same_and_is_not_computed_again_elsewhere(make_job: MakeJob, threads: ThreadExecutor) -> None:
    first = run_job(make_job(*STEPS), threads)
    store = dn.open(first.store)
    assert run_job(make_job(*on("torch:cpu")), threads).computed == 0, "it is that of the first"
    there = dn.open(run_job(make_job(*on("torch:cpu"), store="there.zarr"), threads).store)
    for step, name in (("svd", "singular_value"), ("coupled_nmf", "loss"), ("kmeans", "centre")):
        (layer,) = store.results[step]
        expected, found = (some.results[step][layer][name].values for some in (store, there))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_tf32__makes_another_result(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"layer": "relu1", "rank": 2, "device": "cuda"}
    exact, rounded = make_job({"svd": job}), make_job({"svd": {**job, "tf32": True}})
    monkeypatch.setattr("dneuro.engine.passes.chosen", lambda: Device("torch:cpu"))
    monkeypatch.setattr("dneuro.engine.executors.free_bytes", lambda name: None)
    assert [run_job(one, threads).computed for one in (exact, rounded, exact)] == [1, 1, 1]


def test_step__goes_to_the_workers_with_cards() -> None:
    assert SvdStep(rank=2).pool_name == "memory"
    assert SvdStep(rank=2, device="torch:cpu").pool_name == "memory"
    assert SvdStep(rank=2, device="cuda").pool_name == "extract"
    assert SvdStep(rank=2, device="cuda", workers="cards").pool_name == "cards"


def test_plan__names_the_device(make_job: MakeJob, threads: ThreadExecutor) -> None:
    plan = plan_job(make_job(*on("torch:cpu"), "moments"), threads)
    assert {step["step"]: step["device"] for step in plan.to_dict()["steps"]} == {
        "svd": "torch:cpu", "coupled_nmf": "torch:cpu", "kmeans": "torch:cpu", "moments": "",
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing__device_ends_the_job_before_it_starts(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job({"svd": {"layer": "relu1", "rank": 2, "device": "cuda"}})
    with pytest.raises(DeviceError, match="this process does not have device 'cuda'") as caught:
        run_job(job, threads)
    assert "device: cpu" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"device": "gpu"}, "device: 'gpu' is no device that analyses run on", "torch:cpu"),
        ({"device": "mps"}, "mps has no float64", "cuda"),
        ({"tf32": True}, "tf32: tf32 is one of NVIDIA's GPUs, device 'cpu' does not have it", "device: cuda"),
    ],
)
def test_spec__refuses_what_no_step_can_run_on(
    make_job: MakeJob, settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_job({"moments": settings})
    assert hint in str(caught.value)
    assert MomentsStep().device == "cpu"
