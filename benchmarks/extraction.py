"""Extraction of the embedded digits, against a plain loop that keeps everything in memory and stores it at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import measure, timed

LAYERS = ["relu1", "relu2", "fc"]
REPEATS = 8
"""Times that the 1,797 digits are taken."""


def _pictures(path: Path) -> None:
    from dneuro.images.sources import open_source
    from dneuro.spec import DigitsImages

    source = open_source(DigitsImages(source="digits"))
    pictures = np.stack([source.read(i)[0] for i in range(len(source.manifest))])
    np.savez(path, images=np.tile(pictures, (REPEATS, 1, 1)), labels=np.tile(source.manifest.labels, REPEATS))


def ours(images: Path, out: Path) -> Any:
    """Time dneuro in one process, statistics, pictures and read-back included."""
    import torch

    import dneuro as dn
    from dneuro.engine import ThreadExecutor

    torch.set_num_threads(1)
    run = lambda: dn.extract(  # noqa: E731
        "dneuro:convnet", images=images, layers=LAYERS, out=out, weights="none", client=ThreadExecutor()
    )
    seconds, store = timed(run)
    return seconds, float(store["relu2"].mean().compute())


def peer(images: Path, out: Path) -> Any:
    """Time hooks, a list of arrays, and ``numpy.save`` at the end."""
    import torch

    from dneuro.nets.load import load
    from dneuro.spec import NetworkSpec

    module = load(NetworkSpec(name="dneuro:convnet", weights="none")).module
    kept: dict[str, list[Any]] = {name: [] for name in LAYERS}
    for name in LAYERS:
        module.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: kept[name].append(o.numpy().copy()))

    def run() -> float:
        pictures = np.load(images)["images"]
        with torch.inference_mode():
            for start in range(0, len(pictures), 32):
                batch = torch.from_numpy(pictures[start : start + 32, None].astype(np.float32) / 255)
                module(batch)
        for name in LAYERS:
            np.save(out.with_name(f"{name}.npy"), np.concatenate(kept[name]))
        return float(np.load(out.with_name("relu2.npy"), mmap_mode="r").mean())

    return timed(run)


def rows(folder: Path) -> list[list[str]]:
    """Measure; return the row of the table."""
    images = folder / "digits.npz"
    _pictures(images)
    mine = measure(ours, images, folder / "digits.zarr")
    other = measure(peer, images, folder / "peer")
    error = abs(mine.value - other.value) / abs(other.value)
    return [[
        f"extract {1797 * REPEATS:,} digits", f"{mine.seconds:.2f}", f"{mine.peak / 2**20:.0f}",
        "hooks, list, numpy.save", f"{other.seconds:.2f}", f"{other.peak / 2**20:.0f}",
        f"{mine.seconds / other.seconds:.2f}", f"{error:.0e}",
    ]]  # fmt: skip
