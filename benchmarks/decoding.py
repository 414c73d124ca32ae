"""Decoding photographs for a network: threads, as dneuro has them, against processes; pixels end up in one array."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock, free_cores
from benchmarks.photographs import COUNT, photographs
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting
from dneuro.images.decode import load
from dneuro.images.preprocess import view
from dneuro.spec.network import Preprocessing

HOW = Preprocessing(resize=256, crop=224)
SHAPE = (224, 224, 3)
PIECE = 8
"""Photographs that a thread or a process takes at a time."""
BATCH = 64
"""Photographs whose pixels lie in one array."""


def seen(path: Path) -> NDArray[np.uint8]:
    """Return what a network sees of a photograph."""
    return view(load(path.read_bytes(), str(path)), HOW)


def batches(paths: list[Path]) -> list[list[list[Path]]]:
    """Return the photographs batch by batch, each in pieces."""
    pieces = [paths[i : i + PIECE] for i in range(0, len(paths), PIECE)]
    return [pieces[i : i + BATCH // PIECE] for i in range(0, len(pieces), BATCH // PIECE)]


def by_threads(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Decode on threads, which write into the array themselves."""
    paths, room = photographs(setting), np.empty((BATCH, *SHAPE), np.uint8)

    def fill(place: int, piece: list[Path]) -> None:
        for row, path in enumerate(piece, place):
            room[row] = seen(path)

    def call() -> int:
        with ThreadPoolExecutor(free_cores()) as pool:
            for batch in batches(paths):
                list(pool.map(fill, range(0, BATCH, PIECE), batch))
        return len(paths)

    seen(paths[0])
    return call


def sent(piece: list[Path]) -> NDArray[np.uint8]:
    """Return the pixels of a piece, through a pipe."""
    return np.stack([seen(path) for path in piece])


def by_processes(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Decode in processes, which send the pixels back."""
    paths, room = photographs(setting), np.empty((BATCH, *SHAPE), np.uint8)
    pool = multiprocessing.get_context("spawn").Pool(free_cores())
    pool.map(sent, [paths[:1]] * free_cores(), chunksize=1)  # imports do not count

    def call() -> int:
        for batch in batches(paths):
            for place, pixels in zip(range(0, BATCH, PIECE), pool.imap(sent, batch), strict=False):
                room[place : place + len(pixels)] = pixels
        pool.terminate()
        return len(paths)

    return call


def shared(task: tuple[str, int, list[Path]]) -> None:
    """Write the pixels of a piece into memory that is shared."""
    name, place, piece = task
    memory = shared_memory.SharedMemory(name)
    room = np.ndarray((BATCH, *SHAPE), np.uint8, memory.buf)
    for row, path in enumerate(piece, place):
        room[row] = seen(path)
    del room
    memory.close()


def by_processes_that_share(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Decode in processes, which write into shared memory; the pixels are copied from there."""
    paths, room = photographs(setting), np.empty((BATCH, *SHAPE), np.uint8)
    memory = shared_memory.SharedMemory(create=True, size=room.nbytes)
    pool = multiprocessing.get_context("spawn").Pool(free_cores())
    pool.map(shared, [(memory.name, 0, paths[:1])] * free_cores(), chunksize=1)

    def call() -> int:
        for batch in batches(paths):
            pool.map(shared, [(memory.name, n * PIECE, piece) for n, piece in enumerate(batch)], chunksize=1)
            room[:] = np.ndarray(room.shape, np.uint8, memory.buf)
        pool.terminate()
        memory.unlink()
        return len(paths)

    return call


QUESTIONS = (
    Question(
        f"{COUNT:,} photographs decoded, scaled and cut to 224 × 224 on all cores",
        (
            Candidate("threads, as dneuro has them", by_threads, "threads"),
            Candidate("processes, pixels through pipes", by_processes, "threads"),
            Candidate("processes, pixels through shared memory", by_processes_that_share, "threads"),
        ),
    ),
)
