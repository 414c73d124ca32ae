"""What a similarity matrix will take, decided before anything is read: precision, method, tiles, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Labels, Pool, View, check_labelled, choose, in_parts, view
from dneuro.analysis.checks import check_count, check_number
from dneuro.analysis.keeping import (
    COLLECTED_PAIR_BYTES,
    IN_DRIVER,
    PAIR_BYTES,
    Collect,
    Keep,
    KeepAll,
    KeepFile,
    KeepNearest,
    KeepPairs,
    Neighbours,
    Nothing,
    Pairs,
    Whole,
)
from dneuro.analysis.metrics import METRICS, WORK_ITEMS, bytes_per_pair, dtype_of
from dneuro.analysis.stacked import stacked
from dneuro.analysis.turned import turned
from dneuro.engine.behind import times_over
from dneuro.engine.blocks import Block
from dneuro.engine.device import chosen_name, held_on_device
from dneuro.engine.executors import Sizes, ThreadExecutor
from dneuro.engine.plan import Plan, in_driver
from dneuro.engine.regions import exceeds_strip, room_for_tasks, tile
from dneuro.engine.residence import Persist, check_persist, decide, is_resident, kept_bytes, share_of, travels
from dneuro.engine.tiling import Needs, Tiling
from dneuro.engine.visits import parts_bytes
from dneuro.engine.window import PER_SLOT
from dneuro.errors import ArrayError
from dneuro.kernels import CrossProducts
from dneuro.kernels.products import CENTRE_ITEMS, MOVES_AT_ONCE
from dneuro.kernels.products import Precision as Multiplied
from dneuro.store.blocks import open_blocks
from dneuro.store.files import Location
from dneuro.store.groups import place_of, refuse_crowded, refuse_existing

Precision = Literal["auto", "float32", "float64"]
Of = Literal["channel", "neuron", "image"]
"""What is compared: channels or neurons over the images, or images over the neurons."""

ROWS_NEURONS = 2048
"""Up to this many neurons every task adds up products of all of them (32 MiB), in float64."""

FLOAT32_IMAGES = 4096
"""With fewer images float32 is not worth it: products take less time than what is done with them, and the rounding of
few large sums does not average out."""

EXAMPLE_PAIRS = 1_000_000
"""Pairs beyond a threshold that a plan counts with in the driver: how many there will be nobody knows."""

PAIRS_SHARE = 0.25
"""Share of a task's memory that pairs beyond a threshold may take. It is no fixed number of them: with more memory a
task has more tiles, in which it finds more pairs."""

MEANINGS = {
    "pearson": "Pearson correlation",
    "euclidean": "Euclidean distance",
    "cosine": "cosine of the angle about zero",
    "covariance": "covariance, divided by the number of images less one",
}


@dataclass(frozen=True)
class Pairing:
    """A similarity that was asked for, checked and planned.

    Parameters
    ----------
    seen : View
        The array.
    metrics : tuple of str
        What is computed.
    precision : {"float32", "float64"}
        Of products and results.
    neighbours, threshold, out
        What is kept, if not matrices in memory.
    tiling : Tiling or None
        The tiles; None for one pass that adds up all products.
    plan : Plan
        Passes and memory.
    persist : bool
        The array is read once and kept.
    reads : float
        Times that the array is read.
    held_bytes : int
        Of the plan's worker bytes, those of the array that is kept.
    task_pairs, pairs : int
        Pairs beyond a threshold that one task, and the driver, have room for.
    """

    seen: View
    metrics: tuple[str, ...]
    precision: Multiplied
    neighbours: int | None
    threshold: float | None
    out: Location | None
    tiling: Tiling | None
    plan: Plan
    persist: bool
    reads: float
    held_bytes: int
    task_pairs: int
    pairs: int

    @property
    def count(self) -> int:
        """Number of features: of what is compared."""
        return self.seen.labels.count

    @property
    def compared_over(self) -> int:
        """Number of images that two neurons are compared over, or of neurons that two images are."""
        return _compared_over(self.seen)

    def keep(self, path: Location | None) -> Keep:
        """Return the workers' half of what is kept."""
        keep = _keep(self.metrics, self.precision, self.neighbours, self.threshold, path, self.task_pairs)
        if isinstance(keep, KeepPairs) and self.task_pairs == self.pairs:  # it is the driver that has no room for more
            return replace(keep, where=IN_DRIVER)
        return keep

    def collect(self) -> Collect:
        """Return the driver's half."""
        keep = self.keep(self.out)
        if isinstance(keep, KeepAll):
            return Whole(keep, self.count)
        if isinstance(keep, KeepNearest):
            return Neighbours(keep, self.count)
        if isinstance(keep, KeepPairs):
            return Pairs(keep, self.pairs)
        return Nothing()

    def create(self, path: Path) -> None:
        """Create the file of the matrices."""
        from dneuro.store import matrices  # not at the top: Zarr is large, and few results go to a file

        dims, coords = _square(self.seen)
        matrices.create(
            path, {metric: MEANINGS[metric] for metric in self.metrics}, dims=dims, count=self.count,
            tile=self.count if self.tiling is None else self.tiling.width, coords=coords,
            dtypes={metric: dtype_of(metric, self.precision).name for metric in self.metrics},
        )  # fmt: skip

    def result(self, collect: Collect) -> xr.Dataset:
        """Return what was collected, labelled."""
        if self.out is not None:
            return open_blocks(self.out)
        labels = self.seen.labels
        if isinstance(collect, Neighbours):
            data = {}
            for metric in self.metrics:
                values, numbers = collect.result(metric)
                for name, found in (("value", values), ("neighbour", self._named(numbers))):
                    data[f"{metric}_{name}"] = ((*labels.dims, "neighbour"), found.reshape(*labels.sizes, -1))
            return xr.Dataset(data, coords=labels.coords)
        if isinstance(collect, Pairs):
            pairs, values = collect.result()
            return xr.Dataset({
                "first": ("pair", self._named(pairs[:, 0])),
                "second": ("pair", self._named(pairs[:, 1])),
                f"{self.metrics[0]}_value": ("pair", values),
            })  # fmt: skip
        assert isinstance(collect, Whole)
        dims, coords = _square(self.seen)
        return xr.Dataset({name: (dims, matrix) for name, matrix in collect.matrices.items()}, coords=coords)

    def _named(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of images by their places; of neurons the places are what they are called by."""
        if self.seen.labels.dims != ("image",):
            return places
        return np.where(places < 0, -1, self.seen.labels.coords["image"][places])

    def check(self, executor: Sizes) -> None:
        """Refuse what does not fit, and a file that exists.

        Raises
        ------
        MemoryLimitError
            With the numbers.
        UsageError
            If `out` exists.
        StoreError
            If nothing can be written there, or the disk has too little room.
        """
        if self.out is not None:
            refuse_existing(self.out)
            refuse_crowded(self.out, self.plan.result_bytes, "neighbours=20, which keeps the nearest only")
        ways = ["smaller chunks along the images", "or workers with more memory"]
        driver_hint = "more memory for the process that asks"
        if len(self.seen.labels.dims) > 1:
            ways.insert(1, "per='channel'")
        if self.neighbours is not None:
            ways.insert(0, "fewer neighbours")
            driver_hint = f"fewer neighbours, or {driver_hint}"
        elif self.out is None and self.threshold is None:
            ways.insert(0, "neighbours=20, or out='matrix.zarr' for a matrix that does not fit")
            driver_hint = "out='matrix.zarr' writes it tile by tile; neighbours=20 keeps the nearest only"
        self.plan.check(executor, hint="; ".join(ways), driver_hint=driver_hint)


def pairing(
    x: xr.DataArray,
    metric: str | Sequence[str],
    per: Of,
    pool: Pool,
    neighbours: int | None,
    threshold: float | None,
    out: str | Location | None,
    precision: Precision,
    persist: Persist,
    executor: Sizes,
) -> Pairing:
    """Check what was asked of `dneuro.similarity`, and plan it; reads no data."""
    metrics = _metrics(metric, neighbours, threshold, out)
    check_persist(persist)
    seen = _seen(x, per, pool, own=_own(neighbours))
    multiplied = _precision(precision, seen)
    path = None if out is None else place_of(out)
    count, image_bytes = seen.labels.count, int(seen.xs[0].nbytes)
    most = None if neighbours is None else min(neighbours, max(1, count - 1))
    keep = _keep(metrics, multiplied, most, threshold, path)
    result = _result_bytes(keep, count)
    shares_memory = isinstance(executor, ThreadExecutor) and not isinstance(keep, KeepFile)
    if (count <= ROWS_NEURONS and multiplied == "float64") or not seen.readable:
        plan = seen.plan(
            "similarity", {"products": CrossProducts()}, executor,
            passes=1 + ("euclidean" in metrics and seen.readable), result_bytes=result,
            driver_bytes=(_collected_bytes(keep, count) if isinstance(keep, KeepPairs) else result)
            + 8 * (len(metrics) + 3) * count**2, method="rows, float64",
        )  # fmt: skip
        if plan.worker_bytes <= executor.memory or not seen.readable:  # products that extraction took along
            # The second read is that of distances that cancel, of which there may be none: "auto" streams.
            held = kept_bytes(
                seen.xs, executor, passes=plan.passes, worker_bytes=plan.process_bytes(executor),
                persist=persist is True and plan.passes > 1,
            )  # fmt: skip
            plan = replace(plan, worker_bytes=plan.worker_bytes + held)
            pairs = _driver_pairs(plan, keep, count, executor)
            return Pairing(
                seen, metrics, multiplied, most, threshold, path, None, plan, held > 0, plan.passes, held, pairs, pairs
            )
    pieces = 1
    if not seen.pooled and exceeds_strip(math.prod(seen.xs[0].shape[2:])):
        pieces = math.prod(map(len, (seen.xs[0].chunks or ())[2:]))  # of which each chunk of `stacked` is made
        seen = stacked(seen)
    x, features = seen.xs[0], 1 if seen.pooled else math.prod(seen.xs[0].shape[2:])
    taken = result if shares_memory else 0
    on_cluster = not isinstance(executor, ThreadExecutor)
    here = on_cluster and travels(x)

    def cut(resident: bool, taken: int) -> tuple[Keep, Tiling, int]:
        limited = replace(keep, most=_task_pairs(executor, taken)) if isinstance(keep, KeepPairs) else keep
        needs = _needs(limited, metrics, multiplied)
        return limited, *tile(x, features, executor, needs, resident=resident, taken=taken)

    keep, tiling, peak = cut(here, taken)
    reads, held = tiling.read_bytes / image_bytes, 0
    if reads > 1 and persist is not False and not is_resident(x):
        kept = cut(on_cluster, taken + share_of(x, executor))
        without = kept[-1] - share_of(x, executor)
        if decide(x, executor, passes=reads, worker_bytes=without, persist=persist):
            held, (keep, tiling, peak) = share_of(x, executor), kept
    plan = Plan(
        operation="similarity",
        passes=math.ceil(reads) * (1 + ("euclidean" in metrics)),
        read_bytes=tiling.read_bytes,
        tasks=len(tiling.regions),
        worker_bytes=peak - taken,  # threads share the driver's memory, and the plan counts the result there
        driver_bytes=in_driver(_driver_bytes(keep, count, tiling), executor)
        + pieces * parts_bytes(x, tiling.spans, tiling.bands, PER_SLOT * executor.slots),
        result_bytes=result,
        method=_method(tiling, multiplied, reads),
        times_over=times_over([x], [Block(band, tiling.strips[0]) for band in tiling.bands]),
        device=chosen_name(),
        device_bytes=held_on_device(executor.slots_per_process, tiling.task_bytes),
    )
    pairs = _driver_pairs(plan, keep, count, executor)
    in_task = min(pairs, keep.most) if isinstance(keep, KeepPairs) else 0  # no more than may arrive
    return Pairing(
        seen, metrics, multiplied, most, threshold, path, tiling, plan, held > 0, reads, held, in_task, pairs
    )


def _keep(
    metrics: tuple[str, ...], dtype: Multiplied, neighbours: int | None, threshold: float | None,
    path: Location | None, pairs: int = 0,
) -> Keep:  # fmt: skip
    if neighbours is not None:
        return KeepNearest(metrics, neighbours)
    if threshold is not None:
        return KeepPairs(metrics, threshold, pairs)
    return KeepAll(metrics, dtype) if path is None else KeepFile(metrics, dtype, path)


def _needs(keep: Keep, metrics: tuple[str, ...], multiplied: Multiplied) -> Needs:
    return Needs(
        item=np.dtype(multiplied).itemsize,
        kept=keep.kept_bytes,
        # What a metric is made of slice by slice, and distances that are summed directly.
        work=lambda width: keep.work_bytes(width) + 48 * max(WORK_ITEMS, CENTRE_ITEMS)
        + 24 * ("euclidean" in metrics) * width**2,
        left=16 if multiplied == "float32" else 0,
        left_bands=MOVES_AT_ONCE,
    )  # fmt: skip


def _task_pairs(executor: Sizes, taken: int) -> int:
    """Return how many pairs beyond a threshold one task may find, twice: in the making, and not fetched yet."""
    room = PAIRS_SHARE * room_for_tasks(executor, taken) / executor.slots_per_process
    return max(0, int(room) // (2 * PAIR_BYTES))


def _driver_pairs(plan: Plan, keep: Keep, count: int, executor: Sizes) -> int:
    """Return how many pairs beyond a threshold the driver has room for: those of the plan, and what fits besides."""
    if not isinstance(keep, KeepPairs):
        return 0
    others = plan.asking_bytes(executor) - _collected_bytes(keep, count)
    return max(0, executor.driver_memory - others) // COLLECTED_PAIR_BYTES


def _method(tiling: Tiling, precision: str, reads: float) -> str:
    largest = max(tiling.regions, key=lambda region: region.tiles)
    width, count = tiling.width, tiling.strips[-1][1] * tiling.features
    rows, columns = (min(count, width * len(side)) for side in (largest.rows, largest.columns))
    what = f"{rows:,} columns resident" if tiling.held else f"tiles of {rows:,} × {columns:,} resident"
    return f"{what}, products in {precision}, the array read {reads:.3g} times"


def _result_bytes(keep: Keep, count: int) -> int:
    if isinstance(keep, KeepNearest):
        return 16 * len(keep.metrics) * count * keep.count
    if isinstance(keep, KeepPairs):
        return PAIR_BYTES * min(EXAMPLE_PAIRS, count * (count - 1) // 2)
    assert isinstance(keep, KeepAll | KeepFile)
    return bytes_per_pair(keep.metrics, keep.precision) * count**2


def _collected_bytes(keep: Keep, count: int) -> int:
    """Return what the result takes in the driver until it is there."""
    result = _result_bytes(keep, count)
    if isinstance(keep, KeepPairs):
        return result // PAIR_BYTES * COLLECTED_PAIR_BYTES
    return 2 * result if isinstance(keep, KeepNearest) else result


def _driver_bytes(keep: Keep, count: int, tiling: Tiling) -> int:
    """Return what the result takes in the driver, and what arrives from one task."""
    if isinstance(keep, KeepFile):
        return 0
    if isinstance(keep, KeepPairs):
        return _collected_bytes(keep, count)
    tiles = max(region.tiles for region in tiling.regions)
    strips = max(len(region.strips) for region in tiling.regions)
    arriving = keep.kept_bytes(tiles, tiles, strips, tiling.width)[0]
    return _collected_bytes(keep, count) + arriving


def _metrics(
    metric: str | Sequence[str], neighbours: int | None, threshold: float | None, out: object
) -> tuple[str, ...]:
    wanted: list[Any] = list(metric) if isinstance(metric, list | tuple) else [metric]
    for name in wanted or [""]:
        choose("metric", name, tuple(METRICS))
    if sum(kept is not None for kept in (neighbours, threshold, out)) > 1:
        raise ArrayError(
            f"neighbours={neighbours!r}, threshold={threshold!r}, out={out!r}: each says what to keep",
            hint="give one of them, or none for matrices in memory",
        )
    if neighbours is not None:
        check_count("neighbours", neighbours, hint="neighbours=20")
    if threshold is not None:
        check_number("threshold", threshold, least=0, hint="threshold=0.9")
        if len(wanted) > 1:
            raise ArrayError(
                f"threshold={threshold!r} of {len(wanted)} metrics: each has another scale",
                hint=f"metric={wanted[0]!r}",
            )
    return tuple(dict.fromkeys(wanted))


def _own(neighbours: int | None) -> tuple[str, ...]:
    """Return the names that the result has of its own."""
    if neighbours is None:
        return ("pair", "first", "second", *METRICS, *(f"{metric}_value" for metric in METRICS))
    return ("neighbour", *(f"{metric}_{name}" for metric in METRICS for name in ("neighbour", "value")))


def _seen(x: xr.DataArray, per: Of, pool: Pool, own: Sequence[str] = ()) -> View:
    check_labelled(x)
    choose("per", per, ("channel", "neuron", "image"))
    if per == "image":
        seen = view(x, per="neuron", pool=pool)
        numbers = seen.taking_part
        return replace(turned(seen), labels=Labels(("image",), (len(numbers),), {"image": numbers}))
    if "image" not in x.dims and "class" in x.dims:
        # Rows of counts: the classes are what the neurons are compared over.
        x = in_parts(x.drop_vars(["class", "image"], errors="ignore"), "class").rename({"class": "image"})
        x = x.astype("float64") if x.dtype.kind in "biuf" else x
        return view(x, per="neuron" if len(x.dims) > 2 else per, pool=pool, own=own)
    return view(x, per=per, pool=pool, own=own)


def count_features(x: xr.DataArray, per: Of, pool: Pool) -> int:
    """Return how many features, or images, `similarity` would compare."""
    return _seen(x, per, pool).labels.count


def _precision(precision: Precision, seen: View) -> Multiplied:
    choose("precision", precision, ("auto", "float32", "float64"))
    if precision != "auto":
        return precision
    few = seen.labels.count <= ROWS_NEURONS or _compared_over(seen) < FLOAT32_IMAGES
    return "float64" if few or seen.xs[0].dtype.itemsize > 4 else "float32"


def _compared_over(seen: View) -> int:
    return len(seen.xs[0]) if seen.rows is None else int(seen.rows.sum())


def _square(seen: View) -> tuple[tuple[str, str], dict[str, Any]]:
    """Return the dims of a matrix and its coordinates."""
    labels = seen.labels
    dim = labels.dims[0] if len(labels.dims) == 1 else "neuron"
    coords = {}
    if len(labels.dims) == 1 and dim in labels.coords:
        coords = {dim: labels.coords[dim], f"other_{dim}": (f"other_{dim}", labels.coords[dim])}
    return (dim, f"other_{dim}"), coords
