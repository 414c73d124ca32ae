"""What a task does with the patches of some channels: their components in each rendering, written where they belong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.engine.visits import Reader
from dneuro.errors import NonFiniteError
from dneuro.kernels import patches as pictures
from dneuro.kernels.base import Array, spans, to_numpy
from dneuro.kernels.ica import BATCH_ITEMS, Fun, Unmixed, check_samples, unmix
from dneuro.store.blocks import write_block
from dneuro.store.files import Location

Rendering = Literal["grey", "rgb", "rgb8"]

GREEN = 1
"""The colour that the others are matched with: it has most of the luminance."""

Found = dict[str, NDArray[Any]]
"""Arrays whose first dim counts the channels of a block, by name."""


@dataclass(frozen=True)
class Render:
    """The same for all tasks.

    Parameters
    ----------
    rank : int
        Components K of each channel.
    renderings : tuple of str
        Which.
    match : bool
        Whether the components of R, G and B are matched.
    keep : int
        Patches kept of each channel.
    dtype : {"float16", "float32"}
        Of pictures that are no bytes.
    fun, max_iter, tol, seed
        As `dneuro.ica` takes them.
    place : Path, RemotePath or None
        Group that large arrays are written to; None gives them back.
    large : tuple of str
        Their names.
    """

    rank: int
    renderings: tuple[str, ...]
    match: bool
    keep: int
    dtype: str
    fun: Fun
    max_iter: int
    tol: float
    seed: int
    place: Location | None
    large: tuple[str, ...]

    def __call__(self, reader: Reader, start: int, counts: NDArray[np.int64]) -> tuple[int, Found]:
        """Return the first channel of a block, and what is found of all of them but what was written."""
        (block,) = reader.read(0, 0) or ()
        # To (channel, sample, row, column, color).
        x = array_api_compat.array_namespace(block).permute_dims(block, (1, 0, 2, 3, 4))
        step = BATCH_ITEMS // int(np.prod(x.shape[1:4]))
        parts = [self._of(x[some, ...], counts[some], range(start + some.start, start + some.stop))
                 for some in spans(len(x), step)]  # fmt: skip
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        found["count"] = counts
        if self.place is not None:
            for name in self.large:
                write_block(self.place, name, start, found.pop(name))
        return start, found

    def _of(self, x: Array, counts: NDArray[np.int64], numbers: range) -> Found:
        """Return what is found of a few channels."""
        check_samples(x.reshape(*x.shape[:2], -1), counts, numbers)
        found = self._grey(x, counts, numbers) if "grey" in self.renderings else {}
        if {"rgb", "rgb8"} & set(self.renderings):
            found |= self._colours(x, counts, numbers)
        if self.keep:
            kept = to_numpy(x[:, : self.keep])
            there = np.arange(kept.shape[1]) < counts[:, None]
            found["patch"] = np.where(there[:, :, None, None, None], kept, 0).astype(kept.dtype)
        return found

    def _grey(self, x: Array, counts: NDArray[np.int64], numbers: range) -> Found:
        values = pictures.grey(x).reshape(*x.shape[:2], -1)
        mixed = self._unmixed(values, counts, numbers)
        parts = _pictures(mixed)
        return {
            "grey": self._kept(parts).reshape(len(x), self.rank, *x.shape[2:4]),
            "grey_rank": mixed.rank,
            "grey_converged": mixed.converged,
            "grey_iterations": mixed.iterations,
            "grey_share": pictures.share([parts], [pictures.variance(values, counts)]),
        }

    def _colours(self, x: Array, counts: NDArray[np.int64], numbers: range) -> Found:
        """Take R, G and B apart one by one, then put the components together that belong together."""
        xp = array_api_compat.array_namespace(x)
        found, totals = [], []
        for color in range(3):
            values = xp.astype(x[..., color].reshape(*x.shape[:2], -1), xp.float64)
            totals.append(pictures.variance(values, counts))
            found.append(self._unmixed(values, counts, numbers))
        parts = [_pictures(mixed) for mixed in found]
        parts, r = pictures.together(parts, GREEN, matched=self.match)
        shape = (len(x), self.rank, *x.shape[2:5])
        whole = np.stack(parts, axis=-1)
        result = {
            "rgb_rank": np.stack([mixed.rank for mixed in found], axis=-1),
            "rgb_converged": np.stack([mixed.converged for mixed in found], axis=-1),
            "rgb_iterations": np.stack([mixed.iterations for mixed in found], axis=-1),
            "rgb_share": pictures.share(parts, totals),
            "rgb_correlation": r,
        }
        if "rgb" in self.renderings:
            result["rgb"] = self._kept(whole).reshape(shape)
        if "rgb8" in self.renderings:
            result["rgb8"] = pictures.eight_bit(whole).reshape(shape)
        return result

    def _unmixed(self, values: Array, counts: NDArray[np.int64], numbers: range) -> Unmixed:
        # The same first rotation for all colours of a channel: they begin alike, and as `dneuro.ica` begins.
        seeds = [(self.seed, number) for number in numbers]
        return unmix(values, counts, self.rank, fun=self.fun, max_iter=self.max_iter, tol=self.tol, seeds=seeds)

    def _kept(self, values: NDArray[np.float64]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            kept = values.astype(self.dtype)
        if np.isinf(kept).any():
            raise NonFiniteError(
                f"a component has pixels of {np.nanmax(np.abs(values)):.3g}, beyond what {self.dtype} holds",
                hint="dtype='float32'",
            )
        return kept


def _pictures(mixed: Unmixed) -> NDArray[np.float64]:
    """Return the pictures (B, K, P): the columns of the mixing matrix."""
    return np.swapaxes(to_numpy(mixed.mixing), 1, 2)
