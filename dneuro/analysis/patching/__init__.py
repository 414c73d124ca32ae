"""Independent components of the top patches of each channel."""

from dneuro.analysis.patching.face import patch_components, plan_patch_components

__all__ = ["patch_components", "plan_patch_components"]
