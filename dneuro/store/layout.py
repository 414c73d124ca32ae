"""What a store may hold: every array with its dims, dtype, unit and meaning, and how it is cut into chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dneuro.quantities import MiB
from dneuro.spec.steps import DEFAULT_CODEC, Codec
from dneuro.store.units import NOT_YET

FORMAT = 1
"""Number of this layout; part of every fingerprint."""

BUFFER_BYTES = 32 * MiB
"""A worker holds about this much of one layer before it writes a row of chunks."""

CHUNK_BYTES = 4 * MiB
"""Chunks are about this large, uncompressed."""


@dataclass(frozen=True)
class Meaning:
    """What an array of the store is.

    Parameters
    ----------
    dims : tuple of str
        Its dims; ``...`` stands for the dims of the layer (channel, or channel, y, x).
    dtype : str
        Its dtype; empty where the job chooses.
    unit : str
        Unit of the numbers.
    text : str
        What it says.
    """

    dims: tuple[str, ...]
    dtype: str
    unit: str
    text: str


REGISTRY: dict[str, Meaning] = {
    "image": Meaning(("image",), "int64", "1", "number of the image, in manifest order"),
    "filename": Meaning(("image",), "string", "", "name of the image in its source"),
    "label": Meaning(("image",), "int64", "1", "class of the image as an index into class, -1 unknown"),
    "class": Meaning(("class",), "string", "", "names of the classes"),
    "wnid": Meaning(("class",), "string", "", "WordNet ids of the classes"),
    "status": Meaning(("image",), "uint8", "1", f"0 read, 1 unreadable, 2 not finite, {NOT_YET} not extracted yet"),
    "checksum": Meaning(("image",), "uint32", "1", "CRC-32 of the image's stored bytes, 0 where status is 1"),
    "prediction": Meaning(("image",), "int64", "1", "class that the network names, -1 where status is not 0"),
    "correct": Meaning(("image",), "bool", "1", "whether prediction equals label"),
    "picture": Meaning(("image", "row", "column", "color"), "uint8", "1", "the image as the network saw it, reduced"),
    "activation": Meaning(("image", "..."), "", "activation", "output of the layer"),
    "activation_max": Meaning(("image", "channel"), "", "activation", "maximum of the channel over its positions"),
    "activation_mean": Meaning(("image", "channel"), "", "activation", "mean of the channel over its positions"),
    "activation_y": Meaning(("image", "channel"), "int16", "position", "row where the maximum is first reached"),
    "activation_x": Meaning(("image", "channel"), "int16", "position", "column where the maximum is first reached"),
}
"""Arrays that extraction writes. Analyses name theirs in their own docstrings."""

_BLANKS: dict[str, Any] = {"status": NOT_YET, "prediction": -1, "correct": False}
"""What stands in arrays until it is written, where that is neither NaN nor 0."""


@dataclass(frozen=True)
class ArrayPlan:
    """One array, as it will be created.

    Parameters
    ----------
    group : str
        Group of the hierarchy, such as ``layers/features.12``; empty for the root.
    name : str
        Name of the array; a key of `REGISTRY`.
    dims : tuple of str
        Dims.
    shape, chunks : tuple of int
        Length and chunk length along each dim.
    dtype : str
        NumPy name of the dtype.
    codec : str
        How its chunks are packed: a key of `dneuro.store.codecs.CODECS`.
    """

    group: str
    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    codec: Codec = DEFAULT_CODEC

    @property
    def path(self) -> str:
        """Path inside the hierarchy."""
        return f"{self.group}/{self.name}" if self.group else self.name

    @property
    def blank(self) -> Any:
        """What stands in it until a unit is written, so that nobody takes it for an activation."""
        return _BLANKS.get(self.name, math.nan if self.dtype.startswith("float") else 0)

    @property
    def nbytes(self) -> int:
        """Bytes, uncompressed."""
        return math.prod(self.shape) * _itemsize(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of chunks: what is held before it is written."""
        return self.chunks[0] * math.prod(self.shape[1:]) * _itemsize(self.dtype)


