"""Slurm: drivers and workers are batch jobs; one scheduler in the driver's process has the workers of all pools."""

from dneuro.cluster.slurm.backend import SlurmBackend

__all__ = ["SlurmBackend"]
