"""dneuro: the activations of neural networks, out of core."""

from dneuro.analysis import cooccurrence, moments, plan, similarity, svd, top_images

__all__ = ["cooccurrence", "moments", "plan", "similarity", "svd", "top_images"]
