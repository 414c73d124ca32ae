"""What a job was planned to take, against what it took: memory of a worker, bytes on disk, seconds.

``python -m benchmarks.plan --photos DIR --weights DIR``; photographs in the one, torchvision's weights as
``alexnet_features.safetensors``, ``vgg16_features.safetensors`` and ``squeezenet1_1.safetensors`` in the other; further
networks have random weights. Every job runs in a worker process of its own, as `dneuro run` starts it. Bytes and
seconds are those that a trial foretells (``--calibrate``), without one the bytes are those before compression.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.cluster import backend_of
from dneuro.jobs.calibration import forecast
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.jobs.trials import bytes_below, most_memory
from dneuro.quantities import MiB
from dneuro.spec import JobSpec
from dneuro.spec.profile import PoolSpec, ProfileSpec

WEIGHTS = {"alexnet": "alexnet_features", "vgg16": "vgg16_features", "squeezenet1_1": "squeezenet1_1"}
SQUEEZENET = tuple(f"features.{number}" for number in (3, 6, 9, 12))
ALEXNET = tuple(f"features.{number}" for number in (1, 4, 7, 9, 12))
VGG16 = tuple(f"features.{number}" for number in (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29))

HEADINGS = [
    "job", "batch", "worker MiB: planned", "held", "ratio", "disk MiB: foretold", "taken", "ratio",
    "seconds: foretold", "taken", "ratio",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One job.

    Parameters
    ----------
    network : str
        Of torchvision.
    layers : tuple of str
        Its layers.
    keep : str
        What is kept of each.
    batch : int
        Images per forward pass.
    share : float
        Of the images asked for.
    settings : dict
        More of the extract step.
    """

    network: str
    layers: tuple[str, ...]
    keep: str
    batch: int
    share: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> int:
        """Images per unit: some batches."""
        return max(64, 4 * self.batch)

    def __str__(self) -> str:
        layers = self.layers[0] if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return " ".join([self.network, layers, self.keep, *map(str, self.settings.values())])

    def job(self, photos: Path, weights: Path, images: int, store: Path) -> JobSpec:
        """Return the job."""
        file = str(weights / f"{WEIGHTS[self.network]}.safetensors") if self.network in WEIGHTS else "none"
        extract = {"layers": {name: {"keep": self.keep} for name in self.layers}, "batch": self.batch}
        return JobSpec.model_validate({
            "name": "benchmark",
            "images": {"source": "files", "root": str(photos), "sample": max(32, round(self.share * images))},
            "network": {"name": f"torchvision:{self.network}", "weights": file},
            "store": str(store),
            "steps": [{"extract": {**extract, "images_per_unit": self.unit, **self.settings}}],
        })  # fmt: skip


CASES = (
    Case("squeezenet1_1", SQUEEZENET, "stats", 16),
    Case("squeezenet1_1", SQUEEZENET, "stats", 64),
    Case("squeezenet1_1", SQUEEZENET[-1:], "full", 16),
    Case("squeezenet1_1", SQUEEZENET[:1], "full", 64),
    Case("squeezenet1_1", SQUEEZENET[:1], "full", 64, settings={"dtype": "float16"}),
    Case("alexnet", ALEXNET, "stats", 16),
    Case("alexnet", ALEXNET, "max", 128),
    Case("alexnet", ALEXNET[-1:], "full", 64),
    Case("vgg16", VGG16, "stats", 4, 0.1),
    Case("vgg16", VGG16, "stats", 16, 0.1),
    Case("vgg16", VGG16[1:2], "full", 4, 0.1),
    Case("vgg16", VGG16[-1:], "full", 16, 0.1),
    Case("resnet18", ("layer1", "layer2", "layer3", "layer4"), "stats", 64),
    Case("densenet121", ("features.denseblock1", "features.denseblock4"), "stats", 32, 0.5),
    Case("googlenet", ("inception3a", "inception4a"), "stats", 32, 0.5),
    Case("mobilenet_v2", ("features.3", "features.10"), "stats", 32, 0.5),
    Case("vit_b_16", ("encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_11"), "stats", 16, 0.2),
)


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000, help="per job; a tenth for VGG16")
    parser.add_argument("--calibrate", type=int, default=0, help="images of the trial")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", default="", help="jobs whose name matches this pattern")
    asked = parser.parse_args()
    for cells in itertools.chain((HEADINGS, ["---"] * len(HEADINGS)), _rows(asked)):
        print(f"| {' | '.join(cells)} |", flush=True)


def _rows(asked: argparse.Namespace) -> Iterator[list[str]]:
    for case in CASES:
        if re.search(asked.only, str(case)):
            with tempfile.TemporaryDirectory(prefix="dneuro-benchmark-") as folder:
                yield _row(case, asked, Path(folder))


def _row(case: Case, asked: argparse.Namespace, folder: Path) -> list[str]:
    pool = PoolSpec.model_validate({"workers": asked.workers, "memory": "64GiB"})
    profile = ProfileSpec.model_validate({"backend": "local", "pools": {"extract": pool.model_dump()}})
    backend = backend_of(profile)
    with events.only(lambda _event: None):
        plan = plan_job(case.job(asked.photos, asked.weights, asked.images, folder / "store.zarr"), backend.sizes)
        foretold = forecast(plan, profile, asked.calibrate) if asked.calibrate else None
        with backend.open(name="plan") as machines:
            began = time.perf_counter()
            run_job(plan, machines)
            seconds = time.perf_counter() - began
            held = max(machines.client.run(most_memory).values())
    taken = bytes_below(folder)
    shutil.rmtree(folder / "store.zarr")
    disk = foretold.disk_bytes if foretold else plan.disk_bytes
    found = [str(case), str(case.batch), *_compared(plan.worker_bytes / MiB, held / MiB)]
    found += _compared(disk / MiB, taken / MiB)
    return found + (_compared(foretold.total, seconds) if foretold else [""] * 3)


def _compared(foretold: float, truth: float) -> list[str]:
    return [f"{foretold:.0f}", f"{truth:.0f}", f"{foretold / truth:.2f}"]


if __name__ == "__main__":
    main()
