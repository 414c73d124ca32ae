"""Machines: from a profile to a dask client. Knows no analysis.

One file or package per backend (`local`, `slurm`, `kubernetes`, `address`), all of them behind `backends.Backend`;
`standing` is a cluster that outlives the process that starts it.
"""

from dneuro.cluster.backends import Backend, DriverRef, DriverState, Machines, backend_of
from dneuro.cluster.profiles import profile_folders
from dneuro.cluster.sizes import WorkerSizes

__all__ = ["Backend", "DriverRef", "DriverState", "Machines", "WorkerSizes", "backend_of", "profile_folders"]
