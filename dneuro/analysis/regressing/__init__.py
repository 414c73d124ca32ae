"""Which features of one layer predict those of another: ridge regression, on the side of the features or the images."""

from dneuro.analysis.regressing.face import plan_regression, regression

__all__ = ["plan_regression", "regression"]
