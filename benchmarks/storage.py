"""How activations are best stored: bytes per image, writing, reading by rows and by columns, on real activations.

``python -m benchmarks.storage --photos DIR --weights DIR``; photographs below the one, torchvision's weights as
``alexnet_features.safetensors``, ``vgg16_features.safetensors`` and ``squeezenet1_1.safetensors`` in the other.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from dneuro.quantities import MiB

LAYERS = (
    ("torchvision:alexnet", "alexnet_features", "features.12", 1024),
    ("torchvision:alexnet", "alexnet_features", "features.10", 256),
    ("torchvision:squeezenet1_1", "squeezenet1_1", "features.12.expand3x3_activation", 256),
    ("torchvision:vgg16", "vgg16_features", "features.22", 64),
)
"""Network, its weights, layer (after a ReLU, but for the second: the sums before it), and as many photographs as make
some 40 to 100 MB."""

REPEATS = 3
"""Every time is the best of so many; it is that of the processor, all threads together, so that other work on a shared
machine does not show."""

HEADINGS = [
    "layer", "dtype", "codec", "chunk MiB", "KiB per image", "of its size", "write MB/s", "rows MB/s",
    "columns MB/s",
]  # fmt: skip


def _blosc(name: str, level: int, shuffle: str) -> Any:
    return zarr.codecs.BloscCodec(cname=name, clevel=level, shuffle=shuffle)  # type: ignore[arg-type]


CODECS: dict[str, Any] = {
    "none": None,
    "blosc lz4 5": _blosc("lz4", 5, "noshuffle"),
    "blosc lz4 5, shuffle": _blosc("lz4", 5, "shuffle"),
    "blosc lz4 5, bitshuffle": _blosc("lz4", 5, "bitshuffle"),
    "blosc zstd 1": _blosc("zstd", 1, "noshuffle"),
    "blosc zstd 1, shuffle": _blosc("zstd", 1, "shuffle"),
    "blosc zstd 1, bitshuffle": _blosc("zstd", 1, "bitshuffle"),
    "blosc zstd 3, shuffle": _blosc("zstd", 3, "shuffle"),
    "zstd -1": zarr.codecs.ZstdCodec(level=-1, checksum=True),
    "zstd 1": zarr.codecs.ZstdCodec(level=1, checksum=True),
    "zstd 3": zarr.codecs.ZstdCodec(level=3, checksum=True),
}
"""What is compared."""

SHORT = ("none", "blosc lz4 5, shuffle", "blosc zstd 1, shuffle", "zstd -1", "zstd 1")
"""What is compared for the smaller dtypes."""


@dataclass(frozen=True)
class Way:
    """One way to store a layer.

    Parameters
    ----------
    dtype : str
        ``float32``, ``float16`` or ``bfloat16``.
    codec : str
        Key of `CODECS`.
    chunk : int
        Bytes of a chunk, about.
    row : int
        Bytes of a row of chunks, about.
    shard : bool
        A row of chunks is one file.
    """

    dtype: str = "float32"
    codec: str = "zstd -1"
    chunk: int = 4 * MiB
    row: int = 32 * MiB
    shard: bool = False


def ways(sizes: bool) -> Iterator[Way]:
    """Yield what is compared: every codec, some with each dtype, and if asked sizes of chunks."""
    for codec in CODECS:
        yield Way("float32", codec)
    for dtype in ("float16", "bfloat16"):
        for codec in SHORT:
            yield Way(dtype, codec)
    for codec in ("none", "zstd -1") if sizes else ():
        base = Way(codec=codec)
        for size in (1, 2, 8, 16, 32):
            yield replace(base, chunk=size * MiB)
        for size in (1, 4):
            yield replace(base, chunk=size * MiB, shard=True)


def activations(photos: Path, weights: Path, folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield (name, activations (image, channel, y, x)) of each of `LAYERS`, on the first photographs."""
    import torch

    from dneuro.images.preprocess import to_input, view
    from dneuro.images.sources import open_source
    from dneuro.nets.load import load
    from dneuro.nets.taps import tap
    from dneuro.spec import NetworkSpec
    from dneuro.spec.images import FilesImages

    source = open_source(FilesImages(source="files", root=str(photos)))
    for name, file, layer, count in LAYERS:
        kept = folder / f"{file}-{layer}.npy"
        if not kept.exists():
            network = load(NetworkSpec(name=name, weights=str(weights / f"{file}.safetensors")), partial_for=[layer])
            numbers = np.linspace(0, len(source.manifest) - 1, count).astype(int)
            parts = []
            for first in range(0, count, 16):
                seen = [view(source.read(int(i))[0], network.preprocessing) for i in numbers[first : first + 16]]
                batch = torch.from_numpy(np.stack([to_input(s, network.preprocessing) for s in seen]))
                with tap(network.module, [layer]) as tapped:
                    parts.append(np.asarray(tapped(batch)[0][layer]))
            np.save(kept, np.concatenate(parts))
        yield f"{name.removeprefix('torchvision:')} {layer}", np.load(kept)


