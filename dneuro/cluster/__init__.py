"""Machines: from a profile to a dask client. Knows no analysis.

``local`` starts worker processes on this machine, reachable over loopback only.
"""

from dneuro.cluster.local import open_local, worker_sizes
from dneuro.cluster.profiles import profile_folders

__all__ = ["open_local", "profile_folders", "worker_sizes"]
