"""BLAS has one thread in tasks, and afterwards as many as before."""

from __future__ import annotations

from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from dneuro.engine.executors import ThreadExecutor, one_blas_thread


def test_one_blas_thread__threads_that_overlap_restore_what_was_there() -> None:
    """The first to come leaves before the last: each restoring what it found would leave one thread for good."""
    executor = ThreadExecutor(1)
    with threadpool_limits(2, user_api="blas"):
        first, last = one_blas_thread(executor), one_blas_thread(executor)
        first.__enter__()
        last.__enter__()
        first.__exit__(None, None, None)
        assert _blas_threads() == {1}, "the other still counts on it"
        last.__exit__(None, None, None)
        assert _blas_threads() == {2}


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
