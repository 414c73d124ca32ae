"""Memory that a process keeps: of activations for the next batch, and what one kind of work keeps for its next task.

glibc gives every block above 32 MiB back when it is freed (above 128 KiB where ``MALLOC_TRIM_THRESHOLD_`` is set, as
dask does for its workers), and the next layer gets it again page by page, zeroed: with 16 images of SqueezeNet that
took a third of the forward pass.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

LIBRARIES_BYTES = 72 << 20
"""What SciPy and scikit-learn take of a process that has torch: some analyses need them, and the images that come with
scikit-learn. A process keeps them."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
_KEPT = 1 << 30
_USUAL = 1 << 25
"""Largest blocks that glibc comes to keep by itself."""
_asked = 0
"""Largest blocks that this process keeps, so far: whoever needs less leaves it."""
_keepers: dict[str, Callable[[], bool]] = {}


def keep_memory(blocks: int = _KEPT, kept: int = _KEPT) -> bool:
    """Have the process keep freed memory until `release_memory`; return whether its allocator can.

    The peak stays about what it is: what was freed is used again. Threads that start later share one pool of memory,
    see `share_one_pool`.

    Parameters
    ----------
    blocks : int
        Bytes of the largest blocks that are kept.
    kept : int
        Free bytes at the end of the pool that are kept.
    """
    global _asked
    allocator = _glibc()
    if allocator is None:
        return False
    if blocks <= _asked:
        return True
    _asked = blocks
    for parameter, value in ((_MMAP_THRESHOLD, blocks), (_TRIM_THRESHOLD, kept)):
        allocator.mallopt(parameter, value)
    share_one_pool()
    return True


def share_one_pool() -> None:
    """Have all threads that start from now on share one pool of freed memory, as far as the allocator can.

    Of a second one, which glibc begins for every thread that finds the others at work, nothing above 64 MiB is kept.
    """
    allocator = _glibc()
    if allocator is not None:
        allocator.mallopt(_ARENA_MAX, 1)


def release_memory() -> None:
    """Give what was kept back to the system."""
    allocator = _glibc()
    if allocator is not None:
        allocator.malloc_trim(0)


def give_up_memory() -> None:
    """Give what was kept back to the system, and keep no large blocks any more."""
    global _asked
    allocator = _glibc()
    if allocator is not None and _asked > _USUAL:
        allocator.mallopt(_MMAP_THRESHOLD, _USUAL)
        allocator.mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
        _asked = 0
    release_memory()


def keep_until_others_come(package: str, forget: Callable[[], bool]) -> None:
    """Have `forget` called before a process does anything for another package than this one.

    Parameters
    ----------
    package : str
        Whose functions may find what was kept, such as ``"dneuro.extract"``.
    forget : callable
        Lets go of it; returns whether there was anything.
    """
    _keepers[package] = forget


def make_room_for(function: Callable[..., Any]) -> None:
    """Let go of what this process keeps for the work of other packages than the function's."""
    where = str(getattr(function, "__module__", ""))
    for package, forget in list(_keepers.items()):
        if not where.startswith(package) and forget():
            give_up_memory()


def _glibc() -> Any | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
