"""What a process may take, and plans that are held against it: the workers' memory and the driver's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import pytest
import xarray as xr

import dneuro as dn
from dneuro.analysis import ANALYSES
from dneuro.engine import DaskExecutor, Plan, ThreadExecutor, memory, plan_pass
from dneuro.engine.executors import PROCESS_BYTES
from dneuro.engine.parts import PART_BYTES
from dneuro.engine.plan import TASKS_BYTES
from dneuro.errors import MemoryLimitError
from dneuro.kernels import Moments
from dneuro.quantities import GiB, MiB


class Machine:
    available, total = 4 * GiB, 8 * GiB


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with 4 GiB free, and the folder in which it says what groups of processes may take."""
    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    yield tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_available__is_what_is_free_where_nothing_is_limited(groups: Path) -> None:
    assert memory.available() == 4 * GiB
    write(groups, own="0::/user.slice/job")
    assert memory.available() == 4 * GiB
    write(groups / "user.slice" / "job", memory__max="max", memory__current=GiB, memory__stat="inactive_file 0")
    assert memory.available() == 4 * GiB


def test_available__within_the_limit_of_any_group_above(groups: Path) -> None:
    write(groups, own="0::/user.slice/job")
    write(groups / "user.slice" / "job", memory__max="max", memory__current=GiB, memory__stat="inactive_file 0")
    write(groups / "user.slice", memory__max=3 * GiB, memory__current=2 * GiB,
          memory__stat=f"anon 1\ninactive_file {GiB // 2}")  # fmt: skip
    assert memory.available() == 3 * GiB - (2 * GiB - GiB // 2), "files that were read make room"


def test_installed__is_what_the_machine_has_within_the_limit_of_any_group(groups: Path) -> None:
    assert memory.installed() == 8 * GiB
    write(groups, own="0::/user.slice/job")
    write(groups / "user.slice" / "job", memory__max="max", memory__current=GiB, memory__stat="inactive_file 0")
    assert memory.installed() == 8 * GiB
    write(groups / "user.slice", memory__max=3 * GiB)
    assert memory.installed() == 3 * GiB, "whatever of it is in use"


class Client:
    """A client of workers by address; each has a host, a limit and what it offers."""

    class scheduler:  # noqa: N801 - as of dask's client
        address = "tcp://here"

    def __init__(self, *workers: tuple[str, int, str]) -> None:
        self.workers = {
            f"tcp://{host}:{port}": {"host": host, "nthreads": 1, "memory_limit": limit, "resources": {pool: 1}}
            for port, (host, limit, pool) in enumerate(workers)
        }

    def submit(self, *args: Any) -> None:
        raise AssertionError("no task is sent")

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": self.workers}


def test_workers__without_a_limit_share_what_their_host_has(groups: Path) -> None:
    two, one = [("a", 0, "load"), ("a", 0, "extract")], [("b", 0, "load")]
    assert DaskExecutor(Client(*one)).memory == 8 * GiB
    assert DaskExecutor(Client(*two)).memory == 4 * GiB
    assert DaskExecutor(Client(*two, *one)).memory == 4 * GiB
    assert DaskExecutor(Client(*two, *one), "extract").memory == 4 * GiB, "the host has those of other pools, too"
    assert DaskExecutor(Client(*two, ("b", GiB, "load"))).memory == GiB
    assert DaskExecutor(Client(*one, ("a", 9 * GiB, "load"))).memory == 8 * GiB, "one of them has no more"
    write(groups, own="0::/job")
    write(groups / "job", memory__max=3 * GiB, memory__current=GiB, memory__stat="inactive_file 0")
    assert DaskExecutor(Client(*two)).memory == 3 * GiB // 2, "within the limit of a control group"


def test_available__in_groups_of_version_1(groups: Path) -> None:
    write(groups, own="5:cpu,cpuacct:/job\n4:memory:/job")
    write(groups / "memory" / "job", memory__limit_in_bytes=GiB, memory__usage_in_bytes=2 * GiB,
          memory__stat="total_inactive_file 0")  # fmt: skip
    assert memory.available() == 0


class Place:
    """Workers with much memory, and a driver with little, or the other way round."""

    slots = slots_per_process = 1
    process_bytes = PROCESS_BYTES

    def __init__(self, memory: int, driver_memory: int) -> None:
        self.memory, self.driver_memory = memory, driver_memory


def plan(worker: int, driver: int) -> Plan:
    return Plan("svd", 1, 1, 1, worker, driver, 1)


def test_check__holds_both_against_what_there_is() -> None:
    plan(GiB, GiB).check(Place(GiB, GiB), hint="w", driver_hint="d")
    with pytest.raises(MemoryLimitError, match="svd needs 2 GiB per worker, the limit is 1 GiB") as caught:
        plan(2 * GiB, GiB).check(Place(GiB, GiB), hint="w", driver_hint="d")
    assert caught.value.hint == "w"
    said = "svd needs 2 GiB in the driver, the process that asks; the limit is 1 GiB; nothing was started"
    with pytest.raises(MemoryLimitError, match=said) as caught:
        plan(GiB, 2 * GiB).check(Place(GiB, GiB), hint="w", driver_hint="d")
    assert caught.value.hint == "d"
    assert not plan(GiB, 2 * GiB).fits(Place(GiB, GiB))
    assert plan(GiB, 2 * GiB).fits(Place(GiB, 2 * GiB))


def test_check__threads_share_the_memory_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: 64 * GiB)
    plan(GiB, GiB).check(ThreadExecutor(1, memory=2 * GiB), hint="w", driver_hint="d")
    said = "svd needs 2.5 GiB in the driver, the process that asks, 1 GiB of it for its tasks; the limit is 2 GiB"
    with pytest.raises(MemoryLimitError, match=said):
        plan(GiB, 3 * GiB // 2).check(ThreadExecutor(1, memory=2 * GiB), hint="w", driver_hint="d")
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: GiB)
    with pytest.raises(MemoryLimitError, match=r"the limit is 1\.27 GiB"):  # it may be told more than there is
        plan(GiB, GiB).check(ThreadExecutor(1, memory=2 * GiB), hint="w", driver_hint="d")


