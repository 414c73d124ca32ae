from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dneuro.engine.executors import Sizes, ThreadExecutor
from dneuro.extract.work import ExtractWork
from dneuro.jobs.driver import _work
from dneuro.jobs.growth import open_or_create
from dneuro.jobs.lease import Lease
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder


@pytest.fixture
def begin(threads: ThreadExecutor) -> Iterator[Callable[..., ExtractWork]]:
    """Return a function that starts a run of a job up to where its units are handed out.

    The run ends with the test, or when the next one is started: as if it had been killed.
    """
    leases: list[Lease] = []

    def start(job: JobSpec, sizes: Sizes = threads) -> ExtractWork:
        while leases:
            leases.pop().release()
        plan = plan_job(job, sizes)
        leases.append(Lease.acquire(units_folder(job.store) / "attempts"))
        open_or_create(plan.study)
        return _work(plan.study, leases[0], 1, sizes.memory)

    yield start
    while leases:
        leases.pop().release()
