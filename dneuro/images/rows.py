"""Pictures that are the rows of an array."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import UnreadableImageError
from dneuro.images.manifest import Manifest
from dneuro.images.memory import Share
from dneuro.images.sampling import draw
from dneuro.spec.images import Cifar10Images, MnistImages


def read_row(rows: Any, row: int, identity: str, share: Share, where: str) -> tuple[NDArray[np.uint8], int]:
    """Return the picture in a row and its CRC-32.

    Parameters
    ----------
    rows : array-like
        Gives the picture of a row; `shape` is (n, height, width, …), and `reading_bytes`, if there, what one takes.
    row : int
        Which.
    identity : str
        The CRC-32 that the manifest lists.
    share : Share
        Of the memory for pictures.
    where : str
        Names the picture in messages.

    Raises
    ------
    UnreadableImageError
        If it cannot be read, changed since it was listed, or is too large for the share.
    """
    share.row(rows.shape[2], rows.shape[1], getattr(rows, "reading_bytes", 0), where)
    try:
        picture = np.array(rows[row], order="C")  # the caller's own
    except Exception as error:  # codecs raise nearly everything on damaged chunks
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # says something about the machine, not about the image
        raise UnreadableImageError(f"{where}: cannot be read: {error}") from error
    crc = zlib.crc32(picture.data)
    if f"{crc:08x}" != identity:
        raise UnreadableImageError(f"{where}: changed since it was listed: CRC-32 {crc:08x}, not {identity}")
    return picture, crc


def list_rows(
    spec: MnistImages | Cifar10Images,
    pictures: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    class_names: tuple[str, ...],
) -> Manifest:
    """Return the manifest of the pictures of one split, named ``train-00000``, ``train-00001``, …"""
    indices = draw(spec, len(pictures), f"{spec.root}: {spec.split}")
    return Manifest(
        names=np.array([f"{spec.split}-{i:05d}" for i in indices], object),
        labels=labels[indices].astype(np.int64),
        class_names=class_names,
        identity=np.array([f"{zlib.crc32(np.ascontiguousarray(pictures[i]).data):08x}" for i in indices], object),
        indices=indices,
        source=spec.model_dump(mode="json"),
    )
