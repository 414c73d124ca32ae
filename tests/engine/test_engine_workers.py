"""Which workers there are, as a scheduler says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask

from dneuro.engine import workers
from dneuro.engine.workers import workers_of


def test_workers__are_all_told_while_the_client_counts_them() -> None:
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.client.scheduler-info-interval": "5ms"}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        assert {len(workers_of(client)) for _ in range(500)} == {2}


def test_workers__are_those_that_were_told_where_the_count_stays_another(monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "ASKED", 3)
    asked = []

    def scheduler_info(n_workers: int) -> dict[str, Any]:
        asked.append(n_workers)
        return {"n_workers": 2, "workers": {"tcp://1": {"nthreads": 1}}}

    assert workers_of(SimpleNamespace(scheduler_info=scheduler_info)) == {"tcp://1": {"nthreads": 1}}
    assert asked == [-1, -1, -1]