@dataclass(frozen=True)
class LayerPlan:
    """What is kept of one layer.

    Parameters
    ----------
    name : str
        Layer.
    keep : str
        ``full``, ``max``, ``mean`` or ``stats``.
    shape : tuple of int
        Of one image's activation: (channels,) or (channels, height, width).
    dtype : str
        How activations are stored: ``float32``, ``float16``, or ``bfloat16``, which is float32 with 16 zero bits.
    codec : str
        How chunks are packed: a key of `dneuro.store.codecs.CODECS`.
    """

    name: str
    keep: str
    shape: tuple[int, ...]
    dtype: str
    codec: Codec = DEFAULT_CODEC

    @property
    def group(self) -> str:
        """Group of the layer."""
        return f"layers/{self.name}"

    @property
    def stored(self) -> str:
        """The dtype of its arrays."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    def arrays(self, images: int, unit: int) -> list[ArrayPlan]:
        """Return the arrays of this layer for `images` images in units of `unit`."""
        channels = self.shape[:1]
        dims = ("channel", "y", "x")[: len(self.shape)]
        stored = self.stored
        if self.keep == "stats":
            return []
        if self.keep == "full":
            found = [("activation", dims, self.shape, stored)]
        elif self.keep == "mean":
            found = [("activation_mean", dims[:1], channels, stored)]
        else:
            found = [("activation_max", dims[:1], channels, stored)]
            found += [(f"activation_{dim}", dims[:1], channels, "int16") for dim in dims[1:]]
        return [
            ArrayPlan(
                group=self.group,
                name=name,
                dims=("image", *of),
                shape=(images, *shape),
                chunks=chunks(shape, _itemsize(dtype), unit),
                dtype=dtype,
                codec=self.codec,
            )
            for name, of, shape, dtype in found
        ]


def root_arrays(
    images: int, unit: int, *, predictions: bool, labels: bool, picture: tuple[int, ...]
) -> list[ArrayPlan]:
    """Return the arrays with one entry per image.

    Parameters
    ----------
    images, unit : int
        Images in all and per unit.
    predictions, labels : bool
        Whether the network names classes, and whether there are labels to compare them with.
    picture : tuple of int
        (rows, columns, colours) of the pictures kept; empty for none.
    """
    names = ["status", "checksum"] + ["prediction"] * predictions + ["correct"] * (predictions and labels)
    plans = [
        ArrayPlan("", name, ("image",), (images,), (min(unit, images),), REGISTRY[name].dtype) for name in names
    ]
    if picture:
        length = max(1, min(unit, images, _power_of_two(CHUNK_BYTES // math.prod(picture))))
        shape = (images, *picture)
        plans.append(ArrayPlan("pictures", "picture", REGISTRY["picture"].dims, shape, (length, *picture), "uint8"))
    return plans


def images_per_unit(images: int) -> int:
    """Return a power of two, so that a unit is seconds of work and there are some sixteen at least."""
    return max(16, min(512, _power_of_two(images // 16)))


def chunks(shape: Sequence[int], itemsize: int, unit: int) -> tuple[int, ...]:
    """Return chunk lengths (images, channels, *positions), readable by rows and by columns.

    Parameters
    ----------
    shape : sequence of int
        Of one image's activation: (channels, *positions).
    itemsize : int
        Bytes per number.
    unit : int
        Images per unit, a power of two; the chunk length along images divides it, so that two units never
        share a chunk.

    Notes
    -----
    As many images as fit into `BUFFER_BYTES` with all their channels, then as many channels as make a
    chunk of `CHUNK_BYTES`; positions are never cut.
    """
    per_image = itemsize * math.prod(shape)
    images = max(1, min(unit, _power_of_two(BUFFER_BYTES // per_image)))
    per_channel = itemsize * math.prod(shape[1:]) * images
    channels = max(1, min(shape[0], CHUNK_BYTES // per_channel))
    channels = math.ceil(shape[0] / math.ceil(shape[0] / channels))  # all alike: the last is stored whole too
    return images, channels, *shape[1:]


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1) if number >= 1 else 1


def _itemsize(dtype: str) -> int:
    return {"float32": 4, "float16": 2, "int16": 2, "int64": 8, "uint32": 4, "uint8": 1, "bool": 1}[dtype]
