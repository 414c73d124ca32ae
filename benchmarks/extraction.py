"""Extraction of the embedded digits, against a plain loop that keeps everything in memory and stores it at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting

LAYERS = ["relu1", "relu2", "fc"]
REPEATS = 8
"""Times that the 1,797 digits are taken."""


def _pictures() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from dneuro.images.sources import open_source
    from dneuro.spec import DigitsImages

    source = open_source(DigitsImages(source="digits"))
    pictures = np.stack([source.read(i)[0] for i in range(len(source.manifest))])
    return np.tile(pictures, (REPEATS, 1, 1)), np.tile(source.manifest.labels, REPEATS)


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Extract with dneuro in one process, statistics, pictures and read-back included."""
    import torch

    import dneuro as dn
    from dneuro.engine import ThreadExecutor

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=setting.path.parent))
    pictures, labels = _pictures()
    np.savez(folder / "digits.npz", images=pictures, labels=labels)

    def call() -> float:
        store = dn.extract(
            "dneuro:convnet", images=folder / "digits.npz", layers=LAYERS, out=folder / "digits.zarr",
            weights="none", client=ThreadExecutor(),
        )  # fmt: skip
        return float(store["relu2"].mean().compute())

    return call


def plain_loop(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Hooks, a list of arrays, and ``numpy.save`` at the end."""
    import torch

    from dneuro.nets.load import load
    from dneuro.spec import NetworkSpec

    module = load(NetworkSpec(name="dneuro:convnet", weights="none")).module
    kept: dict[str, list[Any]] = {name: [] for name in LAYERS}
    for name in LAYERS:
        module.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: kept[name].append(o.numpy().copy()))
    folder = Path(tempfile.mkdtemp(dir=setting.path.parent))
    pictures, _ = _pictures()

    def call() -> float:
        with torch.inference_mode():
            for start in range(0, len(pictures), 32):
                batch = torch.from_numpy(pictures[start : start + 32, None].astype(np.float32) / 255)
                module(batch)
        for name in LAYERS:
            np.save(folder / f"{name}.npy", np.concatenate(kept[name]))
        return float(np.load(folder / "relu2.npy", mmap_mode="r").mean())

    return call


def relative(found: Any, true: Any) -> float:
    """Return the difference of the means as a share of them."""
    return abs(float(found) - float(true)) / abs(float(true))


QUESTIONS = (
    Question(
        f"Extraction of {1797 * REPEATS:,} digits, three layers",
        (
            Candidate("dneuro extract", ours, "threads"),
            Candidate("hooks, list, numpy.save", plain_loop, "memory"),
        ),
        error=relative,
    ),
)
