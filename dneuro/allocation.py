"""Memory of activations is kept for the next batch instead of going back to the system after each layer.

glibc gives every block above 32 MiB back when it is freed (above 128 KiB where ``MALLOC_TRIM_THRESHOLD_`` is set, as
dask does for its workers), and the next layer gets it again page by page, zeroed: with 16 images of SqueezeNet that
took a third of the forward pass.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
_KEPT = 1 << 30


def keep_memory(blocks: int = _KEPT, kept: int = _KEPT) -> bool:
    """Have the process keep freed memory until `release_memory`; return whether its allocator can.

    The peak stays about what it is: what was freed is used again. Threads that start later share one pool of memory.

    Parameters
    ----------
    blocks : int
        Bytes of the largest blocks that are kept.
    kept : int
        Free bytes at the end of the pool that are kept.
    """
    allocator = _glibc()
    if allocator is None:
        return False
    for parameter, value in ((_MMAP_THRESHOLD, blocks), (_TRIM_THRESHOLD, kept), (_ARENA_MAX, 1)):
        allocator.mallopt(parameter, value)
    return True


def release_memory() -> None:
    """Give what was kept back to the system."""
    allocator = _glibc()
    if allocator is not None:
        allocator.malloc_trim(0)


def _glibc() -> Any | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
