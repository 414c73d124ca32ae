"""Reading ahead: pictures are read and decoded on threads of their own while the network is busy with others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.extract.slots import AHEAD
from dneuro.extract.work import ExtractWork
from dneuro.images.memory import PictureMemory
from dneuro.images.preprocess import view
from dneuro.images.sources import ImageSource
from dneuro.images.thumbnails import reduce_to
from dneuro.spec.device import CPU
from dneuro.spec.network import Preprocessing

PIECE = 8
"""Images that one call of a reading thread decodes, at most: enough that handing it over costs nothing."""

Room = Callable[[tuple[int, ...]], NDArray[np.uint8]]


@dataclass
class Pictures:
    """A run of images as the network will see them.

    Parameters
    ----------
    numbers : array (images,) of int64
        Images, as the manifest numbers them.
    readable : array (images,) of bool
        Those that could be read; the others are masked, and their rows below mean nothing.
    checksums : array (images,) of uint32
        CRC-32 of the stored bytes, 0 where they could not be read.
    pixels : array (images, height, width, colours) of uint8
        What the network sees.
    small : array (images, rows, columns, colours) of uint8
        The same, reduced, and 0 where they could not be read; (images,) where no pictures are kept.
    reasons : list of (str, str)
        Name and cause of each masked image, in order.
    """

    numbers: NDArray[np.int64]
    readable: NDArray[np.bool_]
    checksums: NDArray[np.uint32]
    pixels: NDArray[np.uint8]
    small: NDArray[np.uint8]
    reasons: list[tuple[str, str]]


def read_ahead(
    work: ExtractWork, source: ImageSource, memory: PictureMemory, start: int, stop: int, room: Room
) -> Generator[Pictures, None, None]:
    """Yield the images from `start` to `stop` batch by batch, in order, while the next `AHEAD` batches are read.

    Where a unit has one core for all it does, and its images lie on a disk, only their bytes are fetched ahead: a
    thread that decodes would take its time from the network's, and each would drive the other's data out of the cache
    (with SqueezeNet it took a sixth more time).

    Parameters
    ----------
    work : ExtractWork
        The extraction: as many threads as a unit may use read.
    source : ImageSource
        Its images.
    memory : PictureMemory
        What the process has for those that are being read.
    start, stop : int
        Images.
    room : callable
        From a shape to an array for pixels.

    Raises
    ------
    ImageSourceError
        If an image has another size than the first one.
    OSError
        If the storage fails. No thread outlives the iterator: close it.
    """
    if stop - start <= min(PIECE, work.plan.batch):  # no thread is worth it
        yield _whole(work, source, memory, start, stop, room)
        return
    if work.threads == 1 and work.network.device == CPU and source.is_near:
        yield from _in_turn(work, source, memory, start, stop, room)
        return
    waiting: deque[tuple[Pictures, list[Future[list[tuple[str, str]]]]]] = deque()
    pool = ThreadPoolExecutor(max(1, work.threads), thread_name_prefix="dneuro-read")

    def begin(first: int) -> None:
        pictures = _empty(work, np.arange(first, min(first + work.plan.batch, stop)), room)
        edges = [*range(0, len(pictures.numbers), PIECE), len(pictures.numbers)]
        pieces = [pool.submit(_read, work, source, memory, pictures, a, b) for a, b in pairwise(edges)]
        waiting.append((pictures, pieces))

    firsts = iter(range(start, stop, work.plan.batch))
    try:
        for _, first in zip(range(AHEAD), firsts, strict=False):
            begin(first)
        while waiting:
            pictures, pieces = waiting[0]
            for piece in pieces:
                pictures.reasons += piece.result()
            waiting.popleft()
            following = next(firsts, None)
            if following is not None:
                begin(following)
            yield pictures
            del pictures, pieces
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_turn(
    work: ExtractWork, source: ImageSource, memory: PictureMemory, start: int, stop: int, room: Room
) -> Generator[Pictures, None, None]:
    """Yield batch by batch, each decoded by who asks for it; a thread has the storage fetch those that follow."""
    batch = work.plan.batch

    def fetch(first: int, last: int) -> None:
        for number in range(first, min(last, stop)):
            source.fetch(number)

    with ThreadPoolExecutor(1, thread_name_prefix="dneuro-read") as pool:
        pool.submit(fetch, start + batch, start + AHEAD * batch)
        for first in range(start, stop, batch):
            pool.submit(fetch, first + AHEAD * batch, first + (AHEAD + 1) * batch)
            yield _whole(work, source, memory, first, min(first + batch, stop), room)


def _whole(
    work: ExtractWork, source: ImageSource, memory: PictureMemory, start: int, stop: int, room: Room
) -> Pictures:
    """Return a batch that was read here and now."""
    pictures = _empty(work, np.arange(start, stop), room)
    pictures.reasons += _read(work, source, memory, pictures, 0, stop - start)
    return pictures


def _empty(work: ExtractWork, numbers: NDArray[np.int64], room: Room) -> Pictures:
    colors, height, width = work.plan.input_shape
    count = len(numbers)
    return Pictures(
        numbers=numbers,
        readable=np.zeros(count, bool),
        checksums=np.zeros(count, np.uint32),
        pixels=room((count, height, width, colors)),
        small=np.zeros((count, *work.plan.picture_shape), np.uint8),
        reasons=[],
    )


def seen(
    source: ImageSource, number: int, memory: PictureMemory, preprocessing: Preprocessing
) -> tuple[NDArray[np.uint8], int]:
    """Return what the network sees of an image, and its checksum; the picture itself is let go of.

    Parameters
    ----------
    source : ImageSource
        The images.
    number : int
        Which.
    memory : PictureMemory
        What the process has for pictures that are being read.
    preprocessing : Preprocessing
        How a picture becomes an input.

    Returns
    -------
    view : ndarray of uint8
        (height, width, colours).
    crc : int
        CRC-32 of what is stored.

    Raises
    ------
    UnreadableImageError
        If the image cannot be read, or not in this memory.
    OSError
        If the storage fails.
    """
    with memory.share(preprocessing) as share:
        picture, checksum = source.load(number, share)
        return view(picture, preprocessing), checksum


def _read(
    work: ExtractWork, source: ImageSource, memory: PictureMemory, pictures: Pictures, start: int, stop: int
) -> list[tuple[str, str]]:
    """Fill the rows from `start` to `stop`; return name and cause of each image that cannot be read."""
    reasons = []
    size = pictures.pixels.shape[1:3]
    for row in range(start, stop):
        number = int(pictures.numbers[row])
        name = str(source.manifest.names[number])
        try:
            pixels, checksum = seen(source, number, memory, work.preprocessing)
        except UnreadableImageError as error:
            reasons.append((name, error.message))
            continue
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, name) from error  # a failing read does not say of what
        if pixels.shape[:2] != size:
            raise ImageSourceError(
                f"{name} is {pixels.shape[1]}×{pixels.shape[0]} pixels, the first image is {size[1]}×{size[0]}: a "
                "network takes one size",
                hint="network: {preprocessing: {resize: 256, crop: 224, …}}",
            )
        pictures.pixels[row] = pixels
        if pictures.small.ndim > 1:
            pictures.small[row] = reduce_to(pixels, pictures.small.shape[1:3])
        pictures.checksums[row] = checksum
        pictures.readable[row] = True
    return reasons
