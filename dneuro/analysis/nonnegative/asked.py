"""What a factorisation is asked for: checked, planned, run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from dneuro import events
from dneuro.analysis.arrays import View, choose, is_count
from dneuro.analysis.checks import check_count, check_number, check_seed
from dneuro.analysis.nonnegative import compressed, start
from dneuro.analysis.nonnegative.arrays import Arrays, Factors, Matrix, RescaledError, Rule
from dneuro.analysis.nonnegative.checkpoint import Checkpoint
from dneuro.analysis.nonnegative.reads import Reads
from dneuro.analysis.nonnegative.reads import choose as choose_reads
from dneuro.analysis.nonnegative.solve import Solution, solve
from dneuro.engine.device import process_bytes
from dneuro.engine.executors import Executor
from dneuro.engine.plan import Plan
from dneuro.engine.residence import Persist, check_persist, kept_bytes, residents
from dneuro.errors import ArrayError
from dneuro.store.states import check_state, place_of_state

Update = Literal["hals", "mu"]
Init = Literal["compressed", "nndsvda", "random"]
STARTS = {"hals": "compressed", "mu": "nndsvda"}
"""The start of each update, where none is asked for."""
SWEEPS = {"hals": 10, "mu": 1}
"""Updates of a factor per read, where nothing else is asked. They cost no reading; the papers' update is one."""
OVERSAMPLING = {"compressed": compressed.OVERSAMPLING, "nndsvda": start.OVERSAMPLING}
"""Directions beyond the rank that the reads of a start follow."""


