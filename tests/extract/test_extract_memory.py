"""The plan's promise of memory, held against what a worker really takes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from dneuro.cluster.settings import process_variables
from dneuro.engine.device import CUDA_BYTES, TORCH_BYTES
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import MemoryLimitError
from dneuro.extract.plan import ExtractPlan, plan_extraction, to_dict
from dneuro.extract.work import ExtractWork
from dneuro.kernels import Moments, TopK
from dneuro.kernels.feeds import Feed
from dneuro.quantities import GiB, MiB
from dneuro.spec import JobSpec

# What a worker of a cluster does, without the rest of it: unpickle the work, extract each unit.
# VmHWM and not ru_maxrss, which begins at the size of the process that forked.
WORKER = """
    import pickle, re, sys
    import distributed, torch, torchvision
    from dneuro.extract.task import extract_unit
    import dneuro.images.sources, dneuro.nets.load, dneuro.nets.running

    def peak():
        with open("/proc/self/status") as file:
            print(int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1]) * 1024)

    peak()
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            work = pickle.load(file)
        for number in range(work.plan.units):
            extract_unit(work, number, work.missing(number))
        peak()
"""


NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
"""


def worker() -> ThreadExecutor:
    """Return what there is to know of the worker that `peaks_of` starts."""
    executor = ThreadExecutor(1)
    executor.coalescing = True
    return executor


