"""Room for what lives longer than a forward pass, used again and again.

Pixels that are read ahead and outputs that wait to be written would otherwise lie in the gaps that activations leave,
and the next forward pass, which needs those gaps as a whole, would have to get new memory.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Rooms:
    """Arrays of so many rows at most; one that nobody refers to any more is given out again.

    Parameters
    ----------
    rows : int
        Length of the arrays that are made, 0 for that of the first that is asked for; longer ones are made anew.
    pinned : bool
        Whether a GPU can copy to and from them while the CPU goes on.
    """

    def __init__(self, rows: int, *, pinned: bool) -> None:
        self._rows, self._pinned = rows, pinned
        self._free: defaultdict[Any, list[Tensor]] = defaultdict(list)

    def array(self, shape: Sequence[int], dtype: torch.dtype) -> NDArray[Any]:
        """Return an array whose content means nothing."""
        free = self._free[tuple(shape[1:]), dtype]
        if not free or len(free[-1]) < shape[0]:
            rows = (max(shape[0], self._rows), *shape[1:])
            free.append(torch.empty(rows, dtype=dtype, pin_memory=self._pinned))
        whole = free.pop()
        array: NDArray[Any] = whole[: shape[0]].numpy()  # views of it keep it alive
        weakref.finalize(array, free.append, whole).atexit = False
        return array

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor whose content means nothing."""
        return torch.from_numpy(self.array(shape, dtype))

    def furnish(self, shape: Sequence[int], dtype: torch.dtype, count: int) -> None:
        """Make `count` arrays of this shape per row now, and have them in memory."""
        made = [self.array((self._rows, *shape), dtype) for _ in range(count if math.prod(shape) else 0)]
        for array in made:
            array[:] = 0
