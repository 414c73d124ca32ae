"""How much a unit costs besides its work: ten thousand units of next to nothing, on worker processes.

``python -m benchmarks.units [--units N] [--workers N]``: seconds, and the driver's memory in the midst and at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

import dneuro as dn
from dneuro import events
from dneuro.cluster import backend_of
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.quantities import format_bytes
from dneuro.spec import PoolSpec, ProfileSpec, parse_job

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
"""


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.units", description=__doc__)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dneuro-units-") as folder:
        _measure(Path(folder), asked.units, asked.workers)


def _measure(folder: Path, units: int, workers: int) -> None:
    (folder / "network.py").write_text(NETWORK)
    images = np.random.default_rng(0).integers(0, 256, (units, 2, 2), np.uint8)
    np.savez(folder / "images.npz", images=images)
    job = parse_job(
        f"""
        name: units
        images: {{source: array, root: {folder}/images.npz}}
        network: {{name: "python:{folder}/network.py:make", preprocessing: {{color: grey}}}}
        store: {folder}/units.zarr
        steps:
        - extract: {{layers: ["1"], images_per_unit: 1, predictions: false, thumbnails: false, statistics: []}}
        """.replace("\n        ", "\n")
    )
    backend = backend_of(ProfileSpec(backend="local", pools={"extract": PoolSpec(workers=workers, memory=3 * 2**29)}))
    held: dict[int, int] = {}
    driver = psutil.Process()

    def look(event: events.Event) -> None:
        done = event.data.get("units", {}).get("done", 0)
        if done % max(1, units // 10) == 0:
            held[done] = driver.memory_info().rss

    planned = plan_job(job, backend.sizes)
    with backend.open(name="units") as machines, events.listening(look):
        began = time.perf_counter()
        result = run_job(planned, machines)
        seconds = time.perf_counter() - began
    assert result.outcome.quarantined == {}
    assert dn.open(folder / "units.zarr")["1"].shape == (units, 2)
    for done, rss in sorted(held.items()):
        print(f"{done:6} units: the driver holds {format_bytes(rss)}")
    print(
        f"{units} units on {workers} workers in {seconds:.1f} s, "
        f"{1000 * seconds * workers / units:.1f} ms of a worker each"
    )


if __name__ == "__main__":
    main()
