"""A cluster that stands: started once, used by many jobs and notebooks, until it is ended.

`lifetime` starts and ends it, `asking` says where it is and connects to it, `holding` is the process that holds its
scheduler, and `folder` what they tell each other by.
"""

from dneuro.cluster.standing.asking import StandingCluster, connect, status
from dneuro.cluster.standing.lifetime import down, up

__all__ = ["StandingCluster", "connect", "down", "status", "up"]