LARGE_ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("moments", {"per": "neuron"}),
    ("top_images", {"k": 100}),
    ("cooccurrence", {"k": 100}),
    ("selectivity", {}),
    ("svd", {"rank": 50, "method": "krylov"}),
    ("random_projections", {"directions": 100}),
    ("nmf", {"rank": 50, "init": "random"}),
    ("similarity", {}),
    ("clusters", {"count": 2}),
    ("kmeans", {"count": 300}),
    ("single_neurons", {}),
]
OTHERS = {"similar_places", "regression", "connections", "patch_components"}
"""Those that take something else than one array of any layer."""


def test_check__is_tried_on_all_analyses() -> None:
    assert {name for name, _ in LARGE_ANSWERS} | OTHERS == set(ANALYSES)


@pytest.mark.parametrize(("analysis", "parameters"), LARGE_ANSWERS)
def test_analysis__whose_answer_does_not_fit_is_refused_before_anything_is_read(
    analysis: str, parameters: dict[str, Any]
) -> None:
    def read(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        assert not block_info, "nothing is read"
        return block

    lazy = da.zeros((2000, 20_000), chunks=(500, 1000), dtype="f4")
    lazy = lazy.map_blocks(read, dtype="f4", meta=np.empty((0, 0), "f4"))
    x = xr.DataArray(lazy, dims=("image", "channel"), coords={"label": ("image", np.arange(2000) % 7)})

    class Workers(Place):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name}: something was started")

    where = Workers(64 * GiB, MiB)
    assert dn.plan(analysis, x, client=where, **parameters).driver_bytes > MiB
    with pytest.raises(MemoryLimitError, match=r"in the driver, the process that asks; the limit is 1 MiB") as caught:
        ANALYSES[analysis](x, client=where, **parameters)
    assert caught.value.hint
    assert "workers" not in caught.value.hint


@pytest.mark.parametrize("name", ["gini", "spectral_flatness", "class_selectivity"])
def test_indices__whose_rows_do_not_fit_are_refused_before_anything_is_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = da.zeros((20_000, 1500), chunks=(10_000, 500), dtype="f4")
    x = xr.DataArray(lazy, dims=("image", "channel"))
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: 64 * GiB)
    planned = dn.plan(name, x, dim="channel")
    assert planned.worker_bytes > PROCESS_BYTES + 2 * 10_000 * 1500 * 4
    getattr(dn, name)(x, dim="channel")
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: planned.worker_bytes - MiB)
    with pytest.raises(MemoryLimitError, match=rf"{name} needs .* per worker, the limit is") as caught:
        getattr(dn, name)(x, dim="channel")
    assert "smaller chunks" in str(caught.value.hint)
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: planned.worker_bytes)
    with pytest.raises(MemoryLimitError, match=rf"{name} needs .* in the driver, .*; nothing was started") as caught:
        getattr(dn, name)(x, dim="channel")
    assert caught.value.hint
    getattr(dn, name)(x.isel(image=slice(9)).compute(), dim="channel")


def test_plan__counts_what_tasks_of_workers_take_in_the_process_that_sends_them() -> None:
    x = xr.DataArray(da.zeros((400, 30), chunks=(100, 30), dtype="f4"), dims=("image", "channel"))
    for analysis, asked in {"top_images": {"k": 5}, "svd": {"rank": 2}, "nmf": {"rank": 2}}.items():
        workers = dn.plan(analysis, x, client=Place(64 * GiB, 64 * GiB), **asked)
        assert workers.driver_bytes >= workers.result_bytes + TASKS_BYTES
        assert dn.plan(analysis, x, client=ThreadExecutor(1, memory=64 * GiB), **asked).driver_bytes < TASKS_BYTES


