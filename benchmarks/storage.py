"""How activations are best stored: bytes per image, writing, reading by rows and by columns, errors; on real ones.

``python -m benchmarks.storage --photos DIR --weights DIR`` prints the tables of docs/store.md: codecs and dtypes,
shapes of chunks, errors; photographs below the one, torchvision's weights as ``alexnet_features.safetensors``,
``vgg16_features.safetensors`` and ``squeezenet1_1.safetensors`` in the other. ``--keep`` puts them into RESULTS.md.
``--more`` compares codecs that no job can ask for besides, and other shapes of what is not packed.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from benchmarks.keeping import keep, row, said, show
from dneuro.quantities import MiB
from dneuro.store.codecs import CODECS
from dneuro.store.layout import BUFFER_BYTES, CHUNK_BYTES, chunks

LAYERS = (
    ("torchvision:alexnet", "alexnet_features", "features.12", 1024),
    ("torchvision:squeezenet1_1", "squeezenet1_1", "features.12.expand3x3_activation", 256),
    ("torchvision:vgg16", "vgg16_features", "features.22", 64),
    ("torchvision:alexnet", "alexnet_features", "features.10", 256),
)
"""Network, its weights, layer (after a ReLU, but for the last: the sums before it), and as many photographs as make
some 40 to 100 MB."""

REPEATS = 3
"""Every time is the best of so many; it is that of the processor, all threads together, so that other work on a shared
machine does not show."""

UNIT = 512
"""Images per unit, as 50,000 images have it."""

STORED = ["layer", "dtype", "codec", "chunk", "KiB per image", "of float32", "write", "read rows", "read columns"]
ERRORS = ["layer", "dtype", "largest relative error", "mean", "all together, ‖Δ‖ / ‖x‖"]


def _blosc(name: str, level: int, shuffle: str) -> Any:
    return zarr.codecs.BloscCodec(cname=name, clevel=level, shuffle=shuffle)  # type: ignore[arg-type]


OTHERS: dict[str, Any] = {
    "blosc lz4 5": _blosc("lz4", 5, "noshuffle"),
    "blosc lz4 5, bitshuffle": _blosc("lz4", 5, "bitshuffle"),
    "blosc zstd 1": _blosc("zstd", 1, "noshuffle"),
    "blosc zstd 1, bitshuffle": _blosc("zstd", 1, "bitshuffle"),
    "blosc zstd 3, shuffle": _blosc("zstd", 3, "shuffle"),
    "zstd 3": zarr.codecs.ZstdCodec(level=3, checksum=True),
}
"""Codecs that no job can name."""

HALF = ("zstd-fast", "zstd-shuffle")
"""What is compared for the smaller dtypes."""


Found = Sequence[tuple[str, NDArray[np.float32]]]
"""Layers by name, and their activations."""


@dataclass(frozen=True)
class Way:
    """One way to store a layer.

    Parameters
    ----------
    dtype : str
        ``float32``, ``float16`` or ``bfloat16``.
    codec : str
        Key of `CODECS`, or of `OTHERS`.
    chunk : int
        Bytes of a chunk, about; 0 for those that a store has.
    row : int
        Bytes of a row of chunks, about, where the chunks are not those of a store.
    shard : bool
        A row of chunks is one file.
    """

    dtype: str = "float32"
    codec: Any = "zstd-fast"
    chunk: int = 0
    row: int = BUFFER_BYTES
    shard: bool = False


def ways() -> Iterator[Way]:
    """Yield every way that a job can ask for, and is worth comparing."""
    for codec in ("none", "lz4-shuffle", "zstd-shuffle", "zstd-fast", "zstd"):
        yield Way(codec=codec)
    for dtype in ("float16", "bfloat16"):
        for codec in HALF:
            yield Way(dtype, codec)


def shapes(codec: str) -> Iterator[tuple[str, Way]]:
    """Yield what chunks are, and how to have them: as a store has them, smaller and larger ones, and shards."""
    yield f"{CHUNK_BYTES // MiB} MiB of {BUFFER_BYTES // MiB}, as stored", Way(codec=codec)
    for size in (1, 2, 8, 16):
        yield f"{size} MiB of {BUFFER_BYTES // MiB}", Way(codec=codec, chunk=size * MiB)
    for size in (4, 8, 16, 64):
        yield f"{CHUNK_BYTES // MiB} MiB of {size}", Way(codec=codec, chunk=CHUNK_BYTES, row=size * MiB)
    for size in (1, 4):
        yield f"{size} MiB of {BUFFER_BYTES // MiB}, shards", Way(codec=codec, chunk=size * MiB, shard=True)


def activations(photos: Path, weights: Path, folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield (name, activations (image, channel, y, x)) of each of `LAYERS`, on photographs from all over the list."""
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
        values = np.load(kept)
        yield f"{name.removeprefix('torchvision:')} {layer}, {float((values == 0).mean()):.0%} zeros", values


