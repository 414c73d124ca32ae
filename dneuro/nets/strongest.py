"""The maximum of every channel and where it is, taken on the device while a layer's output is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Strongest(NamedTuple):
    """The maximum per channel of a layer's output.

    Parameters
    ----------
    values : Tensor or ndarray
        (images, channels), float32; NaN or infinite where the channel holds such a value anywhere.
    positions : Tensor or ndarray
        (images, channels), int32: where it is first reached, as an index into the flattened positions.
    """

    values: Any
    positions: Any


def strongest(output: Tensor) -> Strongest:
    """Return the maximum of every channel over its positions.

    Parameters
    ----------
    output : Tensor
        (images, channels, y, x), floating, in any order in memory.

    Notes
    -----
    The first of several maxima counts, in the order of the positions: the same as `dneuro.kernels.base.pool` finds.

    **Cost**: one pass over the output for the maximum of each row of positions; only the row that holds the largest
    is looked at again. An output that is channels last need not be turned round: that alone takes longer.
    """
    channels_last = output.is_contiguous(memory_format=torch.channels_last)
    cells, y, x = (output.permute(0, 2, 3, 1), 1, 2) if channels_last else (output, 2, 3)
    values, row = cells.amax(x).max(y)
    of_row = list(cells.shape)
    of_row[y] = 1
    inside = cells.gather(y, row.unsqueeze(y).unsqueeze(x).expand(of_row)).squeeze(y)
    column = inside.max(y).indices
    positions = (row * output.shape[3] + column).to(torch.int32)
    return Strongest(_with_faults(values.float(), output), positions)


def _with_faults(values: Tensor, output: Tensor) -> Tensor:
    """Return `values`, -inf where the maximum hides it; NaN and +inf are maxima by themselves."""
    # A tensor that only stands in for one while a program is made has no values to look at.
    if type(output) is Tensor and output.device.type == "cpu" and bool(torch.isfinite(output.sum())):
        return values
    hidden = (output == -torch.inf).flatten(2).any(2)
    return values.masked_fill(hidden, -torch.inf)
