"""What a network yields in the end."""

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
