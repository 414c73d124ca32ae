"""What a slot of a worker holds at the same time: batches that are read, the forward pass, outputs, rows of chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dneuro.store.layout import ArrayPlan, LayerPlan

AHEAD = 2
"""Batches that are read while the network is busy with another."""

CASTING = 20
"""Bytes per number that are needed to make float16 or bfloat16 of an image's, at most; besides what comes of it."""

PACKING = 3
"""Times a row of chunks that is needed to pack it and to read it back: cut into chunks, packed, read."""

GAPS = 2
"""Times what a forward pass holds at the same time that it comes to take where its process does not coalesce: as much
lies idle. The gap of a tensor that was freed is some bytes too small for the next of its size, and what the reading
threads need in between falls into it. Measured, where all threads share one pool of freed memory: 1.3 to 1.5 for
SqueezeNet, 1.4 to 1.9 for ResNet-18 (one run in five above 1.5), 1.9 for DenseNet-121, 1.9 to 2.1 for VGG16."""

ALONE = 1.1
"""Times its extent that a forward pass comes to take where gaps become one: 0.9 to 1.1 were measured with nine
networks, what operations need in their inside included."""

AMONG = 1.2
"""The same where several slots put theirs into the same memory: 0.9 to 1.15 were measured with two."""

HALF = 0.75
"""Times that in half precision: 0.5 of a convolution's output, 1 of what autocast leaves in float32; 0.6 to 0.7 of
SqueezeNet, ResNet-18 and VGG16. It copies the weights of an operation besides."""

CUDNN = 1.5
"""Times the largest tensor that cuDNN is given to work in."""

SLACK = 1.05
"""What is held besides, of all that a slot holds: mostly what operations need in their inside."""


def room_bytes(layer: LayerPlan, batch: int, *, pinned: bool) -> int:
    """Return the bytes of the rooms that a layer's output lies in.

    A card is one batch ahead, and what it writes to is rounded up to a power of two.
    """
    one = 4 * batch * math.prod(layer.shape)
    return (layer_batches(layer) + 1) * _pinned(one) if pinned else layer_batches(layer) * one


def layer_batches(layer: LayerPlan) -> int:
    """Return how many batches of a layer's output there are at the same time: one, and one that is being written."""
    return 2 if layer.keep == "full" and layer.dtype == "float32" else 1


def forward_bytes(
    held: tuple[int, int, int], batch: int, *, coalescing: bool, slots: int, largest_half: int = 0
) -> int:
    """Return the bytes that a forward pass on the processor takes, gaps included.

    Parameters
    ----------
    held : (int, int, int)
        Bytes per image of all that there is at the same time, of the largest of it, and from the first to the last.
    batch : int
        Images.
    coalescing : bool
        Whether what the process frees becomes one with its free neighbours at once.
    slots : int
        Units that it works on at a time.
    largest_half : int
        Bytes of the largest of the weights, where it computes in half precision.
    """
    most, _, extent = held
    whole = batch * ((ALONE if slots == 1 else AMONG) * extent if coalescing else GAPS * most)
    return round(HALF * whole + largest_half if largest_half else whole)


def cast_bytes(layers: Sequence[LayerPlan], batch: int) -> tuple[int, int]:
    """Return the bytes of batches in the 16 bits that they are written in; bfloat16 is float32 until then.

    The first number is that of one that waits to be written while the next is in the network, the second that of all
    there are when that one is cast.
    """
    sizes = [((2, 4)[layer.dtype == "bfloat16"] * batch * math.prod(layer.shape), layer.keep == "full")
             for layer in layers if layer.dtype != "float32"]  # fmt: skip
    waiting = sum(size for size, full in sizes if full)
    return waiting, 2 * waiting + max((size for size, full in sizes if not full), default=0)


def slot_bytes(
    layers: Sequence[LayerPlan],
    arrays: Sequence[ArrayPlan],
    forward: int,
    *,
    batch: int,
    pixels: int,
    picture: int,
    on_card: bool,
) -> float:
    """Return the bytes that a slot holds in the memory of its process.

    Parameters
    ----------
    layers : sequence of LayerPlan
        What is kept of each layer.
    arrays : sequence of ArrayPlan
        All that is written.
    forward : int
        Bytes that a forward pass takes in the memory of the process.
    batch : int
        Images per batch.
    pixels, picture : int
        Bytes per image of what the network sees, and of the picture that is kept.
    on_card : bool
        Whether the forward pass runs on a card, which has memory of its own.

    Notes
    -----
    Inputs and outputs lie in rooms of their own, made before the first batch. While these are fed to the statistics and
    made what is stored, the memory of the forward pass is free.
    """
    rooms = sum(room_bytes(layer, batch, pinned=on_card) for layer in layers)
    small = [math.prod(layer.shape) for layer in layers if layer.dtype != "float32"]
    read = (AHEAD + 2) * batch * (pixels + picture) + 4 * batch * pixels
    if on_card:
        read = (AHEAD + 3) * (_pinned(batch * pixels) + batch * picture)
    waiting, cast = cast_bytes(layers, batch)
    return read + rooms + max(forward + waiting, cast + CASTING * max(small, default=0)) + writing_bytes(arrays)


def card_bytes(layers: Sequence[LayerPlan], held: tuple[int, int, int], *, batch: int, pixels: int) -> float:
    """Return the bytes of a card that a slot takes: the forward pass, copies of the outputs, and room to work in.

    How much cuDNN takes to work in was not measured; counted is the largest tensor and a half.
    """
    most, largest, _ = held
    outputs = 4 * sum(math.prod(layer.shape) for layer in layers)
    return batch * (most + CUDNN * largest + outputs + 2 * pixels)


def _pinned(count: int) -> int:
    """Return what torch takes where a card is to read or write so many bytes: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


def writing_bytes(arrays: Sequence[ArrayPlan]) -> int:
    """Return what waits for a row of chunks to be full, and what one row needs that is packed and read back."""
    rows = [array.row_bytes for array in arrays]
    return sum(rows) + PACKING * max(rows)
