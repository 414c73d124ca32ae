"""What processes really hold: never more than the plan says, and no more for four times as many images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn

ROWS, NEURONS = 8192, 512
CHUNKS = 12
LIMIT = 700 * 2**20
CLEAR = Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="peak memory is read from /proc, and begun anew there")

BY_IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "moments": ("moments", {}),
    "top_images": ("top_images", {"k": 50}),
    "cooccurrence": ("cooccurrence", {"k": 50}),
    "selectivity": ("selectivity", {}),
    "similarity": ("similarity", {"metric": "pearson"}),
    "clusters": ("clusters", {"count": 5}),
    "gram": ("svd", {"rank": 2, "method": "gram"}),
    "krylov": ("svd", {"rank": 2, "method": "krylov"}),
    "random_projections": ("random_projections", {"directions": 10, "k": 10}),
    "nmf": ("nmf", {"rank": 4, "max_iter": 2, "tol": 0, "persist": False}),
    "kmeans": ("kmeans", {"count": 3, "max_iter": 2}),
}
"""Analyses that go through an array by blocks of images; the last leaves large imports behind."""

FLAT = [name for name in BY_IMAGES if name not in ("cooccurrence", "clusters", "kmeans")]
"""Of those that do the same work one."""


def layer(chunks: int, rows: int = ROWS) -> xr.DataArray:
    """Activations made where they are wanted, 2 KiB an image."""

    def make(block_info: Any = None) -> np.ndarray:
        number = block_info[None]["chunk-location"][0] % 50
        of_image = np.arange(rows, dtype="f4") % np.float32(60 - number)  # top images are found early, as in real data
        return np.multiply.outer(of_image, np.arange(NEURONS, dtype="f4") % np.float32(5 + number % 3))

    lazy = da.map_blocks(make, chunks=((rows,) * chunks, (NEURONS,)), dtype="f4", meta=np.empty((0, 0), "f4"))
    labels = np.arange(rows * chunks) % 7
    return xr.DataArray(lazy, dims=("image", "channel"), coords={"label": ("image", labels)})


def problems() -> xr.DataArray:
    """300 problems for an independent component analysis, 176 MiB."""

    def make(block_info: Any = None) -> np.ndarray:
        rng = np.random.default_rng(block_info[None]["chunk-location"][0])
        return rng.laplace(size=(10, 128, 1200)).astype("f4")

    lazy = da.map_blocks(make, chunks=((10,) * 30, (128,), (1200,)), dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    return xr.DataArray(lazy, dims=("channel", "sample", "pixel"))


def begin() -> None:
    """Let the peak be what is held now."""
    CLEAR.write_text("5")


def peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    quiet = {"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False}
    with (
        dask.config.set(quiet),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, memory_limit=LIMIT, host="127.0.0.1",
                     dashboard_address="127.0.0.1:0", silence_logs=50) as running,
        Client(running) as client,
    ):  # fmt: skip
        yield client


def test_worker__of_many_problems_holds_no_more_than_planned(workers: Any) -> None:
    x = problems()
    plan = dn.plan("ica", x, rank=4, max_iter=5, client=workers)
    workers.run(begin)
    dn.ica(x, rank=4, max_iter=5, client=workers)
    assert max(workers.run(peak).values()) <= plan.worker_bytes <= LIMIT


@pytest.mark.parametrize("name", FLAT)
def test_worker__holds_no_more_of_four_times_as_many_images(
    workers: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks so small that each task has several of them, as tasks of large arrays do."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 2**21)
    analysis, asked = BY_IMAGES[name]
    peaks = []
    for chunks in (64, 256):
        x = layer(chunks, rows=1024)
        workers.run(begin)
        found = getattr(dn, analysis)(x, client=workers, **asked)
        peaks.append(max(workers.run(peak).values()))
    assert peaks[1] <= 1.1 * peaks[0], [size / 2**20 for size in peaks]
    assert found.attrs.get("passes", 1) <= dn.plan(analysis, x, client=workers, **asked).passes


@pytest.mark.parametrize("name", BY_IMAGES)
def test_worker__holds_no_more_than_planned(workers: Any, name: str) -> None:
    analysis, asked = BY_IMAGES[name]
    x = layer(CHUNKS)
    plan = dn.plan(analysis, x, client=workers, **asked)
    workers.run(begin)
    getattr(dn, analysis)(x, client=workers, **asked)
    held = max(workers.run(peak).values())
    assert held <= plan.worker_bytes <= LIMIT, (held / 2**20, plan.worker_bytes / 2**20)


def held_by_threads() -> dict[str, tuple[int, int]]:
    """Return peak and plan of this process, whose threads do the tasks, for each analysis."""
    from dneuro.engine import ThreadExecutor

    found, here = {}, ThreadExecutor(2, memory=4 * LIMIT)
    calls = {**{name: (*call, layer(CHUNKS)) for name, call in BY_IMAGES.items()},
             "ica": ("ica", {"rank": 4, "max_iter": 5}, problems())}  # fmt: skip
    for name, (analysis, asked, x) in calls.items():
        plan = dn.plan(analysis, x, client=here, **asked)
        begin()
        getattr(dn, analysis)(x, client=here, **asked)
        found[name] = peak(), plan.process_bytes(here)
    return found


SPECTRA: dict[str, tuple[int, int, dict[str, Any]]] = {
    "krylov": (3000, 1500, {"rank": 16, "method": "krylov"}),
    "gram": (2400, 1200, {"rank": 4, "method": "gram"}),
    "tsqr": (2400, 800, {"rank": 4, "method": "tsqr"}),
    "all of them": (9000, 500, {"rank": "all", "method": "gram"}),
}
"""Images, neurons, and what is asked; of a flat spectrum, for which no number of steps is enough."""


def held_by_a_driver() -> dict[str, tuple[int, int]]:
    """Return what this process, which asks a worker, holds at the peak beyond what it held before, and the plan."""
    import dask
    from distributed import Client, LocalCluster

    def noise(neurons: int, block_info: Any = None) -> np.ndarray:
        (first, end), _ = block_info[None]["array-location"]
        return np.random.default_rng(first).standard_normal((end - first, neurons), "f4")

    found = {}
    with (
        dask.config.set({"distributed.worker.memory.spill": False}),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, memory_limit="4GiB", host="127.0.0.1",
                     dashboard_address="127.0.0.1:0", silence_logs=50) as running,
        Client(running) as client,
    ):  # fmt: skip
        for name, (images, neurons, asked) in SPECTRA.items():
            few = layer(2, rows=64)
            dn.svd(few, rank=1, method=asked["method"], client=client)  # what is imported is held before
            lazy = da.map_blocks(noise, neurons, chunks=((600,) * (images // 600), (neurons,)), dtype="f4",
                                 meta=np.empty((0, 0), "f4"))  # fmt: skip
            x = xr.DataArray(lazy, dims=("image", "channel"))
            plan = dn.plan("svd", x, client=client, persist=False, **asked)
            begin()
            before = peak()
            dn.svd(x, client=client, persist=False, **asked)
            found[name] = peak() - before, plan.driver_bytes
    return found


def in_a_fresh_process(measure: str) -> dict[str, tuple[int, int]]:
    """What one with nothing else in it finds."""
    code = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); " \
           f"import {Path(__file__).stem} as t; print(json.dumps(t.{measure}()))"  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: tuple(sizes) for name, sizes in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.fixture(scope="module")
def driver_held() -> dict[str, tuple[int, int]]:
    return in_a_fresh_process("held_by_a_driver")


@pytest.mark.parametrize("name", SPECTRA)
def test_driver__of_a_decomposition_holds_no_more_than_planned(driver_held: Any, name: str) -> None:
    held, planned = driver_held[name]
    assert held <= planned, (held / 2**20, planned / 2**20)
    assert planned <= 3 * held, (held / 2**20, planned / 2**20)


@pytest.fixture(scope="module")
def threads_held() -> dict[str, tuple[int, int]]:
    return in_a_fresh_process("held_by_threads")


@pytest.mark.parametrize("name", [*BY_IMAGES, "ica"])
def test_threads__hold_no_more_than_planned_with_the_answer(threads_held: Any, name: str) -> None:
    held, planned = threads_held[name]
    assert held <= planned, (held / 2**20, planned / 2**20)
