"""The plan's promise of memory, held against what a worker really takes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import MemoryLimitError
from dneuro.extract.plan import TORCH_BYTES, ExtractPlan, plan_extraction
from dneuro.extract.work import ExtractWork
from dneuro.kernels import Moments
from dneuro.kernels.feeds import Feed
from dneuro.quantities import MiB
from dneuro.spec import JobSpec

# What a worker of a cluster does, without the rest of it: unpickle the work, extract each unit.
# VmHWM and not ru_maxrss, which begins at the size of the process that forked.
WORKER = """
    import pickle, re, sys
    import distributed
    from dneuro.extract.task import extract_unit
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            work = pickle.load(file)
        for number in range(work.plan.units):
            extract_unit(work, number, work.missing(number))
        with open("/proc/self/status") as file:
            print(int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak memory, on Linux only")
def test_worker__stays_within_the_plan(
    tmp_path: Path, make_job: Callable[..., JobSpec], begin: Callable[..., ExtractWork]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pictures)
    jobs: dict[str, dict[str, Any]] = {
        "dneuro:convnet": {
            "images": {"source": "digits", "sample": 256},
            "layers": ["conv1", "relu2", "fc"],
        },
        "torchvision:squeezenet1_1": {  # the larger one last: a peak never goes down
            "images": {"source": "array", "root": str(tmp_path / "pictures.npz")},
            "layers": {"features.0": {"keep": "full"}, "features.12.squeeze": {"keep": "max"}},
            "steps": [{"moments": {"per": "neuron"}}, {"similarity": {"pool": "mean", "metric": "pearson"}}],
        },
    }
    works = []
    for name, settings in jobs.items():
        network = {"name": name, "weights": "none"}
        steps = settings.pop("steps", [])
        job = make_job(*steps, network=network, images_per_unit=64, store=f"{len(works)}.zarr", **settings)
        works.append(begin(job, ThreadExecutor(1)))
        (tmp_path / f"{len(works)}.pickle").write_bytes(cloudpickle.dumps(works[-1]))
    command = [sys.executable, "-c", textwrap.dedent(WORKER), *map(str, sorted(tmp_path.glob("*.pickle")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for work, peak in zip(works, map(int, done.stdout.split()), strict=True):
        assert all(work.missing(number) == () for number in range(work.plan.units))
        assert peak <= work.plan.worker_bytes <= 1.4 * peak, (work.network.name, peak / MiB)


def plan(**settings: Any) -> ExtractPlan:
    shapes = {"conv": (64, 112, 112), "pool": (64, 56, 56), "fc": (1000,)}
    known: dict[str, Any] = {
        "images": 1000, "kept": {"conv": "full"}, "shapes": shapes, "held": (8 * MiB, 4 * MiB),
        "input_shape": (3, 224, 224), "weight_bytes": 100 * MiB, "dtype": "float32", "batch": 32, "unit": 128,
        "predictions": True, "labels": True, "thumbnails": True,
    }  # fmt: skip
    return plan_extraction(**(known | settings))


def test_plan__grows_with_what_a_worker_holds() -> None:
    base = plan().worker_bytes
    assert base > TORCH_BYTES + 100 * MiB
    assert plan(batch=64).worker_bytes > base
    assert plan(kept={"conv": "full", "pool": "full"}).worker_bytes > base
    assert plan(weight_bytes=200 * MiB).worker_bytes >= base + 100 * MiB
    feeds = {"conv": (Feed("neuron", Moments()),)}
    assert plan().feeding(feeds).worker_bytes >= base + 2 * 48 * 64 * 112 * 112
    assert plan().feeding(feeds).partial_bytes == 48 * 64 * 112 * 112
    assert plan().feeding(feeds, 2).worker_bytes > plan().feeding(feeds).worker_bytes
    two = plan(slots_per_process=2).worker_bytes
    assert base < two < 2 * base, "two units in one process share torch and the weights"
    assert plan(held=(9 * MiB, 4 * MiB)).worker_bytes >= base + 32 * MiB
    assert plan(kept={"conv": "stats"}).worker_bytes <= base - 32 * 4 * 64 * 112 * 112, "nothing waits to be written"
    assert plan(unit=16).worker_bytes == plan(unit=16, batch=16).worker_bytes, "a batch is never more than a unit"
    assert plan(unit=16, batch=10**9).feeding(feeds).worker_bytes == plan(unit=16, batch=16).feeding(feeds).worker_bytes
    assert plan(images=10**7).worker_bytes == plan(images=10**6).worker_bytes, "flat in the number of images"


def test_plan__knows_what_the_store_will_take() -> None:
    small = plan(kept={"conv": "max", "fc": "full", "pool": "stats"}, predictions=False, thumbnails=False)
    conv = 1000 * 64 * (4 + 2 + 2)
    fc = 1000 * 1000 * 4
    assert small.store_bytes == conv + fc + 1000 * (1 + 4)  # status and checksum
    assert plan(dtype="float16", predictions=False, thumbnails=False).store_bytes == 1000 * (64 * 112 * 112 * 2 + 5)


def test_plan__refuses_what_does_not_fit_with_the_numbers() -> None:
    with pytest.raises(MemoryLimitError, match=r"extract needs [\d.]+ GiB per worker.*the limit is 300 MiB") as caught:
        plan().check(300 * MiB)
    assert "nothing was started" in caught.value.message
    assert "batch: 8" in str(caught.value.hint)
    plan().check(plan().worker_bytes)


@pytest.mark.parametrize(("images", "unit", "spans"), [(40, 16, [(0, 16), (16, 32), (32, 40)]), (5, 16, [(0, 5)])])
def test_plan__cuts_the_images_into_units(images: int, unit: int, spans: list[tuple[int, int]]) -> None:
    found = plan(images=images, unit=unit)
    assert [found.span(number) for number in range(found.units)] == spans
