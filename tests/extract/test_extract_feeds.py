"""Reductions that are fed while a layer is in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.extract.run import extract, merge_feeds
from dneuro.extract.work import ExtractWork
from dneuro.jobs.driver import run_job
from dneuro.kernels import ClassSums
from dneuro.kernels.feeds import Feed
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]


def test_class_sums__are_those_of_numpy(
    make_job: MakeJob, begin: Callable[..., ExtractWork], threads: ThreadExecutor
) -> None:
    store = dn.open(run_job(make_job(layers=["relu1"], store="whole.zarr"), threads).store)
    labels = store.images["label"].values
    work = begin(make_job(layers={"relu1": {"keep": "stats"}}))
    feeds = (Feed("mean", ClassSums(labels, 10)), Feed("neuron", ClassSums(labels, 10)))
    work = replace(work, feeds={"relu1": feeds})
    extract(work, threads)
    merged = merge_feeds(work, [("relu1", feed) for feed in feeds], threads)
    x = store["relu1"].values.astype(np.float64)
    for feed, table in zip(feeds, (x.mean((2, 3)).astype(np.float32), x), strict=True):
        found = merged["relu1", feed.key]
        for label in range(10):
            mine = table[labels == label].astype(np.float64)
            np.testing.assert_array_equal(found["count"][label], len(mine))
            np.testing.assert_allclose(found["sum"][label], mine.sum(0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found["squares"][label], (mine**2).sum(0), rtol=1e-12, atol=1e-12)