def as_stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Return activations as they would be stored."""
    from dneuro.store.rounding import to_bfloat16

    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def measure(values: NDArray[Any], way: Way, path: Path) -> list[str]:
    """Write and read `values` in one way; return the last columns of the table."""
    chunks, shards = cut(values, way)
    megabytes = values.nbytes / 1e6

    def write() -> None:
        shutil.rmtree(path, ignore_errors=True)
        array = zarr.create_array(
            path,
            shape=values.shape,
            chunks=chunks,
            shards=shards,
            dtype=values.dtype,
            compressors=CODECS[way.codec],
        )
        for start in range(0, len(values), chunks[0]):
            array[start : start + chunks[0]] = values[start : start + chunks[0]]

    def rows() -> None:
        array = zarr.open_array(path, mode="r")
        for start in range(0, len(values), chunks[0]):
            array[start : start + chunks[0]]

    def columns() -> None:
        array = zarr.open_array(path, mode="r")
        for start in range(0, values.shape[1], chunks[1]):
            array[:, start : start + chunks[1]]

    seconds = [best(step) for step in (write, rows, columns)]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return [
        f"{size / len(values) / 1024:.0f}",
        f"{size / values.size / 4:.0%}",
        *(f"{megabytes / s:.0f}" for s in seconds),
    ]


def cut(values: NDArray[Any], way: Way) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the shapes of a chunk and of a shard."""
    per_image = values.nbytes // len(values)
    images = max(1, min(len(values), 1 << ((way.row // per_image) or 1).bit_length() - 1))
    per_channel = images * per_image // values.shape[1]
    channels = max(1, min(values.shape[1], way.chunk // per_channel))
    channels = math.ceil(values.shape[1] / math.ceil(values.shape[1] / channels))
    while way.shard and values.shape[1] % channels:
        channels -= 1
    rest = values.shape[2:]
    return (images, channels, *rest), ((images, *values.shape[1:]) if way.shard else None)


def best(step: Callable[[], None]) -> float:
    """Return the least processor seconds of `REPEATS` runs."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        step()
        found.append(time.process_time() - began)
    return min(found)


def rows(folder: Path, photos: Path, weights: Path) -> Iterator[list[str]]:
    """Measure; yield the rows of the table, as soon as each is known."""
    for number, (layer, values) in enumerate(activations(photos, weights, folder)):
        zeros = float((values == 0).mean())
        copy = np.empty_like(values)
        seconds = best(lambda values=values, copy=copy: np.copyto(copy, values))  # type: ignore[misc]
        speed = f"{values.nbytes / 1e6 / seconds:.0f}"
        yield [f"{layer}: {zeros:.0%} zeros", "float32", "a copy in memory", "", "", "", speed, speed, speed]
        for way in ways(sizes=number == 0):
            shown = f"{way.chunk / MiB:g}" + (", one file per row" if way.shard else "")
            stored = as_stored(values, way.dtype)
            yield [layer, way.dtype, way.codec, shown, *measure(stored, way, folder / "way.zarr")]
        for dtype in ("float16", "bfloat16"):
            stored = as_stored(values, dtype).astype(np.float32)
            relative = np.abs(stored - values)[values != 0] / np.abs(values[values != 0])
            yield [layer, dtype, f"relative error: largest {relative.max():.1e}, mean {relative.mean():.1e}", *[""] * 6]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--weights", type=Path, required=True, help="a folder of safetensors")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dneuro-benchmark-") as folder:
        for row in (HEADINGS, ["---"] * len(HEADINGS)):
            print(f"| {' | '.join(row)} |")
        for row in rows(Path(folder), asked.photos, asked.weights):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
