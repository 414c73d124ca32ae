"""Kubernetes: the driver is a Job, its scheduler and workers are made by the operator of dask-kubernetes."""

from dneuro.cluster.kubernetes.backend import KubernetesBackend

__all__ = ["KubernetesBackend"]
