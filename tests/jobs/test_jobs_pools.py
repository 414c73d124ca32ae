"""Which workers do which step, and what they have left there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster import backend_of
from dneuro.engine import ThreadExecutor
from dneuro.engine.device import TORCH_BYTES
from dneuro.extract import pipeline
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.jobs.pools import AFTER_NETWORK, beside_network
from dneuro.quantities import GiB
from dneuro.spec import JobSpec, parse_profile

MakeJob = Callable[..., JobSpec]


def test_analyses__have_less_where_the_network_ran(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job("moments")
    one = backend_of(parse_profile("backend: local\npools: {workers: {workers: 2, memory: 3GiB}}")).sizes
    assert beside_network(one, job)("memory").process_bytes == AFTER_NETWORK
    pools = "{extract: {workers: 1, memory: 3GiB}, memory: {workers: 2, memory: 2GiB}}"
    two = backend_of(parse_profile(f"backend: local\npools: {pools}")).sizes
    sizes = beside_network(two, job)
    assert sizes("extract").process_bytes == AFTER_NETWORK
    assert sizes("memory") == two("memory")
    assert beside_network(lambda pool: threads, job)("memory").process_bytes == AFTER_NETWORK
    assert threads.process_bytes < TORCH_BYTES, "it is itself what it was"


def test_plan__of_a_step_counts_the_libraries_of_the_network(make_job: MakeJob) -> None:
    job = make_job({"svd": {"rank": 2, "layer": "fc"}})
    plan = plan_job(job, ThreadExecutor(1, memory=4 * GiB))
    assert plan.steps[0][1].worker_bytes > TORCH_BYTES


def test_network__is_let_go_when_the_extraction_is_over(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job("moments")
    seen: list[int] = []
    load = pipeline.network_of

    def loading(work: Any) -> Any:
        found = load(work)
        seen.append(len(pipeline._networks))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "network_of", loading)
        run_job(job, threads)
    assert set(seen) == {1}
    assert not pipeline._networks
    assert not pipeline._sources
    assert Path(job.store).exists()
