"""What was asked of a regression, checked; and the one way to read for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import Pool, Prepare, View, choose, view
from dneuro.analysis.checks import check_count, check_number, check_seed
from dneuro.analysis.nonnegative.asked import same_images
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan, plan_pass
from dneuro.errors import ArrayError
from dneuro.kernels.base import Array, Kernel, Origin

NAME = "regression"
OWN = ("rank", "coefficient", "correlation", "r2", "r2_held_out", "strongest", "strongest_coefficient")


@dataclass(frozen=True)
class Asked:
    """A regression of `targets` features on `sources` features over the same images.

    Parameters
    ----------
    views : (View, View)
        Of the targets, and of the sources.
    rows : array (images,) of bool, or None
        Images that take part.
    fold : array (images,) of int64
        The part into which each was dealt.
    folds : int
        How many there are, at least 1.
    ridge : float
        The penalty, as a share of the number of images.
    """

    views: tuple[View, View]
    rows: NDArray[np.bool_] | None
    fold: NDArray[np.int64]
    folds: int
    ridge: float

    @property
    def targets(self) -> int:
        """Number of features that are predicted."""
        return self.views[0].labels.count

    @property
    def sources(self) -> int:
        """Number of features they are predicted from."""
        return self.views[1].labels.count

    @property
    def images(self) -> int:
        """Number of images that take part."""
        return len(self.fold) if self.rows is None else int(self.rows.sum())

    @property
    def row_bytes(self) -> int:
        """Bytes of all features of an image, pooled, in the dtypes they are stored in."""
        each = [4 if seen.prepare.how == "mean" else seen.xs[0].dtype.itemsize for seen in self.views]
        return each[0] * self.targets + each[1] * self.sources

    def read(self, kernel: Kernel, executor: Executor, among: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Run one pass over both arrays, the sources first, over the images that take part or some of them."""
        rows = self.rows if among is None else among if self.rows is None else among & self.rows
        views = self.views[::-1]
        return reduce(
            self._xs, {NAME: kernel}, executor, step=NAME, rows=rows,
            prepare=PreparePair(tuple(seen.prepare for seen in views)),
            sources=[seen.sources[0] for seen in views],
        )[NAME]  # fmt: skip

    def plan(self, kernel: Any, executor: Sizes, *, passes: int, driver_bytes: int, method: str) -> Plan:
        """Return the plan of so many passes like this."""
        pairs = 8 * self.sources * self.targets
        assembling = 7 * pairs + 100 * self.targets  # what a regression comes to, and the strongest of each row
        return plan_pass(
            NAME, self._xs, {NAME: kernel}, executor, passes=passes, result_bytes=2 * pairs + 100 * self.targets,
            driver_bytes=max(driver_bytes, assembling), method=f"on {self.views[1].layer or 'its source'}, {method}",
        )  # fmt: skip

    @property
    def _xs(self) -> list[xr.DataArray]:
        return [seen.xs[0] for seen in self.views[::-1]]


@dataclass(frozen=True)
class PreparePair:
    """The blocks of two arrays, each checked and pooled as its own view wants it."""

    each: tuple[Prepare, ...]

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        """Return the values of each."""
        return [prepare([block], origin)[0] for prepare, block in zip(self.each, blocks, strict=True)]


def asked(
    x: xr.DataArray, source: xr.DataArray, ridge: float, folds: int, pool: Pool, k: int, seed: int
) -> Asked:
    """Check the arguments of `dneuro.regression`; reads no data."""
    check_number("ridge", ridge, least=0, hint="ridge=1e-3")
    check_count("k", k, hint="k=5")
    check_count("folds", folds, least=0, hint="folds=5, or 0 for none")
    check_seed(seed)
    choose("pool", pool, ("max", "mean"))
    before = view(source, per="channel", pool=pool)
    views = view(x, per="channel", pool=pool, own=(*OWN, f"source_{before.labels.dims[0]}")), before
    for seen in views:
        if len(seen.labels.dims) != 1:
            raise ArrayError(f"{seen.layer or 'an array'} has features {seen.labels.dims}", hint="stack them into one")
    names = [seen.layer or what for seen, what in zip(views, ("the array", "its source"), strict=True)]
    rows = same_images(views, names)
    images = len(views[0].images) if rows is None else int(rows.sum())
    if folds > max(1, images):
        raise ArrayError(f"folds={folds!r} of {images} images", hint="folds=5, or 0 for none")
    folds = max(1, folds)
    return Asked(views, rows, deal(len(views[0].images), rows, folds, seed), folds, ridge)


def deal(images: int, rows: NDArray[np.bool_] | None, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of every image: those that take part are dealt in random order, one after the other."""
    there = np.arange(images) if rows is None else np.flatnonzero(rows)
    fold = np.zeros(images, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(there)] = np.arange(len(there)) % folds
    return fold