def as_stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Return activations as they would be stored."""
    from dneuro.store.rounding import rounded

    return values if dtype == "float32" else rounded(values, dtype)


def measure(values: NDArray[Any], way: Way, path: Path) -> list[str]:
    """Write and read `values` in one way; return the last columns of the table, speeds in MB of float32 per second."""
    cuts, shards = cut(values, way)
    megabytes = 4 * values.size / 1e6

    def write() -> None:
        shutil.rmtree(path, ignore_errors=True)
        array = zarr.create_array(
            path,
            shape=values.shape,
            chunks=cuts,
            shards=shards,
            dtype=values.dtype,
            compressors=OTHERS[way.codec] if way.codec in OTHERS else CODECS[way.codec],
        )
        for start in range(0, len(values), cuts[0]):
            array[start : start + cuts[0]] = values[start : start + cuts[0]]

    def rows() -> None:
        array = zarr.open_array(path, mode="r")
        for start in range(0, len(values), cuts[0]):
            array[start : start + cuts[0]]

    def columns() -> None:
        array = zarr.open_array(path, mode="r")
        for start in range(0, values.shape[1], cuts[1]):
            array[:, start : start + cuts[1]]

    seconds = [best(step) for step in (write, rows, columns)]
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return [
        " × ".join(map(str, cuts)) + (", a row in one file" if way.shard else ""),
        f"{size / len(values) / 1024:,.0f}",
        f"{size / values.size / 4:.0%}",
        *(f"{megabytes / s:,.0f}" for s in seconds),
    ]


def cut(values: NDArray[Any], way: Way) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the shapes of a chunk, and of a shard where there are any."""
    if not way.chunk:
        images, *rest = chunks(values.shape[1:], values.itemsize, UNIT)
        return (min(images, len(values)), *rest), None
    per_image = values.nbytes // len(values)
    images = max(1, min(len(values), 1 << ((way.row // per_image) or 1).bit_length() - 1))
    per_channel = images * per_image // values.shape[1]
    channels = max(1, min(values.shape[1], way.chunk // per_channel))
    channels = math.ceil(values.shape[1] / math.ceil(values.shape[1] / channels))
    while way.shard and values.shape[1] % channels:
        channels -= 1
    positions = values.shape[2:]
    return (images, channels, *positions), ((images, *values.shape[1:]) if way.shard else None)


def best(step: Callable[[], None]) -> float:
    """Return the least processor seconds of `REPEATS` runs."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        step()
        found.append(time.process_time() - began)
    return min(found)


def copied(values: NDArray[np.float32]) -> str:
    """Return how fast a copy in memory is, in MB per second: no reading can be faster."""
    copy = np.empty_like(values)
    return f"{values.nbytes / 1e6 / best(lambda: np.copyto(copy, values)):,.0f}"


def errors(values: NDArray[np.float32], dtype: str) -> list[str]:
    """Return the errors of a dtype: relative ones of what is not zero, and of all together."""
    exact = values.astype(np.float64)
    wrong = np.abs(as_stored(values, dtype).astype(np.float64) - exact)
    relative = wrong[exact != 0] / np.abs(exact[exact != 0])
    together = np.linalg.norm(wrong) / np.linalg.norm(exact)
    return [f"{error:.1e}" for error in (relative.max(), relative.mean(), together)]


def table(heading: list[str], rows: Iterable[Sequence[str]]) -> str:
    """Print a table line by line, and return it."""
    lines = show(row(heading), row(["---"] * len(heading)))
    for cells in rows:
        lines += show(row(cells))
    return "\n".join([*lines, *show("")])


def stored(found: Found, path: Path, *, more: bool) -> Iterator[list[str]]:
    """Yield what comes of each codec and dtype, with the chunks that a store has."""
    for number, (layer, values) in enumerate(found):
        others = [Way(codec=codec) for codec in OTHERS] if more and number == 0 else []
        for way in (*ways(), *others):
            yield [layer, way.dtype, f"`{way.codec}`", *measure(as_stored(values, way.dtype), way, path)]


def shaped(found: Found, path: Path, codec: str) -> Iterator[list[str]]:
    """Yield what comes of chunks of each shape, all layers beside each other."""
    for what, way in shapes(codec):
        cells = []
        for _, values in found:
            cut_into, size, share, written, *read = measure(values, way, path)
            cells.append(f"{cut_into}: {size} KiB, {share}; {written}; {' / '.join(read)}")
        yield [what, *cells]


def lost(found: Found) -> Iterator[list[str]]:
    """Yield the errors of each dtype."""
    for layer, values in found:
        for dtype in ("float16", "bfloat16"):
            yield [layer, dtype, *errors(values, dtype)]


def main() -> None:
    """Parse the command line, measure, print; with ``--keep`` put the tables into RESULTS.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--weights", type=Path, required=True, help="a folder of safetensors")
    more = "codecs that no job can ask for, and shapes of what is not packed"
    parser.add_argument("--more", action="store_true", help=more)
    parser.add_argument("--keep", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dneuro-benchmark-") as name:
        folder = Path(name)
        found = list(activations(asked.photos, asked.weights, folder))
        words = re.sub(r"--(photos|weights)[ =]\S+", r"--\1 DIR", " ".join(sys.argv[1:])).split()
        copies = ", ".join(copied(values) for _, values in found)
        above = f"{said('benchmarks.storage', words)}; a copy in memory: {copies} MB/s.\n\n"
        print(above)
        way = folder / "way.zarr"
        sections = {"codecs and dtypes": above + table(STORED, stored(found, way, more=asked.more))}
        for codec in ("zstd-fast", *(["none"] if asked.more else [])):
            heading = ["a chunk of a row of chunks", *(layer for layer, _ in found)]
            sections[f"shapes of chunks, float32, `{codec}`"] = above + table(heading, shaped(found, way, codec))
        sections["errors of dtypes"] = above + table(ERRORS, lost(found))
    if asked.keep:
        keep("storage", sections)


if __name__ == "__main__":
    main()