@dataclass(frozen=True)
class Asked:
    """One factorisation, checked against its arrays.

    Parameters
    ----------
    operation : str
        ``"nmf"`` or ``"coupled_nmf"``.
    arrays : Arrays
        What is factorised; weights still to be found are NaN.
    rank, update, sweeps, init, max_iter, tol, seed, checkpoint, persist
        As `nmf` takes them.
    """

    operation: str
    arrays: Arrays
    rank: int
    update: Update
    init: Init | Factors | None
    sweeps: int | None
    max_iter: int
    tol: float
    seed: int
    checkpoint: str | Path | None
    persist: Persist

    def __post_init__(self) -> None:
        images, neurons = self.arrays.images, sum(self.arrays.neurons)
        smallest = min(images, neurons)
        if not is_count(self.rank) or self.rank > smallest:
            raise ArrayError(
                f"rank={self.rank!r} of {images} images × {neurons} neurons",
                hint=f"a whole number from 1 to {smallest}",
            )
        choose("update", self.update, tuple(SWEEPS))
        if isinstance(self.init, str | None):
            choose("init", self.start, ("compressed", "nndsvda", "random"))
        if self.start == "compressed" and self.update == "mu":
            raise ArrayError(
                "init='compressed' leaves zeros, which multiplicative updates cannot change",
                hint="init='nndsvda', or update='hals'",
            )
        for name in ("max_iter", "sweeps"):
            if not (name == "sweeps" and self.sweeps is None):
                check_count(name, getattr(self, name), hint=f"{name}=10")
        check_number("tol", self.tol, least=0, below=1, hint="tol=1e-5; 0 iterates max_iter times")
        check_seed(self.seed)
        check_persist(self.persist)
        if self.checkpoint is not None:
            place_of_state(self.checkpoint)

    @property
    def rule(self) -> Rule:
        """How factors are updated."""
        return Rule(self.update, self.sweeps or SWEEPS[self.update])

    @property
    def start(self) -> str:
        """Where it begins: ``compressed``, ``nndsvda``, ``random`` or ``given``."""
        return "given" if isinstance(self.init, Factors) else self.init or STARTS[self.update]

    @property
    def _columns(self) -> int:
        """Columns that a read carries, at most."""
        wide = self.rank + OVERSAMPLING.get(self.start, 0)
        return min(wide, max(self.rank, self.arrays.images), max(self.rank, sum(self.arrays.neurons)))

    def _reads(self, executor: Executor) -> tuple[Reads, Plan]:
        return choose_reads(self.arrays, executor, self.operation, self._columns)

    @property
    def _xs(self) -> list[xr.DataArray]:
        return [seen.xs[0] for seen in self.arrays.views]

    def plan(self, executor: Executor) -> Plan:
        """Return passes, bytes and memory."""
        plan = self._streamed(executor)
        besides = plan.process_bytes(executor)
        kept = kept_bytes(self._xs, executor, passes=plan.passes, worker_bytes=besides, persist=self.persist)
        return replace(plan, worker_bytes=plan.worker_bytes + kept)

    def _streamed(self, executor: Executor) -> Plan:
        """Return the plan where every read goes to the disk."""
        reads, one = self._reads(executor)
        passes = self.max_iter + reads.extra + start.READS * (self.start in OVERSAMPLING)
        passes += any(map(math.isnan, self.arrays.weights))
        images, neurons = self.arrays.images, sum(self.arrays.neurons)
        item = self.arrays.dtype.itemsize
        result = item * self.rank * (images + neurons) + 8 * self.max_iter * (1 + len(self.arrays.views))
        # Factors before and after, their products in float64, and an update in the making; or what a projection holds.
        driver, worker = self._columns * (2 * item + 24) * (images + neurons), one.worker_bytes
        if self.start in OVERSAMPLING:
            driver = max(driver, start.driver_bytes(images, neurons, self._columns))
        if self.start == "compressed":
            sizes = (images, neurons, self._columns, self.rank)
            driver = max(driver, compressed.driver_bytes(*sizes))
            worker = max(worker, process_bytes(executor) + executor.slots_per_process * compressed.task_bytes(*sizes))
        return replace(
            one,
            worker_bytes=worker,
            passes=passes,
            read_bytes=passes * self.arrays.nbytes,
            driver_bytes=one.driver_bytes + driver + result,  # what tasks take there, and what is made of it
            result_bytes=result,
            method=f"{self.update}, {reads.how}",
        )

    def run(self, executor: Executor) -> tuple[Solution, Arrays, dict[str, Any]]:
        """Refuse what does not fit, else factorise; return what came of it and what is said of it.

        Raises
        ------
        MemoryLimitError
            Before anything is read.
        StoreError
            If `checkpoint` cannot be written; before anything is read, if that can be known.
        """
        plan = self.plan(executor)
        plan.check(
            executor, hint="a lower rank, smaller chunks, or workers with more memory",
            driver_hint="a lower rank, or more memory for the process that asks",
        )  # fmt: skip
        if self.checkpoint is not None:
            check_state(place_of_state(self.checkpoint), plan.result_bytes)
        events.emit("note", self.operation, f"{plan.method}, {plan.passes} passes at most")
        streamed = self._streamed(executor)
        with residents(
            self._xs, executor, passes=plan.passes, worker_bytes=streamed.process_bytes(executor),
            persist=self.persist, step=self.operation,
        ) as xs:  # fmt: skip
            views = tuple(replace(seen, xs=(x,)) for seen, x in zip(self.arrays.views, xs, strict=True))
            return replace(self, arrays=replace(self.arrays, views=views))._run(executor, plan)

    def _run(self, executor: Executor, plan: Plan) -> tuple[Solution, Arrays, dict[str, Any]]:
        reads, _ = self._reads(executor)
        events.emit("started", self.operation, total=self.max_iter, what="iterations")
        arrays = self.arrays
        if any(map(math.isnan, arrays.weights)):
            reads.measure()
            assert reads.totals is not None
            arrays = replace(arrays, weights=_equal(reads.arrays.as_stored(reads.totals)))
            reads.arrays = replace(reads.arrays, weights=_equal(reads.totals))
        kept = None if self.checkpoint is None else Checkpoint(place_of_state(self.checkpoint), self._identity(reads))
        begin = partial(solve, reads, lambda: self._start(reads), self.rule, self.max_iter, self.tol, kept)
        try:
            found = begin()
        except RescaledError:  # of the first read: nothing but that read is lost
            found = begin()
        done = len(found.losses)
        events.emit("finished", self.operation, done=done, total=done, what="iterations")
        if not found.converged and self.tol:
            events.emit("warning", self.operation, f"not converged after {done} iterations (max_iter)")
        said = {"method": plan.method, "passes": reads.passes, "iterations": done, "converged": found.converged}
        return found, arrays, said

    def _start(self, reads: Reads) -> Factors:
        if isinstance(self.init, Factors):
            given, by = self.init, reads.arrays.scales or (1.0,) * len(self.init.neurons)
            return Factors(given.images, [side * scale for side, scale in zip(given.neurons, by, strict=True)])
        ways = {"compressed": compressed.compressed, "nndsvda": start.nndsvda, "random": start.random}
        return ways[self.start](reads, self.rank, self.seed)

    def _identity(self, reads: Reads) -> dict[str, Any]:
        """Return what a kept state must have been made with."""
        seen = reads.arrays.views[0]
        numbers = seen.images if reads.arrays.rows is None else seen.images[reads.arrays.rows]
        return {
            "format": 2,
            "images": [reads.arrays.images, hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()],
            "layers": [(seen.layer, *seen.labels.sizes) for seen in reads.arrays.views],
            "weights": ["equal"] if any(map(math.isnan, self.arrays.weights)) else list(self.arrays.weights),
            "dtype": reads.arrays.dtype.name,
            "rank": self.rank,
            "rule": [self.rule.update, self.rule.sweeps],
            "start": [self.start] if self.start == "given" else [self.start, self.seed],
        }


