"""Memory that one kind of work keeps makes room for another kind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dneuro import allocation
from dneuro.engine.tiling import Tiling
from dneuro.errors import DneuroError


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Something that is kept for the functions of dneuro.engine."""
    there = ["a network"]

    def forget() -> bool:
        had = bool(there)
        there.clear()
        return had

    monkeypatch.setattr(allocation, "_keepers", {})
    allocation.keep_until_others_come("dneuro.engine", forget)
    yield there


def test_make_room_for__others_alone(kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(allocation, "give_up_memory", lambda: given.append(True))
    allocation.make_room_for(Tiling)
    assert (kept, given) == (["a network"], [])
    allocation.make_room_for(DneuroError)
    assert (kept, given) == ([], [True])
    allocation.make_room_for(DneuroError)
    assert given == [True], "there was nothing left to give up"


def test_give_up_memory__keeps_no_large_blocks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    most = 1 << 30

    class Allocator:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return int(value <= most)

        @staticmethod
        def malloc_trim(_pad: int) -> None:
            asked.append((0, 0))

    monkeypatch.setattr(allocation, "_glibc", Allocator)
    monkeypatch.setattr(allocation, "_asked", 0)
    assert allocation.keep_memory()
    allocation.give_up_memory()
    assert asked[-3:] == [(allocation._MMAP_THRESHOLD, 1 << 25), (allocation._TRIM_THRESHOLD, 1 << 26), (0, 0)]
    assert allocation.keep_memory(blocks=1 << 24)
    assert (allocation._MMAP_THRESHOLD, 1 << 24) in asked, "whoever needs less is heard again"
    most = 1 << 25
    assert allocation.keep_memory()
    assert allocation._asked == 1 << 25, "an allocator that refuses is asked for what it would keep by itself"


FAULTS = """
import sys
from dneuro.allocation import keep_memory, share_one_pool

if sys.argv[1] == "shared":
    share_one_pool()

import resource
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

def faults(barrier):
    barrier.wait()
    bytearray(b"x") * (80 << 20)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(4):
        bytearray(b"x") * (80 << 20)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

with ThreadPoolExecutor(4) as pool:
    barrier = Barrier(4)
    for _ in range(2):  # before and after memory is to be kept
        found = list(pool.map(faults, [barrier] * 4))
        keep_memory()
print(max(found) * resource.getpagesize() / (4 * (80 << 20)))
"""


@pytest.mark.skipif(allocation._glibc() is None, reason="only glibc is told what to keep")
def test_share_one_pool__has_threads_keep_blocks_that_began_before_memory_was_to_be_kept() -> None:
    shares = [
        float(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("shared", "apart")
    ]
    assert shares[0] < 0.5 < 0.9 < shares[1]


PASSES = """
import ctypes
from dneuro.allocation import keep_memory, leave_gaps

keep_memory()
leave_gaps(1 << 20)
leave_gaps(32 << 20)
pool = ctypes.CDLL(None)
pool.sbrk.restype = pool.malloc.restype = ctypes.c_void_p
pool.sbrk.argtypes = [ctypes.c_ssize_t]
pool.malloc.argtypes, pool.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
pool.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

def tensor(mebibytes):
    where = ctypes.c_void_p()
    assert pool.posix_memalign(ctypes.byref(where), 64, mebibytes << 20) == 0
    small.extend(pool.malloc(size) for size in (*range(24, 120, 16), 300 << 10, 3 << 20))
    return where

small = []
began = pool.sbrk(0)
for _ in range(6):
    before, small = small, []  # what a pass leaves stays for another one
    a, b = tensor(40), tensor(40)
    pool.free(a)
    c, d = tensor(10), tensor(20)
    for freed in (b, c, d, *before):
        pool.free(freed)
print((pool.sbrk(0) - began) / (80 << 20))
"""


@pytest.mark.skipif(not allocation.can_coalesce(), reason="only glibc is told to coalesce")
def test_leave_gaps__has_forward_passes_take_no_more_than_their_tensors() -> None:
    told = os.environ | {allocation.TUNABLES: allocation.tunables({})}
    done = subprocess.run([sys.executable, "-c", PASSES], env=told, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.1


def test_tunables__leave_those_of_others_as_they_are() -> None:
    assert allocation.tunables({}) == "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
    others = "glibc.rtld.nns=5:glibc.malloc.tcache_count=7"
    both = allocation.tunables({allocation.TUNABLES: others})
    assert both == "glibc.rtld.nns=5:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
    assert allocation.is_told({allocation.TUNABLES: both})
    assert not allocation.is_told({allocation.TUNABLES: others})
    assert not allocation.is_told({allocation.TUNABLES: f"{both}:glibc.malloc.mxfast=64"}), "the last one counts"
    assert not allocation.is_told({})
