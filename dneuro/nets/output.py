"""What a network yields in the end, and a layer of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def main_output(output: object) -> Tensor | None:
    """Return the tensor that a network is asked for: its output, or ``out`` of several, as in segmentation.

    None if it is neither.
    """
    if isinstance(output, Mapping):
        output = output.get("out")
    return output if isinstance(output, Tensor) else None


def layer_output(output: object) -> object:
    """Return what a module yields: of an attention's pair, whose weights nobody asked for, the tensor."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor) and output[1] is None:
        return output[0]
    return output
