"""Standardising rows or columns of images × features on the way through a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Kernel, Origin, State, flat, row_slices

Mode = Literal["image", "neuron", "center"] | None
_RANGE = 1e15
"""Spreads between this and its inverse can be squared, and inverted, in float32."""
RowMode = Literal["level"]
"""Each row to mean 0: what centring neurons is to neurons × images."""


@dataclass(frozen=True)
class Standardise:
    """How a slice of activations becomes the Z that is decomposed.

    Parameters
    ----------
    mode : {"image", "neuron", "center", "level", None}
        ``image``: each row to mean 0 and variance 1 over the features; ``neuron``: each column over the
        images; ``center``: each column to mean 0; ``level``: each row to mean 0; None: unchanged.
    mean, std : array (features,) of float64, optional
        Of each feature over the images: `mean` for ``neuron`` and ``center``, `std` for ``neuron``.

    Notes
    -----
    What does not vary (σ = 0) gets weight 0 instead of being divided by it.
    """

    mode: Mode | RowMode
    mean: NDArray[np.float64] | None = None
    std: NDArray[np.float64] | None = None

    def key_of(self, what: str) -> str:
        """Return the name of states of Z that can be fed on the way; empty where Z follows from an earlier pass."""
        return f"{what}-{self.mode or 'none'}" if self.mode in (None, "image") else ""

    def apply(self, rows: Array, *, single: bool = False) -> Array:
        """Return Z (rows, features) of a slice (rows, features), in float64, or with `single` in float32.

        In float32 nothing is lost beside the rounding of each entry of Z: means are taken away in two steps, the
        second of which takes what the first has left.
        """
        if single:
            return self._single(rows)
        xp = array_api_compat.array_namespace(rows)
        z = xp.astype(rows, xp.float64)
        if self.mode == "level":
            # Of a constant row nothing is left, not even the rounding of its mean.
            constant = xp.max(rows, axis=1, keepdims=True) == xp.min(rows, axis=1, keepdims=True)
            z = xp.where(constant, xp.zeros_like(z), z - xp.mean(z, axis=1, keepdims=True))
        elif self.mode == "image":
            z -= xp.mean(z, axis=1, keepdims=True)
            spread = xp.sqrt(xp.mean(z * z, axis=1, keepdims=True))
            # A constant row leaves rounding dust of its mean behind; it must not be blown up to size 1.
            dust = 1e-12 * xp.astype(xp.max(xp.abs(rows), axis=1, keepdims=True), xp.float64)
            live = spread > dust
            z *= xp.where(live, 1.0 / xp.where(live, spread, xp.ones_like(spread)), xp.zeros_like(spread))
        elif self.mode is not None:
            where = array_api_compat.device(rows)
            z -= xp.asarray(self.mean, device=where)
            if self.mode == "neuron":
                z *= xp.asarray(self.weight, device=where)
        return z

    def _single(self, rows: Array) -> Array:
        xp = array_api_compat.array_namespace(rows)
        where = array_api_compat.device(rows)
        if self.mode is None:
            return xp.astype(rows, xp.float32, copy=False)
        if self.mode in ("image", "level"):
            z = xp.astype(rows, xp.float32, copy=False)
            ones = xp.full((rows.shape[1], 1), 1.0 / rows.shape[1], dtype=xp.float32, device=where)
            rough = xp.matmul(z, ones)
            z = z - rough
            z -= xp.matmul(z, ones)
            if self.mode == "level":
                return z
            with np.errstate(over="ignore", under="ignore"):
                spread = xp.sqrt(xp.matmul(z * z, ones))
            live = spread > 1e-12 * xp.abs(rough)  # of a constant row the second step leaves less
            if not bool(xp.all(live & (spread < _RANGE) & (spread > 1 / _RANGE))):
                return self._wide(rows)  # squares may have left the range of float32
            z *= 1.0 / spread
            return z
        if self.mode == "neuron" and self.weight.max(initial=0) > _RANGE:
            return self._wide(rows)
        mean = np.asarray(self.mean)
        most = mean.astype(np.float32)
        z = xp.astype(rows, xp.float32, copy=False) - xp.asarray(most, device=where)
        z -= xp.asarray((mean - most).astype(np.float32), device=where)
        if self.mode == "neuron":
            z *= xp.asarray(self.weight.astype(np.float32), device=where)
        return z

    def _wide(self, rows: Array) -> Array:
        """Return Z in float32, made in float64, slice by slice."""
        xp = array_api_compat.array_namespace(rows)
        z = xp.empty(rows.shape, dtype=xp.float32, device=array_api_compat.device(rows))
        for some in row_slices(rows):
            z[some, :] = xp.astype(self.apply(rows[some, :]), xp.float32)
        return z

    @property
    def weight(self) -> NDArray[np.float64]:
        """1/σ per feature, 0 where σ = 0."""
        if self.std is None:
            raise ValueError("std is not given")
        return np.divide(1.0, self.std, out=np.zeros_like(self.std), where=self.std > 0)


@dataclass(frozen=True)
class Standardised:
    """A kernel that sees Z in place of the activations, slice by slice; Z never exists as a whole.

    Parameters
    ----------
    kernel : Kernel
        Any; its features are flat.
    standardise : Standardise
        How activations become Z.
    """

    kernel: Kernel
    standardise: Standardise
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return self.kernel.start()

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        table = flat(blocks[0])
        for rows in row_slices(table):
            z = self.standardise.apply(table[rows, :])
            state = self.kernel.update(state, (z,), {**origin, "image": origin["image"][rows]})
        return state

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        return self.kernel.merge(a, b)

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:  # noqa: D102
        return self.kernel.finalise(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        height = min(rows, max(1, SLICE_ITEMS // features))
        state, work = self.kernel.memory(images, height, features)
        return state, work + 24 * max(SLICE_ITEMS, features)
