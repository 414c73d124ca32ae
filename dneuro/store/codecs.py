"""How chunks are packed. `python -m benchmarks.storage` measures it, docs/store.md has the table."""

from __future__ import annotations

from typing import Any

import zarr.codecs

from dneuro.spec.steps import Codec

CODECS: dict[Codec, Any] = {
    # Without shuffling: the exact zeros after a ReLU are runs of bytes, which shuffling would cut up. The checksum
    # makes a reader refuse a chunk that was altered, rather than return other numbers.
    "zstd-fast": zarr.codecs.ZstdCodec(level=-1, checksum=True),
    "zstd": zarr.codecs.ZstdCodec(level=1, checksum=True),
    "zstd-shuffle": zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
    "lz4-shuffle": zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
    "none": None,
}
"""Every codec, by the name it has in a job. A store tells its readers itself."""

FIRST_CODEC: Codec = "zstd-shuffle"
"""Of layers that do not say which: they were made before there was a choice."""
