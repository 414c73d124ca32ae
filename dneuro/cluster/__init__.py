"""Machines: from a profile to a dask client. Knows no analysis.

``local`` starts worker processes on this machine, reachable over loopback only.
"""

from dneuro.cluster.backends import Backend, DriverRef, DriverState, Machines, backend_of
from dneuro.cluster.profiles import profile_folders
from dneuro.cluster.sizes import WorkerSizes

__all__ = ["Backend", "DriverRef", "DriverState", "Machines", "WorkerSizes", "backend_of", "profile_folders"]