def peaks_of(*pickles: Path) -> list[int]:
    """Return the peak memory of a fresh worker, in bytes: with its libraries alone, then after each piece of work."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), *map(str, pickles)]
    variables = os.environ | process_variables(1)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    return [int(size) for size in done.stdout.split()]


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
        works.append(begin(job, worker()))
        (tmp_path / f"{len(works)}.pickle").write_bytes(cloudpickle.dumps(works[-1]))
    libraries, *peaks = peaks_of(*sorted(tmp_path.glob("*.pickle")))
    for work, peak in zip(works, peaks, strict=True):
        assert all(work.missing(number) == () for number in range(work.plan.units))
        planned = work.plan.worker_bytes
        assert peak <= planned, (work.network.name, peak / MiB, planned / MiB)
        # What the libraries take is counted for torch with all that a card needs; torch for CPUs alone takes less.
        assert planned <= 1.1 * peak + max(0, TORCH_BYTES - libraries), (work.network.name, peak / MiB, planned / MiB)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak memory, on Linux only")
def test_worker__holds_as_much_for_four_times_as_many_images(
    tmp_path: Path, make_job: Callable[..., JobSpec], make_photos: Callable[..., dict[str, Any]],
    begin: Callable[..., ExtractWork],
) -> None:  # fmt: skip
    (tmp_path / "net.py").write_text(NETWORK)
    network = {"name": f"python:{tmp_path}/net.py:make", "preprocessing": {"resize": 64, "crop": 64}}
    written, peaks = [], []
    for images in (128, 512):
        job = make_job(
            images=make_photos(images, side=64, root=f"photos-{images}")["images"],
            network=network, layers=["0", "1"], images_per_unit=32, batch=8, store=f"{images}.zarr",
        )  # fmt: skip
        work = begin(job, worker())
        path = tmp_path / f"{images}.pickle"
        path.write_bytes(cloudpickle.dumps(work))
        peaks.append(peaks_of(path)[-1])
        written.append(work.plan.store_bytes)
        assert all(work.missing(number) == () for number in range(images // 32))
    few, many = peaks
    assert written[1] - written[0] > 0.2 * few, "what is written besides would be seen"
    assert many == pytest.approx(few, rel=0.1), (few / MiB, many / MiB)


def plan(**settings: Any) -> ExtractPlan:
    shapes = {"conv": (64, 112, 112), "pool": (64, 56, 56), "fc": (1000,)}
    known: dict[str, Any] = {
        "images": 1000, "kept": {"conv": "full"}, "shapes": shapes, "held": (8 * MiB, 4 * MiB, 9 * MiB),
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
    more, most = (plan(held=(count * MiB, 4 * MiB, 18 * MiB)).worker_bytes for count in (16, 17))
    assert base + 6 * 32 * MiB <= more <= most - 32 * MiB
    assert plan(kept={"conv": "stats"}).worker_bytes <= base - 32 * 4 * 64 * 112 * 112, "nothing waits to be written"
    assert plan(unit=16).worker_bytes == plan(unit=16, batch=16).worker_bytes, "a batch is never more than a unit"
    assert plan(unit=16, batch=10**9).feeding(feeds).worker_bytes == plan(unit=16, batch=16).feeding(feeds).worker_bytes
    assert plan(images=10**7).worker_bytes == plan(images=10**6).worker_bytes, "flat in the number of images"


def test_plan__of_workers_that_coalesce_counts_from_the_first_tensor_to_the_last() -> None:
    forward = 32 * 9 * MiB
    bare = TORCH_BYTES + 100 * MiB + 2 * 32 * 4 * 64 * 112 * 112  # a batch that is written, and one that is made
    one = plan(coalescing=True)
    assert bare + forward < one.worker_bytes < plan().worker_bytes - 5 * 32 * MiB
    assert plan(coalescing=True, held=(8 * MiB, 4 * MiB, 10 * MiB)).worker_bytes >= one.worker_bytes + 32 * MiB
    assert plan(coalescing=True, held=(9 * MiB, 5 * MiB, 9 * MiB)).worker_bytes == one.worker_bytes
    half = plan(coalescing=True, largest_half=50 * MiB)
    assert half.worker_bytes <= one.worker_bytes - 0.2 * forward + 1.05 * 50 * MiB
    assert plan(coalescing=True, largest_half=90 * MiB).worker_bytes >= half.worker_bytes + 40 * MiB
    two = plan(coalescing=True, slots_per_process=2)
    assert two.worker_bytes - TORCH_BYTES > 2 * (one.worker_bytes - TORCH_BYTES - 100 * MiB), "more gaps between both"
    assert plan(coalescing=True, device="cuda").worker_bytes == plan(device="cuda").worker_bytes


def test_plan__counts_what_is_cast_and_waits_to_be_written() -> None:
    sizes = {"float16": 32 * 2 * 64 * 112 * 112, "bfloat16": 32 * 4 * 64 * 112 * 112}
    for dtype, size in sizes.items():
        one = plan(dtype=dtype, coalescing=True, kept={"conv": "full"}).slots_bytes
        room, writing = 32 * 4 * 64 * 112 * 112, plan(dtype=dtype).writing_bytes
        assert one >= 32 * 9 * MiB + size + room + writing, "a batch waits while the next is in the network"
        for keep in ("full", "stats"):
            few, many = (plan(dtype=dtype, device="cuda", kept={"conv": keep}, batch=n).worker_bytes for n in (32, 64))
            pinned = 2 * (1 << (room - 1).bit_length())
            assert many - few >= pinned + (2 if keep == "full" else 1) * size, "on a card nothing is free meanwhile"


def test_plan__counts_the_merge_of_long_lists_and_what_results_are_made_of() -> None:
    feeds = {"conv": (Feed("neuron", TopK(1000)),)}
    lists = 12 * 1000 * 64 * 112 * 112
    base = TORCH_BYTES + 100 * MiB
    merged = plan().feeding(feeds).worker_bytes
    assert base + 5 * lists <= merged <= base + 6 * lists, "slots hold nothing then"
    there = plan(device="cuda")
    assert there.feeding(feeds).worker_bytes >= there.worker_bytes + 5 * lists, "what is pinned stays"
    narrow = plan(kept={"pool": "max"})
    fed = narrow.feeding({"pool": (Feed("max", TopK(10)),)})
    assert fed.worker_bytes <= narrow.worker_bytes + 4 * MiB, "a reduction is counted at the size of what it is fed"


def test_plan__of_a_card_counts_what_lies_there_and_what_lies_here() -> None:
    here, there = plan(), plan(device="cuda")
    forward = 32 * 8 * MiB
    outputs = 32 * 4 * 64 * 112 * 112
    assert here.device_bytes == 0
    assert CUDA_BYTES + 100 * MiB + forward + outputs <= there.device_bytes
    assert there.device_bytes <= 1.5 * (CUDA_BYTES + 100 * MiB + forward + outputs + 1.5 * 32 * 4 * MiB)
    assert plan(device="cuda", batch=64).device_bytes > there.device_bytes
    two = plan(device="cuda", slots_per_process=2).device_bytes
    assert there.device_bytes < two < 2 * there.device_bytes, "two units in one process share context and weights"
    pinned = 1 << (outputs - 1).bit_length()
    assert there.besides_bytes - CUDA_BYTES >= TORCH_BYTES + 100 * MiB + 3 * pinned, "the card is a batch ahead"
    assert plan(device="cuda", held=(80 * MiB, 4 * MiB, 90 * MiB)).worker_bytes == there.worker_bytes
    assert to_dict(there)["device_bytes"] == there.device_bytes
    assert "device_bytes" not in to_dict(here)


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
    assert "threads" not in str(caught.value.hint)
    with pytest.raises(MemoryLimitError) as caught:
        plan(slots_per_process=1000).check(8 * GiB)
    assert "fewer threads than 1000" in str(caught.value.hint)
    plan().check(plan().worker_bytes)


@pytest.mark.parametrize(("images", "unit", "spans"), [(40, 16, [(0, 16), (16, 32), (32, 40)]), (5, 16, [(0, 5)])])
def test_plan__cuts_the_images_into_units(images: int, unit: int, spans: list[tuple[int, int]]) -> None:
    found = plan(images=images, unit=unit)
    assert [found.span(number) for number in range(found.units)] == spans
