"""Of which non-negative parts are activations made, and which images have them?"""

from dneuro.analysis.nonnegative.face import coupled_nmf, nmf, plan_coupled_nmf, plan_nmf

__all__ = ["coupled_nmf", "nmf", "plan_coupled_nmf", "plan_nmf"]