def test_plan__counts_states_that_workers_send_to_be_merged_in_the_process_that_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One on each level of the tree of mergers; two that are merged, and what they become."""
    x = xr.DataArray(da.zeros((64_000, 1000), chunks=(1000, 1000), dtype="f4"), dims=("image", "channel"))
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", MiB)
    kernels = {"moments": Moments()}
    state, _ = kernels["moments"].memory(64_000, 1000, 1000)
    roomy = Place(64 * GiB, 64 * GiB)
    assert plan_pass("moments", [x], kernels, roomy).tasks == 64
    assert plan_pass("moments", [x], kernels, roomy).driver_bytes == TASKS_BYTES + (6 + 3) * state
    assert dn.plan("moments", x, client=roomy).driver_bytes >= TASKS_BYTES + (6 + 3) * state
    threads = ThreadExecutor(1, memory=64 * GiB)
    assert plan_pass("moments", [x], kernels, threads).driver_bytes == 0, "counted with the tasks"
    monkeypatch.setattr("dneuro.engine.plan.SMALL", state - 1)
    assert plan_pass("moments", [x], kernels, roomy).driver_bytes == TASKS_BYTES, "merged by the workers"


def test_plan__of_tiles_counts_the_parts_of_the_array_that_tasks_are_sent() -> None:
    def planned(images: int) -> Plan:
        x = xr.DataArray(da.zeros((images, 4096), chunks=(512, 4096), dtype="f4"), dims=("image", "channel"))
        return dn.plan("similarity", x, neighbours=10, persist=False, client=Place(GiB // 2, 64 * GiB))

    few, many = planned(51_200), planned(512_000)
    assert few.result_bytes == many.result_bytes
    assert many.driver_bytes - few.driver_bytes > 900 * PART_BYTES


def test_plan__nearest_neurons_of_a_layer_with_many_positions_fit_into_small_workers() -> None:
    lazy = da.zeros((5000, 64, 112, 112), chunks=(256, 2, 112, 112), dtype="f4")
    x = xr.DataArray(lazy, dims=("image", "channel", "y", "x"))
    where = Place(GiB, 64 * GiB)
    plan = dn.plan("similarity", x, metric="pearson", per="neuron", neighbours=20, persist=False, client=where)
    assert plan.fits(where)
    assert plan.result_bytes == 16 * 20 * 64 * 112 * 112


def test_similarity__hints_at_what_was_not_given() -> None:
    lazy = da.zeros((2000, 20_000), chunks=(500, 1000), dtype="f4")
    x = xr.DataArray(lazy, dims=("image", "channel"))
    asked: dict[str, dict[str, Any]] = {"": {}, "neighbours": {"neighbours": 20}, "threshold": {"threshold": 0.9}}
    for given, how in asked.items():
        for where in (Place(100 * MiB, 64 * GiB), Place(64 * GiB, MiB)):
            with pytest.raises(MemoryLimitError) as caught:
                dn.similarity(x, metric="pearson", client=where, **how)
            hint = str(caught.value.hint)
            assert ("neighbours=20" in hint) == (given == "")
            assert ("out=" in hint) == (given == "")
            assert ("fewer neighbours" in hint) == (given == "neighbours")
            assert "channel" not in hint, "these are channels"


def test_svd__takes_as_many_steps_as_the_driver_has_room_for() -> None:
    """Four are enough as a rule: what twelve of them would leave there need not fit."""
    lazy = da.zeros((6000, 100_000), chunks=(100, 100_000), dtype="f4")
    x, passes = xr.DataArray(lazy, dims=("image", "channel")), []
    roomy = dn.plan("svd", x, rank=16, method="krylov", client=Place(64 * GiB, 64 * GiB))
    for share in (1.0, 0.9, 0.8, 0.7):
        where = Place(64 * GiB, int(share * roomy.driver_bytes))
        plan = dn.plan("svd", x, rank=16, method="krylov", client=where)
        assert plan.fits(where)
        assert plan.read_bytes == plan.passes * x.nbytes
        passes.append(plan.passes)
    assert passes[0] == roomy.passes == 13
    assert passes == sorted(passes, reverse=True)
    assert 7 <= passes[-1] < 13
    tight = Place(64 * GiB, roomy.driver_bytes // 4)
    assert dn.plan("svd", x, rank=16, method="krylov", client=tight).passes == 7
    with pytest.raises(MemoryLimitError, match="in the driver"):
        dn.svd(x, rank=16, method="krylov", client=tight)


def test_persist__on_threads_leaves_room_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fit streamed is not refused because the array was to be kept."""
    monkeypatch.setattr("dneuro.engine.executors.available", lambda: 64 * GiB)
    lazy = da.zeros((50_000, 1500), chunks=(1000, 1500), dtype="f4")
    x = xr.DataArray(lazy, dims=("image", "channel"))
    streamed = dn.plan("svd", x, rank=40, method="krylov", persist=False, client=ThreadExecutor(1, memory=64 * GiB))
    assert streamed.driver_bytes > 200 * MiB
    for memory_ in range(streamed.worker_bytes + streamed.driver_bytes, 3 * GiB, 64 * MiB):
        where = ThreadExecutor(1, memory=memory_)
        assert dn.plan("svd", x, rank=40, method="krylov", client=where).fits(where), memory_
    assert streamed.worker_bytes > PROCESS_BYTES
