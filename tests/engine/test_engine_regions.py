"""Tiles and regions: every pair once, within the memory that is planned, with few reads."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.engine.executors import PROCESS_BYTES
from dneuro.engine.parts import Part
from dneuro.engine.regions import strip_length, tile
from dneuro.engine.tiling import Needs
from dneuro.engine.visits import Visit, visit
from dneuro.quantities import GiB, MiB

NEEDS = Needs(item=4, kept=lambda tiles, now, strips, width: (0, 0), work=lambda width: 0)


class Workers:
    slots_per_process = 1
    process_bytes = PROCESS_BYTES

    def __init__(self, memory: int, slots: int = 2) -> None:
        self.memory, self.slots = memory, slots
        self.driver_memory = memory


def array(images: int, neurons: int, chunks: Any) -> xr.DataArray:
    return xr.DataArray(da.zeros((images, neurons), chunks=chunks, dtype="f4"), dims=("image", "channel"))


@given(
    st.integers(1, 60_000), st.integers(1, 12_000), st.integers(1, 3000), st.integers(1, 5000),
    st.integers(1, 40), st.integers(300, 4000), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tile__every_pair_once(
    images: int, neurons: int, rows: int, columns: int, slots: int, memory: int, lazy: bool
) -> None:
    x = array(images, neurons, (max(rows, images // 50), max(columns, neurons // 50)))
    if not lazy:
        x = x.copy(data=np.broadcast_to(np.float32(0), x.shape))
    tiling, peak = tile(x, 1, Workers(memory * MiB, slots), NEEDS, resident=not lazy)
    assert [start for start, _ in tiling.strips[1:]] == [stop for _, stop in tiling.strips[:-1]]
    assert (tiling.strips[0][0], tiling.strips[-1][1]) == (0, neurons)
    assert len({stop - start for start, stop in tiling.strips[:-1]}) <= 1
    assert [start for start, _ in tiling.bands[1:]] == [stop for _, stop in tiling.bands[:-1]]
    assert (tiling.bands[0][0], tiling.bands[-1][1]) == (0, images)
    pairs = [pair for region in tiling.regions for sweep in region.sweeps for pair in sweep]
    wanted = itertools.combinations_with_replacement(range(len(tiling.strips)), 2)
    assert sorted(pairs) == sorted(wanted)
    for region, spans in zip(tiling.regions, tiling.spans, strict=True):
        for strip in region.strips:
            start, stop = tiling.strips[strip]
            assert sum(a <= start and stop <= b for a, b in spans) == 1
    assert tiling.read_bytes >= x.nbytes
    assert peak == PROCESS_BYTES + tiling.task_bytes


@pytest.mark.parametrize(
    ("chunks", "features", "expected"),
    [(2048, 1, 1024), (2016, 1, 1008), (56, 36, 28), (100, 1, 1000), (1500, 1, 750), (1511, 1, 1024), (9000, 1, 1000),
     (1, 3025, 1)],
)  # fmt: skip
def test_strip_length__along_chunk_borders(chunks: int, features: int, expected: int) -> None:
    assert strip_length(array(10, 9000, (10, chunks)), features) == expected


def test_strip_length__uneven_chunks_and_arrays_in_memory() -> None:
    assert strip_length(array(10, 3000, (10, (500, 1500, 1000))), 1) == 1024
    assert strip_length(xr.DataArray(np.zeros((3, 700)), dims=("image", "channel")), 1) == 700


def test_visit__keeps_parts_of_the_array_only_for_tasks_that_are_to_come() -> None:
    x, bands = array(40, 60, (10, 60)), tuple(itertools.pairwise(range(0, 41, 10)))

    def parts(reader: Any) -> int:
        return sum(isinstance(thing, Part) for thing in gc.get_objects())

    gc.collect()
    alone = [Visit(((column, column + 1),), ()) for column in range(60)]
    found = list(visit([x], parts, alone, ThreadExecutor(1), bands=bands))
    assert max(found) <= 4 * len(bands), "two tasks in flight, one that is made and one that was"
    shared = [Visit(((0, 1), (column, column + 1)), ()) for column in range(1, 60)]
    assert len(list(visit([x], parts, shared, ThreadExecutor(1), bands=bands))) == 59


def test_tile__more_memory_means_less_reading() -> None:
    x = array(50_000, 9216, (512, 2048))
    reads = []
    for memory in (450 * MiB, GiB, 8 * GiB):
        tiling, peak = tile(x, 1, Workers(memory), NEEDS, resident=False)
        assert peak <= 0.8 * memory
        reads.append(tiling.read_bytes / x.nbytes)
    assert reads[0] > reads[1] >= reads[2]
    assert reads[0] < 6


def test_tile__few_images_keep_columns() -> None:
    few, _ = tile(array(1000, 100_000, (500, 2000)), 1, Workers(GiB), NEEDS, resident=False)
    many, _ = tile(array(200_000, 20_000, (500, 2000)), 1, Workers(GiB), NEEDS, resident=False)
    assert few.held
    assert not many.held


def test_tile__what_travels_with_a_task_counts() -> None:
    x = array(20_000, 4096, (500, 1024))
    streamed, _ = tile(x, 1, Workers(8 * GiB), NEEDS, resident=False)
    held, _ = tile(x, 1, Workers(8 * GiB), NEEDS, resident=True)
    spans = max(sum(stop - start for start, stop in spans) for spans in held.spans)
    assert held.task_bytes >= 4 * 20_000 * spans
    assert streamed.task_bytes < held.task_bytes


def test_tile__whole_chunks_travel_with_a_task() -> None:
    x = array(20_000, 8192, (500, 8192))
    assert tile(x, 1, Workers(8 * GiB), NEEDS, resident=True)[1] > x.nbytes


@pytest.mark.parametrize("how", [{}, {"neighbours": 20}, {"metric": "euclidean"}, {"precision": "float64"}])
def test_similarity__workers_stay_within_the_plan(how: Any, cluster: Any) -> None:
    """The workers' high-water mark, with 400 MiB each."""
    values = da.random.default_rng(0).standard_normal((1000, 4096), chunks=(250, 1024), dtype="f4")
    x = xr.DataArray(values, dims=("image", "channel"))
    how = {"metric": "pearson", "precision": "float32", **how}
    plan = dn.plan("similarity", x, client=cluster, **how)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = dn.similarity(x, client=cluster, **how)
    assert plan.worker_bytes <= 0.9 * 400 * MiB
    assert max(cluster.run(_peak).values()) <= plan.worker_bytes
    assert seen[-1].done == seen[-1].total == 10
    assert found is not None