def _equal(totals: Matrix) -> tuple[float, ...]:
    """Return 1 / ‖X‖² of each."""
    return tuple(1.0 / float(total) if total > 0 else 1.0 for total in totals[:, 1])


def same_images(views: Sequence[View], names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Return which images take part in all of them; None for all.

    Images are the same if their ``image`` coordinates are, whatever those hold; of arrays that have none, by their
    places.

    Raises
    ------
    ArrayError
        If they are not about the same images.
    """
    first, rows = views[0], None
    for seen, name in zip(views, names, strict=True):
        if not _alike(seen, first):
            raise ArrayError(
                f"{name} has {len(seen.images)} images, {names[0]} {len(first.images)}; if as many, then others or in "
                "another order",
                hint=_way_out(seen, first),
            )
        if seen.rows is not None:
            rows = seen.rows if rows is None else rows & seen.rows
    if rows is not None and not rows.any():
        raise ArrayError("no image could be read for all of the arrays: there is nothing to analyse")
    return rows


def _alike(one: View, other: View) -> bool:
    """Return whether two arrays say that they are about the same images, in the same order."""
    mine, theirs = one.image_index, other.image_index
    if mine is None or theirs is None:
        return bool(np.array_equal(one.images, other.images))
    return bool(mine.equals(theirs))


def _way_out(one: View, other: View) -> str:
    """Return how two arrays of different images come to be about the same."""
    mine, theirs = one.image_index, other.image_index
    if mine is None or theirs is None or not set(mine).isdisjoint(theirs):
        return "xr.align(*xs, join='inner') takes those they have in common"
    return (
        f"the coordinate 'image' says {mine[0]}, … of the one and {theirs[0]}, … of the other; of the same images "
        "in the same order, x.assign_coords(image=y['image'])"
    )


def _of_images(weight: xr.DataArray, images: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
    """Return the weights of these images: those in the same order as they lie, others by their numbers.

    Raises
    ------
    ArrayError
        If they are others, and several have one number: nobody knows which of them is meant.
    """
    index = weight.indexes.get("image")
    if index is None or not np.array_equal(index, images):
        if index is not None and not index.is_unique:
            twice = index[index.duplicated()][0]
            raise ArrayError(
                f"init= is about several images of one number ({twice}), and not about just these in this order",
                hint="init='compressed'; x.assign_coords(image=range(len(x))) gives each a number of its own",
            )
        weight = weight.sel(image=images)
    return weight.values


def earlier(result: Any, matrices: Sequence[Any], arrays: Arrays, rank: int) -> Factors:
    """Return the factors of an earlier result, to go on from.

    Raises
    ------
    ArrayError
        If they are not those of such arrays.
    """
    if not isinstance(result, xr.Dataset | xr.DataTree):
        raise ArrayError(
            f"init={result!r} is no result, nor a way to start", hint="init='compressed', 'nndsvda' or 'random'"
        )
    images = arrays.views[0].images if arrays.rows is None else arrays.views[0].images[arrays.rows]
    if not is_count(rank):
        raise ArrayError(f"rank={rank!r} is no number of components", hint="the rank of the result that init= is")
    try:
        left = _of_images(result["image_weight"].transpose("image", "component"), images)
        rights = [part["neuron_weight"].transpose("component", ...).values.reshape(rank, -1).T for part in matrices]
    except (KeyError, ValueError) as error:
        raise ArrayError(
            f"init= is no result about these images with {rank} components: {error}",
            hint="init='compressed', or the result for the same images and rank",
        ) from None
    shapes = [left.shape, *(right.shape for right in rights)]
    wanted = [(len(images), rank), *((count, rank) for count in arrays.neurons)]
    if shapes != wanted:
        raise ArrayError(f"init= has factors of {shapes}, these arrays need {wanted}", hint="init='compressed'")
    if not all(np.isfinite(side).all() and (side >= 0).all() for side in (left, *rights)):
        raise ArrayError("init= holds numbers that are negative or not finite", hint="init='compressed'")
    dtype = arrays.dtype
    return Factors(left.astype(dtype), [right.astype(dtype) for right in rights])
