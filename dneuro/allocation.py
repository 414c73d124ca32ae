"""Memory that a process keeps: of activations for the next batch, and what one kind of work keeps for its next task.

glibc gives every block above 32 MiB back when it is freed (above 128 KiB where ``MALLOC_TRIM_THRESHOLD_`` is set, as
dask does for its workers), and the next layer gets it again page by page, zeroed: with 16 images of SqueezeNet that
took a third of the forward pass.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

LIBRARIES_BYTES = 72 << 20
"""What SciPy and scikit-learn take of a process that has torch: some analyses need them, and the images that come with
scikit-learn. A process keeps them."""

COALESCING = {"glibc.malloc.tcache_count": 0, "glibc.malloc.mxfast": 0}
"""What glibc is told as a process starts, so that what is freed becomes one with its free neighbours at once.

A tensor is cut out of a free block at an address that is divisible by 64, and glibc (before 2.39: its bug 30723) has
the few bytes in front of it wait, as all small blocks, for whoever wants just as many. As long as they wait, or are
somebody's, the tensor's place is too small for the next of its size: VGG16 came to hold four of its largest tensors
where two are alive."""

TUNABLES = "GLIBC_TUNABLES"
"""The variable that glibc reads that from."""

_GAPS = {
    **dict.fromkeys(range(32, 128, 16), 4096),
    **dict.fromkeys((1 << 10, 1 << 11), 512),
    **dict.fromkeys((1 << 12, 1 << 14, 1 << 16), 64),
    **dict.fromkeys((1 << 18, 1 << 20, 1 << 22), 8),
}
"""How many free blocks of how many bytes are left for what is small. The smallest are as large as what is cut off
where a tensor begins and ends: whoever takes such a piece parts two tensors for good."""

_FENCE, _FENCES = 1 << 16, 1 << 14
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
_KEPT = 1 << 30
_USUAL = 1 << 25
"""Largest blocks that glibc comes to keep by itself."""
_asked = 0
"""Largest blocks that this process keeps, so far: whoever needs less leaves it."""
_left, _fence = 0, 0
"""Bytes of the largest gap that was left in this process, and where the block is that lies above all of them."""
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
    # An older one keeps no larger blocks than it comes to keep by itself, and refuses to be asked.
    _asked = next((largest for largest in (blocks, _USUAL) if allocator.mallopt(_MMAP_THRESHOLD, largest)), 0)
    allocator.mallopt(_TRIM_THRESHOLD, kept)
    share_one_pool()
    return True


def share_one_pool() -> None:
    """Have all threads that start from now on share one pool of freed memory, as far as the allocator can.

    Of a second one, which glibc begins for every thread that finds the others at work, nothing above 64 MiB is kept.
    """
    allocator = _glibc()
    if allocator is not None:
        allocator.mallopt(_ARENA_MAX, 1)


def tunables(inherited: Mapping[str, str]) -> str:
    """Return what `TUNABLES` says of a process that is to coalesce, besides what it would inherit."""
    others = inherited.get(TUNABLES, "").split(":")
    ours = [f"{name}={value}" for name, value in COALESCING.items()]
    return ":".join([*(told for told in others if told and told.partition("=")[0] not in COALESCING), *ours])


def is_told(variables: Mapping[str, str]) -> bool:
    """Tell whether a process with these environment variables is told to coalesce."""
    told = dict(one.partition("=")[::2] for one in variables.get(TUNABLES, "").split(":"))
    return all(told.get(name) == str(value) for name, value in COALESCING.items())


def can_coalesce() -> bool:
    """Tell whether there is an allocator here that can be told."""
    return _glibc() is not None


def coalesces() -> bool:
    """Tell whether what this process frees becomes one with its free neighbours at once."""
    return can_coalesce() and is_told(os.environ)


def leave_gaps(largest: int) -> None:
    """Leave free blocks of every size in the pool, up to `largest` bytes, before the tensors of forward passes come.

    Whoever asks is given the smallest free block that is large enough. What other threads need while a forward pass
    runs, and what is left when it ends, would otherwise be put among its tensors, and the next pass, which needs the
    memory as a whole, would take more. Does something once per process, and again for larger blocks, and only in one
    that keeps memory (`keep_memory`) and `coalesces`.

    Notes
    -----
    Nearly nothing of it is in memory before somebody uses it.
    """
    global _left, _fence
    allocator = _glibc() if coalesces() else None
    largest = min(largest, _asked // 2)  # what is larger lies elsewhere
    if allocator is None or largest <= _left:
        return
    allocator.malloc.restype = allocator.sbrk.restype = ctypes.c_void_p
    allocator.malloc.argtypes, allocator.sbrk.argtypes = (ctypes.c_size_t,), (ctypes.c_ssize_t,)
    allocator.free.argtypes = (ctypes.c_void_p,)
    allocator.free(_fence or None)
    counts = {} if _left else _GAPS
    gaps = []
    for size, count in counts.items():
        blocks = [allocator.malloc(size - 8) for _ in range(2 * count)]  # 8 bytes are glibc's own
        gaps += blocks[::2]  # the others are kept, or all would become one
    gaps.append(allocator.malloc(largest))
    highest = max(gap or 0 for gap in gaps)
    below: list[int] = []
    fence = 0
    while fence < highest < allocator.sbrk(0) and len(below) < _FENCES:  # else they lie in another pool
        below.append(fence)  # in an older gap
        fence = allocator.malloc(_FENCE) or 0
    for block in (*gaps, *below):
        allocator.free(block or None)
    _fence = fence
    _left = largest


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