@pytest.mark.parametrize("chunks", [(250, 1, 36, 36), (125, 4, 18, 36)])
def test_similarity__of_parts_of_channels_stays_within_the_plan(chunks: Any, cluster: Any) -> None:
    values = da.random.default_rng(0).standard_normal((1000, 4, 36, 36), chunks=chunks, dtype="f4")
    x = xr.DataArray(values, dims=("image", "channel", "y", "x"))
    how = {"metric": "pearson", "precision": "float32", "per": "neuron", "neighbours": 20}
    plan = dn.plan("similarity", x, client=cluster, **how)
    found = dn.similarity(x, client=cluster, **how)
    assert plan.worker_bytes <= 0.9 * 400 * MiB
    assert max(cluster.run(_peak).values()) <= plan.worker_bytes
    table = values.reshape(1000, -1)[:, :200].compute()
    own = np.corrcoef(table, rowvar=False)
    np.fill_diagonal(own, -1)
    assert (found["pearson_value"].values.reshape(-1, 20)[:200, 0] >= own.max(axis=1) - 1e-6).all()


def test_similarity__reads_what_the_plan_says(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    monkeypatch.setattr("dneuro.engine.regions.STRIP", 8)
    x, reads = counted(np.random.default_rng(0).standard_normal((100, 64)).astype("f4"), (30, 8))
    client = ThreadExecutor(3)
    plan = dn.plan("similarity", x, metric="pearson", persist=False, client=client)
    assert not reads
    dn.similarity(x, metric="pearson", persist=False, client=client)
    sizes = {place: 4 * np.prod([stop - start for start, stop in place]) for place in reads}
    assert sum(sizes[place] * count for place, count in reads.items()) == plan.read_bytes


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
