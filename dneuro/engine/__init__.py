"""A pass over blocks on any executor: block grid, memory plan, window, tree of merges, progress.

The engine knows neither networks nor stores: it takes labelled arrays and kernels, and it runs on threads, a
LocalCluster or any other dask client alike.
"""

from dneuro.engine.executors import DaskExecutor, Executor, ThreadExecutor, get_executor
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan, plan_pass

__all__ = ["DaskExecutor", "Executor", "Plan", "ThreadExecutor", "get_executor", "plan_pass", "reduce"]
