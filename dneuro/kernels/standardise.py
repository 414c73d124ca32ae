"""Standardising rows or columns of images × features on the way through a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.base import SLICE_ITEMS, Array, Kernel, Origin, State, flat, placed, row_slices, spans

Mode = Literal["image", "neuron", "center"] | None
_RANGE = 1e15
"""Spreads between this and its inverse can be squared, and inverted, in float32."""
_MEAN = 1e-4
"""Share of the spread that may be left of the mean of a row in float32."""
RowMode = Literal["level"]
"""Each row to mean 0: what centring neurons is to neurons × images."""


def is_constant(rows: Array) -> Array:
    """Return (rows, 1): whether all elements of a row are the same.

    A few of them tell for most rows; only those of which these are the same are looked at in full.
    """
    xp = array_api_compat.array_namespace(rows)
    some = rows[:, :: max(1, rows.shape[1] // 16)]
    same = xp.max(some, axis=1) == xp.min(some, axis=1)
    (places,) = xp.nonzero(same)
    for part in spans(places.shape[0], SLICE_ITEMS // rows.shape[1]):
        full = rows[places[part], :]
        same[places[part]] = xp.max(full, axis=1) == xp.min(full, axis=1)
    return same[:, None]


def cleared(z: Array, constant: Array) -> Array:
    """Return `z` with exact zeros in constant rows, where rounding has left dust of their mean."""
    xp = array_api_compat.array_namespace(z)
    (places,) = xp.nonzero(constant[:, 0])
    if places.shape[0]:
        z[places, :] = xp.zeros((places.shape[0], z.shape[1]), dtype=z.dtype, device=array_api_compat.device(z))
    return z


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
        if self.mode in ("image", "level"):
            constant = is_constant(rows)
            z -= xp.mean(z, axis=1, keepdims=True)
            if self.mode == "image":
                spread = xp.sqrt(xp.mean(z * z, axis=1, keepdims=True))
                # The mean is rounded; where that is no longer small beside the spread, what it has left goes too.
                coarse = spread < 1e-8 * xp.astype(xp.abs(rows[:, :1]), xp.float64)
                if bool(xp.any(coarse & ~constant)):
                    z -= xp.mean(z, axis=1, keepdims=True)
                    spread = xp.sqrt(xp.mean(z * z, axis=1, keepdims=True))
                live = ~constant & (spread > 0)
                z *= xp.where(live, 1.0 / xp.where(live, spread, xp.ones_like(spread)), xp.zeros_like(spread))
            z = cleared(z, constant)
        elif self.mode is not None:
            where = array_api_compat.device(rows)
            z -= placed(np.asarray(self.mean), xp, where)
            if self.mode == "neuron":
                z *= placed(self.weight, xp, where)
        return z

    def _single(self, rows: Array) -> Array:
        xp = array_api_compat.array_namespace(rows)
        where = array_api_compat.device(rows)
        if self.mode is None:
            return xp.astype(rows, xp.float32, copy=False)
        if self.mode in ("image", "level"):
            z = xp.astype(rows, xp.float32, copy=False)
            ones = xp.full((rows.shape[1], 1), 1.0 / rows.shape[1], dtype=xp.float32, device=where)
            constant = is_constant(rows)
            rough = xp.matmul(z, ones)
            z = z - rough
            left = xp.matmul(z, ones)
            z -= left
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                spread = xp.sqrt(xp.matmul(z * z, ones))
                # The first sum was off by `left`, so the second is off by the same share of `left`.
                fine = (left * left <= _MEAN * spread * xp.abs(rough)) & (spread < _RANGE) & (spread > 1 / _RANGE)
                if self.mode == "image":
                    z *= 1.0 / xp.where(fine, spread, xp.ones_like(spread))
            z = cleared(z, constant)
            unsure = ~(fine | constant)[:, 0]
            if bool(xp.any(unsure)):
                self._mend(z, rows, unsure)
            return z
        if self.mode == "neuron" and self.weight.max(initial=0) > _RANGE:
            return self._wide(rows)
        mean = np.asarray(self.mean)
        most = mean.astype(np.float32)
        z = xp.astype(rows, xp.float32, copy=False) - placed(most, xp, where)
        z -= placed((mean - most).astype(np.float32), xp, where)
        if self.mode == "neuron":
            z *= placed(self.weight.astype(np.float32), xp, where)
        return z

    def _mend(self, z: Array, rows: Array, which: Array) -> None:
        """Put into `z` these rows of Z made in float64: float32 does not hold their squares, or their mean."""
        xp = array_api_compat.array_namespace(rows)
        (places,) = xp.nonzero(which)
        for some in spans(places.shape[0], SLICE_ITEMS // rows.shape[1]):
            z[places[some], :] = xp.astype(self.apply(rows[places[some], :]), xp.float32)

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
